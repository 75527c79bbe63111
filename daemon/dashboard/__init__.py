"""The dashboard: one page that the daemon serves, the sessions that open it, and the figures that it shows."""
