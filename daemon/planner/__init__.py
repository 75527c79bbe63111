"""Load or recompute: what the links and the engine cost, learnt from what they did, and the plan that follows. Pure."""
