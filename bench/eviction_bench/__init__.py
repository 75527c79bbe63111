"""Parts of ``bench/eviction.py``: traces, the replay, the offline bounds, hints, the plot."""
