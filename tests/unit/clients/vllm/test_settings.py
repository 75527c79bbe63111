"""What a user writes into kv_connector_extra_config is taken as meant, or refused with its name and value."""

from typing import Any

import pytest

from kvloom.clients.vllm.settings import ConnectorSettings
from kvloom.codec.level import STANDARD
from kvloom.errors import ConfigError
from kvloom.kvstore.tier import Ack


def test_settings_are_read_with_and_without_their_prefix() -> None:
    found = ConnectorSettings.parse(
        {"level": "standard", "kvloom_ack": "disk", "load_seconds_max": 2, "fingerprint": "ab" * 32, "save": False}
    )
    assert found == ConnectorSettings(
        level=STANDARD, ack=Ack.DISK, load_seconds_max=2.0, fingerprint=b"\xab" * 32, save=False
    )
    assert ConnectorSettings.parse({}) == ConnectorSettings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("levle", "exact"),
        ("level", "perfect"),
        ("level", 3),
        ("ack", "maybe"),
        ("chunk_tokens", 0),
        ("chunk_tokens", "256"),
        ("chunk_tokens", True),
        ("chunk_tokens", 1_000_000),
        ("lookup_seconds_max", 0),
        ("lookup_seconds_max", "fast"),
        ("load_seconds_max", -1),
        ("save", 1),
        ("save_queue_bytes", -1),
        ("fingerprint", "zz"),
        ("fingerprint", "ab"),
        ("address", 7),
        ("plan", 1),
        ("engine", ""),
        ("engine", "my engine"),
        ("engine", "x" * 129),
        ("layers_per_part", -1),
        ("load_by_layer", True),
        ("await_seconds_max", 0),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        ConnectorSettings.parse({name: value})
