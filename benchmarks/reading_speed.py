"""How many pairs a second are read from where they lie.

python benchmarks/reading_speed.py --source folder --path pairs --size 128
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from statistics import median

from report import Parser, Table, output_file, positive, publish

from backshan_diffusers.data import Pairs, load_pairs
from backshan_diffusers.data.pairs import SPLITS

WARM_UP = 20
"""Pairs that every process reads before the clock starts."""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Pairs]:
    """The options, and the pairs to read."""
    parser = Parser(prog="reading_speed.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--source", required=True, help="a name that load_pairs knows")
    parser.add_argument("--path", help="where the pairs lie")
    parser.add_argument("--split", default="train", choices=SPLITS, help="(default: %(default)s)")
    parser.add_argument(
        "--size", type=positive, required=True, metavar="PX", help="side of the pictures that are made"
    )
    parser.add_argument("--processes", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=positive, help="pairs in a round (default: all of the split)")
    parser.add_argument("--repeats", type=positive, default=3, help="rounds, of which the median counts")
    parser.add_argument("--json", type=output_file, help="write the results here")
    options = parser.parse_args(arguments)
    try:
        rows = load_pairs(
            options.source, path=options.path, split=options.split, size=options.size, count=options.pairs
        )
    except ValueError as error:
        parser.error(str(error))
    return options, rows


def read(rows: Pairs) -> int:
    """Make all rows; returns how many."""
    return sum(1 for _ in rows)


def rounds(rows: Pairs, processes: int, repeats: int) -> list[float]:
    """Pairs a second of each round, with `processes` workers that share the rows; their start is left out."""
    starts = [len(rows) * worker // processes for worker in range(processes + 1)]
    shares = [rows[start:stop] for start, stop in pairwise(starts)]
    rates = []
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(read, [rows[:WARM_UP]] * processes))
        for _ in range(repeats):
            began = time.perf_counter()
            done = sum(pool.map(read, shares))
            rates.append(done / (time.perf_counter() - began))
    return rates


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    options, rows = parse(arguments)
    results = [
        {"processes": processes, "pairs_per_second": rounds(rows, processes, options.repeats)}
        for processes in options.processes
    ]
    cells = [[str(r["processes"]), f"{median(r['pairs_per_second']):.0f}"] for r in results]
    title = f"{options.source} at {options.size} px, medians of {options.repeats} rounds of {len(rows)} pairs"
    publish(
        [Table("speed", title, ["processes", "pairs a second"], cells)],
        {"source": options.source, "split": options.split, "size_px": options.size, "rounds": results},
        arguments,
        None,
        options.json,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
