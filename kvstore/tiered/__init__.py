"""The tiered store: what makes one store of several tiers, each of its duties a module."""
