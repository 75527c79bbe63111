"""Over a restart: what was in memory is noted at the end, and read from the disk again at the start, while serving."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from .. import limits
from ..errors import InvalidData, KvloomError
from ..kvstore.atomic_file import replace_file
from ..kvstore.tiered.store import TieredStore
from ..kvstore.tiered.warming import Resident, decode_residents, encode_residents

__all__ = ["WARM_FILE", "warmed"]

WARM_FILE: Final = "warm"
_FILE_BYTES_MAX: Final = 64 * (limits.WARM_RECORDS_MAX + 1)
_log = structlog.get_logger("kvloom.daemon")


@asynccontextmanager
async def warmed(store: TieredStore, directory: Path) -> AsyncIterator[None]:
    """Fill the memory of ``store`` in the background while the context lasts; note at its end what is there.

    The note is used once, so that one from before a crash is never taken for the newest. Without one, or with one that
    is damaged, memory fills with what is used, as ever.
    """
    path = directory / WARM_FILE
    residents = await asyncio.to_thread(_take, path)
    filling = asyncio.create_task(_fill(store, residents))
    try:
        yield
    finally:
        filling.cancel()
        await asyncio.wait((filling,))
        with suppress(OSError, KvloomError):  # a full disk costs only the note
            data = encode_residents(await store.warming.residents())
            await asyncio.to_thread(replace_file, path, data)


async def _fill(store: TieredStore, residents: list[Resident]) -> None:
    if not residents:
        return
    began = asyncio.get_running_loop().time()
    try:
        asked = await store.warming.fill(residents)
        await store.settled()
    except KvloomError as error:
        _log.warning("memory not warmed", reason=str(error))
        return
    seconds = round(asyncio.get_running_loop().time() - began, 3)
    _log.info("warm", noted=len(residents), read=asked, seconds=seconds)


def _take(path: Path) -> list[Resident]:
    """What the note says; it is gone afterwards."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX)
        path.unlink()
        return decode_residents(data)
    except (OSError, InvalidData):
        return []
