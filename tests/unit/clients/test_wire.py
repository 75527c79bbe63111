import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients import wire
from kvloom.codec.level import DRAFT, EXACT, STANDARD
from kvloom.errors import InvalidKey, InvalidRequest, TooManyItems, UnknownLevel
from kvloom.kvstore.key import ModelIdentity
from kvloom.kvstore.tier import Ack

IDENTITY = ModelIdentity(b"f" * 32, b"l" * 32, "lora", b"\x00salt", (b"m" * 32, b"n" * 32))
ENTRY = wire.ChunkEntry(b"k" * 32, 10, 1234, ("memory", "ssd"))
RECORDS = [
    wire.PutReply(Ack.DISK),
    wire.ErrorBody("not_found", "no"),
    wire.KeysQuestion(("a", "b")),
    wire.ExistsReply((True, False)),
    wire.PrefixQuestion(identity=IDENTITY, tokens=(1, 2, 3), chunk_tokens=2),
    wire.PrefixQuestion(keys=("ab",)),
    wire.PrefixCount(2),
    wire.PrefixCount(2, 512, ("ab", "cd")),
    wire.ChunkList((ENTRY,), truncated=True),
    wire.ChunkDetail(
        ENTRY, 5, 0, 3, "float32", b"l" * 32, 99, (wire.LevelBytes(DRAFT, 1), wire.LevelBytes(EXACT, 2)), b"p" * 32
    ),
    wire.Health("ready", "0.1.0", 12),
    wire.DeleteReply(deleted=False),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_the_wire(record):
    assert wire.decode(type(record), wire.encode(record)) == record


def test_the_json_is_what_a_stranger_would_write():
    assert json.loads(wire.encode(RECORDS[4])) == {
        "keys": None,
        "identity": {
            "fingerprint": (b"f" * 32).hex(),
            "layout_digest": (b"l" * 32).hex(),
            "adapter": "lora",
            "salt": b"\x00salt".hex(),
            "multimodal": [(b"m" * 32).hex(), (b"n" * 32).hex()],
        },
        "tokens": [1, 2, 3],
        "chunk_tokens": 2,
    }


def test_missing_fields_take_their_defaults_and_unknown_ones_are_refused_only_in_requests():
    body = json.dumps({"fingerprint": "00" * 32, "layout_digest": "11" * 32}).encode()
    assert wire.decode(ModelIdentity, body) == ModelIdentity(bytes(32), b"\x11" * 32)
    typo = b'{"key": ["ab"], "keys": ["cd"]}'
    with pytest.raises(InvalidRequest, match="no field 'key'; fields are keys"):
        wire.decode(wire.KeysQuestion, typo)
    assert wire.decode(wire.KeysQuestion, typo, strict=False) == wire.KeysQuestion(("cd",))


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        (wire.KeysQuestion, b"", "not JSON"),
        (wire.KeysQuestion, b"[" * 100_000, "100000 opening brackets, the limit is 1024"),
        (wire.KeysQuestion, b"[" + b"0," * 4_194_305, "4194305 commas, the limit is 4194304"),
        (wire.KeysQuestion, b"[" * 1000, "not JSON"),
        (wire.KeysQuestion, b'{"keys": 1' + b"0" * 5000 + b"}", "not JSON"),
        (wire.KeysQuestion, b"\xff\xfe", "not JSON"),
        (wire.KeysQuestion, b"[]", "body is [], not of type dict"),
        (wire.KeysQuestion, b"{}", "lacks the field 'keys'"),
        (wire.KeysQuestion, b'{"keys": "ab"}', 'body.keys is "ab", not of type list'),
        (wire.KeysQuestion, b'{"keys": ["ab", 7]}', "body.keys[1] is '7', not of type str"),
        (wire.PrefixQuestion, b'{"tokens": [1, 2.5]}', "body.tokens[1] is '2.5', not of type int"),
        (wire.PrefixQuestion, b'{"tokens": [true]}', "body.tokens[0] is 'True', not of type int"),
        (wire.PrefixQuestion, b'{"identity": {"fingerprint": "xy"}}', "lacks the field 'layout_digest'"),
        (wire.PrefixQuestion, b'{"identity": {"fingerprint": "xy", "layout_digest": ""}}', "is 'xy', not hexadecimal"),
        (wire.PrefixQuestion, b'{"identity": {"fingerprint": "ab", "layout_digest": "ab"}}', "1 bytes, must have 32"),
        (wire.PutReply, b'{"ack": "tape"}', "body.ack is 'tape', not one of memory, disk"),
        (wire.LevelBytes, b'{"level": "best", "payload_bytes": 1}', "level 'best' is unknown"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(kind, body, says):
    with pytest.raises(InvalidRequest) as caught:
        wire.decode(kind, body)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["keys", "tokens", "identity", "chunk_tokens", "fingerprint"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@given(JSON)
def test_any_json_is_a_record_or_an_invalid_request(value):
    with contextlib.suppress(InvalidRequest):
        assert isinstance(wire.load(wire.PrefixQuestion, value), wire.PrefixQuestion)


def test_every_wire_record_is_frozen():
    kinds = [
        item for item in vars(wire).values() if dataclasses.is_dataclass(item) and item.__module__ == wire.__name__
    ]
    assert len(kinds) >= 10
    assert all(kind.__dataclass_params__.frozen for kind in kinds)


def test_layers_are_inclusive_and_survive_a_round_trip():
    assert wire.parse_layers("2-5") == range(2, 6)
    assert wire.parse_layers("7") == range(7, 8)
    assert wire.parse_layers(wire.format_layers(range(3, 9))) == range(3, 9)
    with pytest.raises(InvalidRequest):
        wire.format_layers(range(3, 3))


@pytest.mark.parametrize("text", ["", "-", "a-b", "3-2", "-1", "0-", f"0-{limits.LAYERS_MAX}", "1-2-3", "٣", "1 - 2"])
def test_layers_that_are_none_are_refused_by_name(text):
    with pytest.raises(InvalidRequest, match="layers"):
        wire.parse_layers(text)


def test_keys_and_acks_are_parsed_strictly():
    assert wire.parse_keys(("ab" * 32,)) == [bytes.fromhex("ab" * 32)]
    with pytest.raises(InvalidKey):
        wire.parse_keys(("AB" * 32,))
    with pytest.raises(TooManyItems, match=f"{limits.KEYS_PER_REQUEST_MAX + 1} keys"):
        wire.parse_keys(("ab",) * (limits.KEYS_PER_REQUEST_MAX + 1))
    assert wire.parse_ack("disk") is Ack.DISK
    with pytest.raises(InvalidRequest, match="ack 'tape' is not one of memory, disk"):
        wire.parse_ack("tape")


def test_levels_travel_by_name():
    assert wire.dump(STANDARD) == "standard"
    with pytest.raises(UnknownLevel):
        wire.decode(wire.LevelBytes, b'{"level": "x", "payload_bytes": 1}')


@pytest.mark.parametrize(("text", "seconds"), [("1", 1.0), ("0.5", 0.5), ("86400", 86400.0), ("3.25", 3.25)])
def test_a_time_to_live_is_a_plain_number_of_seconds(text, seconds):
    assert wire.parse_ttl(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1e3", "nan", "inf", " 1", "1,5", "\u0661", "1" * 13, "1."])
def test_a_time_to_live_that_is_none(text):
    with pytest.raises(InvalidRequest, match="ttl_seconds"):
        wire.parse_ttl(text)
