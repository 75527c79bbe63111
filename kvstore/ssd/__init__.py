"""The SSD tier: a log of checksummed records, its recovery, its scrub and its check."""
