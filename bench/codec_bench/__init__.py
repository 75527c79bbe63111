"""The parts of ``bench/codec.py`` and ``bench/codec_qa.py``, one idea per file."""
