"""Parts of the daemon benchmark: the clients, the servers, and what many connections cost."""
