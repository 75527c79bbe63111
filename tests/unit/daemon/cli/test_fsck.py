import asyncio
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvloom.daemon.cli.console import ExitCode, Stop
from kvloom.daemon.cli.fsck import fsck
from kvloom.kvstore.conformance.tier import make_record
from kvloom.kvstore.ssd.tier import SsdTier

LIMIT = 4 * 1024 * 1024
RECORDS = [make_record(number, 20_000) for number in range(10)]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    async def fill() -> None:
        tier = SsdTier.open(tmp_path / "chunks", LIMIT)
        for record in RECORDS:
            await tier.put(record)
        await tier.close()

    asyncio.run(fill())
    return tmp_path


def damage(data_dir: Path, number: int) -> None:
    (log,) = (data_dir / "chunks").glob("*.log")
    place = log.read_bytes().index(RECORDS[number].payload)
    with log.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"????", place + 10_000)


def test_sound(data_dir: Path) -> None:
    for directory in (data_dir, data_dir / "chunks"):
        result = CliRunner().invoke(fsck, [str(directory)])
        assert result.exit_code == 0, result.output
        assert "10 records" in result.output
        assert "0 damaged" in result.output


def test_damage_is_named_and_repaired(data_dir: Path) -> None:
    damage(data_dir, 3)
    damage(data_dir, 7)
    result = CliRunner().invoke(fsck, [str(data_dir), "--json"])
    assert isinstance(result.exception, Stop)
    assert result.exception.code == ExitCode.FAILED
    findings = json.loads(result.stdout)["findings"]
    assert [finding["detail"] for finding in findings] == ["record payload does not match its checksum"] * 2
    result = CliRunner().invoke(fsck, [str(data_dir), "--repair"])
    assert result.exit_code == 0, result.output
    assert "2 damaged records deleted" in result.output

    async def held() -> list[bool]:
        tier = SsdTier.open(data_dir / "chunks", LIMIT)
        found = await tier.contains_many([record.storage_key for record in RECORDS])
        await tier.close()
        return found

    assert asyncio.run(held()) == [number not in (3, 7) for number in range(10)]
