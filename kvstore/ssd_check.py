"""Checks an LMDB environment for damage: ``python -m kvloom.kvstore.ssd_check DIRECTORY``.

LMDB trusts its file: a damaged page can end the process that meets it (SIGBUS, SIGSEGV, abort). So the daemon lets
this child meet it first. It walks both trees in step, compares the lengths they state, touches the records where the
file is shorter than its pages claim, and makes LMDB plan a large write, which is then thrown away. Payload bytes are
not read: every read of a record checks them later.

Exit status: 0 sound, 3 damaged (one line on stdout says how); any signal means damaged too. Other statuses mean that
the check itself could not run.
"""

import sys
from pathlib import Path
from typing import Final

import lmdb

from .ssd_format import DATABASES_MAX, FORMAT_KEY, FORMAT_VALUE, INDEX, META, RECORDS, IndexEntry

__all__ = ["DAMAGED_STATUS", "find_damage", "main"]

DAMAGED_STATUS: Final = 3
_PROBE_BYTES = 256 * 1024
_MAP_SLACK_BYTES = 64 * 1024 * 1024
"""The probe must find room; it is never written."""


def find_damage(directory: Path) -> str | None:
    """One line naming the damage, or ``None``. May end the process instead: that is what the child is for."""
    file_bytes = (directory / "data.mdb").stat().st_size
    try:
        with lmdb.open(str(directory), map_size=file_bytes + _MAP_SLACK_BYTES, max_dbs=DATABASES_MAX) as environment:
            return _walk(environment, file_bytes)
    except (lmdb.Error, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _walk(environment: lmdb.Environment, file_bytes: int) -> str | None:
    databases = [_open_database(environment, name) for name in (RECORDS, INDEX, META)]
    if all(database is None for database in databases):
        return None
    records, index, meta = databases
    if records is None or index is None or meta is None:
        return "one of its databases is missing"
    claimed_bytes = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    # Pages past the end may be free ones that were never written, so a short file is only damaged if a record is there.
    touch = file_bytes < claimed_bytes
    walked = 0
    form = _stated_format(environment, meta)
    if form is None:
        return "it does not say its format"
    if form != FORMAT_VALUE:
        return None  # another kvloom's, whose records this one cannot judge; opening it says so
    with environment.begin(buffers=True) as transaction:
        counts = [transaction.stat(database)["entries"] for database in (records, index)]
        if counts[0] != counts[1]:
            return f"{counts[0]} records and {counts[1]} index entries"
        with transaction.cursor(db=records) as stored, transaction.cursor(db=index) as listed:
            for (key, record), (index_key, value) in zip(stored, listed, strict=True):
                if walked > counts[0]:
                    return f"more than the {counts[0]} records it counts"
                if key != index_key or len(record) != IndexEntry.from_bytes(value).record_bytes:
                    return f"record {bytes(key).hex()[:16]} is not what the index says"
                if touch:
                    _touch(record)
                walked += 1
    if walked != counts[0]:
        return f"{walked} of {counts[0]} records are reachable"
    with environment.begin(write=True) as transaction:
        for database in (records, index, meta):
            transaction.put(b"probe", bytes(_PROBE_BYTES), db=database)
        transaction.abort()
    return None


def _open_database(environment: lmdb.Environment, name: bytes) -> "lmdb._Database | None":
    try:
        return environment.open_db(name, create=False)
    except lmdb.NotFoundError:
        return None


def _stated_format(environment: lmdb.Environment, meta: "lmdb._Database") -> bytes | None:
    with environment.begin() as transaction, transaction.cursor(db=meta) as cursor:
        return dict(cursor).get(FORMAT_KEY)


def _touch(record: memoryview) -> None:
    bytes(record[:1]), bytes(record[-1:])


def main() -> int:
    """Run the check on the directory given as the only argument."""
    damage = find_damage(Path(sys.argv[1]))
    if damage is None:
        return 0
    sys.stdout.write(damage + "\n")
    return DAMAGED_STATUS


if __name__ == "__main__":
    sys.exit(main())
