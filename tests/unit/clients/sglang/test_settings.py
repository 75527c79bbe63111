"""Settings stand in an object of their own, beside SGLang's, and are checked."""

from typing import Any

import pytest

from kvloom.clients.sglang.settings import HiCacheSettings
from kvloom.errors import ConfigError
from kvloom.kvstore.tier import Ack


def test_settings_are_read_from_their_own_object() -> None:
    given = {"address": "127.0.0.1:7117", "ack": "disk", "load_seconds_max": 2, "fingerprint": "ab" * 32}
    parsed = HiCacheSettings.parse({"module_path": "kvloom.clients.sglang", "interface_v1": 1, "kvloom": given})
    assert parsed == HiCacheSettings("127.0.0.1:7117", None, "ab" * 32, None, 2.0, Ack.DISK)
    assert HiCacheSettings.parse(None) == HiCacheSettings.parse({}) == HiCacheSettings()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("text", "must be an object"),
        ({"adress": "x"}, "no setting 'adress'"),
        ({"address": 5}, "address is 5"),
        ({"load_seconds_max": 0}, "load_seconds_max is 0"),
        ({"load_seconds_max": True}, "must be a number"),
        ({"lookup_seconds_max": 1e9}, "lookup_seconds_max"),
        ({"fingerprint": "ab"}, "fingerprint has 1 bytes"),
        ({"ack": "never"}, "ack is 'never'"),
    ],
)
def test_what_is_wrong_is_named(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HiCacheSettings.parse({"kvloom": given})
