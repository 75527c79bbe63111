import asyncio
import os
from pathlib import Path

import pytest

from kvloom.errors import ConfigError
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.ssd.fsck import check_directory
from kvloom.kvstore.ssd.index_pipe import IndexPipe, Loaded
from kvloom.kvstore.ssd.indexer import CHECK, NOWHERE, ROW
from kvloom.kvstore.ssd.tier import SsdTier

MIB = 1024 * 1024


async def fill(directory: Path, sizes: list[int]) -> None:
    tier = SsdTier.open(directory, 4 * MIB)
    for number, size in enumerate(sizes):
        await tier.put(make_record(number, size))
    await tier.delete(make_record(1, 0).storage_key)
    await tier.close()


async def test_a_sound_directory(tmp_path: Path) -> None:
    await fill(tmp_path, [50_000] * 20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"}
    report = check_directory(tmp_path)
    assert (report.records, report.tombstones, report.findings) == (20, 1, ())
    assert report.segments == len(list(tmp_path.glob("*.log")))
    assert report.size_bytes >= 20 * 50_000
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "lock"} == before


@pytest.mark.slow
async def test_every_single_flipped_bit_is_found(tmp_path: Path) -> None:
    """In every file that the log consists of: frames, headers, payloads, padding, tombstones, lists."""
    await fill(tmp_path, [30, 500])
    (tmp_path / "index").unlink()
    checked = 0
    for path in sorted(tmp_path.iterdir()):
        if path.suffix not in (".log", ".list"):
            continue
        good = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            # The blocks of the log end in padding: there every 13th bit.
            bits = [bit for bit in range(8 * len(good)) if good[bit // 8] or bit % 13 == 0]
            for bit in bits:
                os.pwrite(file.fileno(), bytes([good[bit // 8] ^ 1 << bit % 8]), bit // 8)
                findings = check_directory(tmp_path).findings
                assert findings, f"{path.name}, bit {bit}"
                os.pwrite(file.fileno(), good[bit // 8 : bit // 8 + 1], bit // 8)
                checked += 1
    assert checked > 5000
    assert check_directory(tmp_path).findings == ()


def kept_by(directory: Path) -> Loaded:
    pipe = IndexPipe(directory / "index", 0, how=CHECK)
    try:
        return pipe.load(30)
    finally:
        pipe.kill()


def said_of_index(directory: Path) -> list[str]:
    return [finding.detail for finding in check_directory(directory).findings if finding.file == "index"]


def write_index(directory: Path, *rows: bytes) -> None:
    pipe = IndexPipe(directory / "index", MIB)
    try:
        pipe.load(30)
        pipe.write(b"".join(rows), None, bytes_max=MIB, seconds=30)
    finally:
        pipe.kill()


async def test_where_the_index_disagrees_with_the_log_it_is_named(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, 4 * MIB)
    await tier.put(make_record(1, 5000))
    await tier.write_index()
    replaced = kept_by(tmp_path).entries[0]
    await tier.put(make_record(1, 5000, version=1))
    await tier.close()
    assert said_of_index(tmp_path) == []
    seed, offset = int(replaced["seed"]), int(replaced["offset"])
    write_index(tmp_path, ROW.pack(0, NOWHERE, seed, offset), ROW.pack(0, NOWHERE, seed, 7))
    assert said_of_index(tmp_path) == [
        f"names a record at {64 * offset} of segment {seed:016x}, which the log replaced",
        f"names a record at 448 of segment {seed:016x}, where the log has none",
    ]
    await (await asyncio.to_thread(SsdTier.open, tmp_path, 4 * MIB)).close()
    assert said_of_index(tmp_path) == []


async def test_an_index_that_is_behind_the_log_is_no_damage(tmp_path: Path) -> None:
    tier = SsdTier.open(tmp_path, 4 * MIB)
    for number in range(10):
        await tier.put(make_record(number, 5000))
    await tier.write_index()
    older = (tmp_path / "index").read_bytes()
    for number in range(5):
        await tier.put(make_record(number, 5000, version=1))
    await tier.delete(make_record(7, 0).storage_key)
    await tier.close()
    (tmp_path / "index").write_bytes(older)
    assert said_of_index(tmp_path) == []


@pytest.mark.slow
async def test_a_flipped_bit_of_the_index_is_named_or_changes_nothing(tmp_path: Path, rng) -> None:
    await fill(tmp_path, [3000] * 30)
    path, sound = tmp_path / "index", kept_by(tmp_path)
    good = path.read_bytes()
    used = [place for place in range(len(good)) if good[place]]
    named = 0
    for place in rng.choice(used, 60).tolist():
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << int(rng.integers(8))]) + good[place + 1 :])
        if said_of_index(tmp_path):
            named += 1
        else:
            loaded = kept_by(tmp_path)
            assert loaded.entries.tolist() == sound.entries.tolist()
            assert set(loaded.claims.tolist()) <= set(sound.claims.tolist())
    assert named > 20


@pytest.mark.parametrize("content", [b"x" * 100, bytes(20_000), b"garbage!" * 5000])
async def test_an_index_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    await fill(tmp_path, [3000])
    (tmp_path / "index").write_bytes(content)
    (said,) = said_of_index(tmp_path)
    assert said.startswith(("the index is damaged: ", "the process of the index ended by "))
    assert (tmp_path / "index").read_bytes() == content


async def test_a_truncated_segment_and_a_strange_name_are_found(tmp_path: Path) -> None:
    await fill(tmp_path, [50_000] * 3)
    (tmp_path / "x.log").write_bytes(b"")
    (log,) = tmp_path.glob("0*.log")
    os.truncate(log, 60_000)
    details = {finding.file: finding.detail for finding in check_directory(tmp_path).findings}
    assert details["x.log"] == "not the name of a segment"
    assert "more than its segment holds" in details[log.with_suffix(".list").name]


async def test_a_directory_in_use_or_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="holds no SSD tier"):
        check_directory(tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    tier = SsdTier.open(tmp_path / "mine", 4 * MIB)
    with pytest.raises(ConfigError, match="in use by another daemon"):
        check_directory(tmp_path / "mine")
    await tier.close()
