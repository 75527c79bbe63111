"""Which backend the SSD tier should have: churn at ten times its capacity, then reads, then opening it again.

``python bench/ssd_backends.py [--json FILE] [--directory DIR] [--quota-mib N] [--records N] [--rounds N]``

With the defaults it takes about ten minutes and 0.5 GB of disk; a row is printed when its rounds are done.

Four backends, in turns: ``lmdb`` keeps the records as values in LMDB (a minimal version, in ``ssd_bench``); ``log``
is the product with its index switched off; ``log+lmdb`` is that with every group's changes committed to LMDB too; and
``log+index`` is the product, whose index a process of its own writes, off the path of the puts. One fdatasync per
group commit in all of them. A row is the median of the rounds. Write amplification is what the process and its
children wrote to the disk (``/proc/self/io``) over what was put; so is CPU time that of both. ``open`` is opening
100,000 small records: after a clean close, after a crash (lists and index as they are), without the index, without the
lists, and for LMDB walking its records, without a check for damage.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
from dataclasses import asdict
from itertools import product
from pathlib import Path

from ssd_bench.backends import BACKENDS, MIB
from ssd_bench.churn import Load, Row, churn, median_of
from ssd_bench.opening import opening


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--quota-mib", type=int, default=128)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--values", type=int, nargs="+", default=[4 * MIB, 256 * 1024], help="bytes of a value")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.directory))
    rows: list[Row] = []
    try:
        for value_bytes, clients, reuse in product(arguments.values, arguments.clients, (False, True)):
            if reuse and clients == 1:
                continue
            times = arguments.times if clients > 1 else max(2, arguments.times // 3)
            load = Load(arguments.quota_mib * MIB, value_bytes, clients, times, reuse)
            measured: dict[str, list[Row]] = {name: [] for name in arguments.backends}
            for _ in range(arguments.rounds):
                for name in arguments.backends:
                    measured[name].append(asyncio.run(churn(name, root, load)))
            for name in arguments.backends:
                rows.append(median_of(measured[name]))
                each = [row.put_mb_per_s for row in measured[name]]
                print(json.dumps(asdict(rows[-1])), "put MB/s of each round", each, flush=True)
        opened = asyncio.run(opening(root, arguments.records, 1000)) if arguments.records else {}
    finally:
        shutil.rmtree(root)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"rows": [asdict(row) for row in rows], "open": {what: asdict(row) for what, row in opened.items()}},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
