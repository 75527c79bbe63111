"""Where chunks are kept: their identity, the tiers that hold them, and the store that knows there are several."""
