"""The CPU tier: a log of shared-memory segments, which local clients may map."""
