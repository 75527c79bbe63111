"""The parts of ``bench/soak.py``: what is asked of the daemon, what is wrong with some of it, what is measured."""
