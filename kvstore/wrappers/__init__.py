"""Tiers around tiers: one concern each, stacked where they are wanted."""
