#!/usr/bin/env python3
"""The compatibility table: docs/COMPATIBILITY.md, from what tests have shown.

    .ci/compatibility.py RECORDS...           take in what ran and write the page anew
    .ci/compatibility.py --check RECORDS...   fail where the page does not say what ran

Records are what ``pytest --compatibility FILE`` writes. They are kept in docs/measurements/compatibility.json; what did
not run this time, because an engine cannot be installed here, stays as it was shown last, and the check says so. Other
versions than the page's are no failure, but are named.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE = ROOT / "docs/measurements/compatibility.json", ROOT / "docs/COMPATIBILITY.md"
HEAD = """# What works with which engine

Every line is what a test has shown, on the version named; `make compatibility` writes this page from the last run of
the tests, and CI fails where it says anything else. *Not run* is what the machine that ran the tests cannot show:
nothing is claimed of it.

| engine | version | feature | how tested | shown |
|---|---|---|---|---|
"""

Record = dict[str, Any]
Identity = tuple[str, str, str]


def identity(record: Record) -> Identity:
    """What a record is about."""
    return record["engine"], record["feature"], record["test"]


def read(files: Iterable[Path]) -> list[Record]:
    """The records of all ``files`` that are there, the last of each kind."""
    found = {identity(record): record for file in files if file.exists() for record in json.loads(file.read_text())}
    return sorted(found.values(), key=lambda record: (record["engine"].casefold(), record["feature"], record["test"]))


def page(records: list[Record]) -> str:
    """The table."""
    lines = []
    for (engine, feature), group in groupby(records, key=lambda record: (record["engine"], record["feature"])):
        tests = list(group)
        wrong = next((test for test in tests if test["outcome"] != "passed"), None)
        if wrong is None:
            verdict = f"{len(tests)} test{'s' if len(tests) > 1 else ''}"
        elif wrong["outcome"] == "skipped":
            verdict = f"*not run*: {wrong['reason']}"
        else:
            verdict = f"**fails**: `{wrong['test'].rpartition('::')[2]}`"
        versions = sorted({test["version"] for test in tests} - {""}) or ["–"]
        how = sorted({test["how"] for test in tests})
        lines.append(f"| {engine} | {', '.join(versions)} | {feature} | {'; '.join(how)} | {verdict} |\n")
    return HEAD + "".join(lines)


def check(ran: list[Record]) -> list[str]:
    """What the kept records and the page get wrong."""
    kept = {identity(record): record for record in read([KEPT])}
    now = {identity(record): record for record in ran}
    engines = {record["engine"] for record in ran}
    wrong = []
    for key, record in now.items():
        before = kept.get(key)
        if before is None:
            wrong.append(f"{record['engine']}: {record['feature']} ({record['test']}) is not on the page")
        elif (before["outcome"], before["how"]) != (record["outcome"], record["how"]):
            wrong.append(f"{record['engine']}: {record['feature']} is {record['outcome']}, was {before['outcome']}")
        elif before["version"] != record["version"]:
            print(f"note: {record['engine']} {record['version']} ran, the page says {before['version']}")
    wrong += [f"{key[0]}: {key[1]} ({key[2]}) did not run" for key in kept if key not in now and key[0] in engines]
    for engine in sorted({key[0] for key in kept} - engines):
        print(f"note: {engine} was not run here; the page says what was shown last")
    if not PAGE.exists() or PAGE.read_text() != page(list(kept.values())):
        wrong.append(f"{PAGE.relative_to(ROOT)} is not what its records say")
    return wrong


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("records", type=Path, nargs="+")
    arguments = parser.parse_args()
    ran = read(arguments.records)
    if not ran:
        sys.exit(f"no records in {', '.join(map(str, arguments.records))}: make test and make test-vllm write them")
    if arguments.check:
        wrong = check(ran)
        sys.exit("\n".join([*wrong, "make compatibility takes in what ran"]) if wrong else 0)
    engines = {record["engine"] for record in ran}
    kept = [record for record in read([KEPT]) if record["engine"] not in engines] + ran
    kept.sort(key=lambda record: (record["engine"].casefold(), record["feature"], record["test"]))
    KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(page(kept))


if __name__ == "__main__":
    main()
