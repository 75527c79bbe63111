"""The parts of ``bench/blend.py``: data, the model, strategies, shards and the table."""
