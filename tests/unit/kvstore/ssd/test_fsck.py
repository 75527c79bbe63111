import os
from pathlib import Path

import pytest

from kvloom.errors import ConfigError
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.ssd.fsck import check_directory
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
    """In every file that carries something: frames, headers, payloads, padding, tombstones, lists, order."""
    await fill(tmp_path, [30, 500])
    checked = 0
    for path in sorted(tmp_path.iterdir()):
        if path.suffix not in (".log", ".list") and path.name != "order":
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
