"""The proto package ``kvloom``."""
