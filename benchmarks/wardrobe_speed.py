"""How many pairs a second `wardrobe` draws. Run: python benchmarks/wardrobe_speed.py [--json FILE]"""

import argparse
import datetime
import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from backshan_diffusers.data import load_pairs
from backshan_diffusers.data.wardrobe import SPLITS

SPLIT = "validation"


def draw(size: int, start: int, stop: int) -> int:
    """Draw rows `start` to `stop` at `size` px; returns how many."""
    rows = load_pairs("wardrobe", split=SPLIT, size=size, count=stop)[start:stop]
    return sum(1 for _ in rows)


def pairs_per_second(size: int, processes: int, pairs: int) -> float:
    """Pairs a second with `processes` workers that share `pairs` rows; start-up is left out by a first round."""
    share = pairs // processes
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(draw, [size] * processes, range(processes), range(20, 20 + processes)))
        begin = time.perf_counter()
        starts = [worker * share for worker in range(processes)]
        drawn = sum(pool.map(draw, [size] * processes, starts, [start + share for start in starts]))
        return drawn / (time.perf_counter() - begin)


def git_commit() -> str | None:
    """The commit of the working tree, None outside a repository or before the first commit."""
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def main() -> None:
    """Print the table; with --json, write it with what is needed to repeat it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], metavar="PX")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=400, help="pairs drawn for each number")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    results = []
    print("size (px)  processes  pairs/s")
    for size in arguments.sizes:
        for processes in arguments.processes:
            rate = pairs_per_second(size, processes, arguments.pairs)
            results.append({"size_px": size, "processes": processes, "pairs_per_second": round(rate, 1)})
            print(f"{size:9d}  {processes:9d}  {rate:7.1f}")
    if arguments.json:
        record = {
            "command": shlex.join(["python", "benchmarks/wardrobe_speed.py", *sys.argv[1:]]),
            "git_commit": git_commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": SPLITS[SPLIT],
            "pairs": arguments.pairs,
            "results": results,
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
