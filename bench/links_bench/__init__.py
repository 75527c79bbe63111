"""Parts of the benchmark over real links: the network, the engine, a proxy that misbehaves, and the simulator."""
