"""CacheGen chosen in a real daemon: put, restarted, read level by level, and the other codec refused."""

import json

import numpy as np
import pytest
from blake3 import blake3

from kvloom import codec, errors
from kvloom.codec import EXACT, LOSSY_LEVELS, STANDARD, KvSample, Layout, LossyCodec
from kvloom.kvstore.outcome import Hit, Miss
from kvloom.kvstore.tier import Ack

LAYOUT = Layout.uniform(layers=3, kv_heads=2, head_dim=8)
KEY, SECOND_KEY = (blake3(name).digest() for name in (b"a chunk", b"another"))


def drawn(seed: int) -> np.ndarray:
    """Synthetic KV whose tokens resemble each other."""
    noise = np.random.default_rng(seed).normal(size=(2, 3, 2, 60, 8))
    return (0.3 * noise.cumsum(axis=3)).astype(np.float32)


@pytest.fixture(scope="module")
def profile():
    return codec.calibrate_cachegen([KvSample(*drawn(seed)) for seed in (1, 2)], LAYOUT)


def test_cachegen_levels_survive_a_restart_and_are_read_one_by_one(start_daemon, profile):
    daemon = start_daemon("--codec", "cachegen")
    client = daemon.client()
    assert client.stats().codec is LossyCodec.CACHEGEN
    assert client.put_profile(profile.data) == profile.digest
    keys, values = drawn(3)
    for levels in ([STANDARD, EXACT], LOSSY_LEVELS):  # what is put later is joined
        blob = codec.encode(keys, values, layout=LAYOUT, profile=profile, levels=levels, content_key=KEY)
        client.put(KEY, blob, ack=Ack.DISK)
    whole = codec.encode(keys, values, layout=LAYOUT, profile=profile, levels=[*LOSSY_LEVELS, EXACT], content_key=KEY)
    assert daemon.stop() == 0
    daemon.start()
    with daemon.client() as client:
        shelf = client.get_profile(profile.digest)
        assert isinstance(shelf, Hit)
        parsed = codec.parse_profile(shelf.value)
        for level in LOSSY_LEVELS:
            got = client.get(KEY, level=level)
            assert isinstance(got, Hit)
            assert got.value.header.levels == (level,), "the coarser levels are not sent: they are not needed"
            found = codec.decode(got.value.data, profile=parsed, level=level)
            expected = codec.decode(whole, profile=profile, level=level)
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
        exact = client.get(KEY, level=EXACT)
        assert isinstance(exact, Hit)
        assert codec.decode(exact.value.data)[0].tobytes() == keys.tobytes()
        everything = client.get(KEY)
        assert isinstance(everything, Hit)
        assert bytes(everything.value.data) == whole


def test_the_other_codec_is_refused_in_one_line_and_nothing_is_stored(start_daemon, profile):
    daemon = start_daemon()
    with daemon.client() as client:
        client.put_profile(profile.data)
        keys, values = drawn(4)
        blob = codec.encode(keys, values, layout=LAYOUT, profile=profile, levels=[STANDARD], content_key=SECOND_KEY)
        with pytest.raises(errors.CodecMismatch, match="codec cachegen, namespace default keeps those of kvloom"):
            client.put(SECOND_KEY, blob)
        assert isinstance(client.get(SECOND_KEY), Miss)
    answer = daemon.ask("PUT", f"/chunks/{SECOND_KEY.hex()}", blob)
    assert answer.status == 409
    assert answer.json()["error"] == "codec_mismatch"


def test_show_and_status_name_the_codec(start_daemon, profile):
    daemon = start_daemon("--codec", "cachegen")
    with daemon.client() as client:
        client.put_profile(profile.data)
        blob = codec.encode(*drawn(5), layout=LAYOUT, profile=profile, levels=[STANDARD], content_key=KEY)
        client.put(KEY, blob)
    shown = daemon.run("show", KEY.hex()).stdout.decode()
    assert any(line.split() == ["codec", "cachegen"] for line in shown.splitlines()), shown
    detail = json.loads(daemon.run("show", KEY.hex(), "--json").stdout)
    assert detail["codec"] == "cachegen"
    assert "codec of lossy levels: cachegen" in daemon.run("status").stdout.decode()
    assert json.loads(daemon.run("status", "--json").stdout)["codec"] == "cachegen"


def test_a_codec_that_there_is_not_stops_the_daemon_before_it_starts(start_daemon):
    daemon = start_daemon()
    result = daemon.run("serve", "--port", "0", "--data-dir", str(daemon.data_dir.parent / "other"), "--codec", "zip")
    assert result.returncode != 0
    assert "codec 'zip' is not one of kvloom, cachegen" in result.stderr.decode()
