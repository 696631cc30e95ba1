"""How many pairs a second `wardrobe` draws.

python benchmarks/wardrobe_speed.py --json benchmarks/results/wardrobe_speed.json
"""

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from reading_speed import rounds
from report import Parser, Table, output_file, positive, publish

from backshan_diffusers.data import load_pairs
from backshan_diffusers.data.wardrobe import SPLITS

SPLIT = "validation"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = Parser(prog="wardrobe_speed.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=positive, nargs="+", default=[64, 128, 256], metavar="PX")
    parser.add_argument("--processes", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=positive, default=400, help="pairs in a round (default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=3, help="rounds, of which the median counts")
    parser.add_argument("--json", type=output_file, help="write the results here")
    options = parser.parse_args(arguments)
    for size in options.sizes:
        try:
            load_pairs("wardrobe", split=SPLIT, size=size, count=1)
        except ValueError as error:
            parser.error(str(error))
    return options


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    options = parse(arguments)
    results = []
    for size in options.sizes:
        rows = load_pairs("wardrobe", split=SPLIT, size=size, count=options.pairs)
        for processes in options.processes:
            rates = rounds(rows, processes, options.repeats)
            results.append({"size_px": size, "processes": processes, "pairs_per_second": rates})
    cells = [[str(r["size_px"]), str(r["processes"]), f"{median(r['pairs_per_second']):.0f}"] for r in results]
    title = f"medians of {options.repeats} rounds of {options.pairs} pairs"
    table = Table("speed", title, ["size in px", "processes", "pairs a second"], cells)
    publish([table], {"rounds": results}, arguments, SPLITS[SPLIT], options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
