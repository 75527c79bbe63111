"""The examples in the documentation of the codec are run."""

import doctest

from kvloom import codec


def test_codec_examples():
    result = doctest.testmod(codec)
    assert result.attempted >= 6
    assert result.failed == 0
