"""Peak memory of one training step by the pairs that are compared in it: as one batch, and as cached micro-batches.

python benchmarks/contrast_memory.py --json benchmarks/results/contrast_memory.json
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from report import Parser, Table, output_file, peak_memory_mib, positive, publish
from tqdm import tqdm
from training_step import random_trainer

from backshan_diffusers import MINI, BackToFrontPipeline
from backshan_diffusers.objective import PRESETS

WAYS = ("one batch", "cached")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = Parser(prog="contrast_memory.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=positive, nargs="+", default=[16, 64, 256], help="(default: %(default)s)")
    parser.add_argument("--micro-batch", type=positive, default=16, help="where cached (default: %(default)s)")
    parser.add_argument(
        "--objective", choices=("paper", "backshan"), default="backshan", help="(default: %(default)s)"
    )
    parser.add_argument("--json", type=output_file, help="write the results here")
    parser.add_argument("--only", nargs=2, metavar=("WAY", "PAIRS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if bad := [pairs for pairs in options.pairs if pairs % options.micro_batch]:
        parser.error(f"--pairs {bad[0]} is no multiple of --micro-batch {options.micro_batch}: give one.")
    return options


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    options = parse(arguments)
    if options.only:
        print(json.dumps(one_step(options.only[0], int(options.only[1]), options)))
        return
    cells = [(pairs, way) for pairs in options.pairs for way in WAYS]
    measured = [
        {"pairs": pairs, "way": way, **in_a_process_of_its_own(pairs, way, options)} for pairs, way in tqdm(cells)
    ]
    results = {"objective": options.objective, "micro_batch": options.micro_batch, "steps": measured}
    publish([table(results)], results, arguments, 0, options.json)


def in_a_process_of_its_own(pairs: int, way: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak memory and seconds of one step, of which the process does nothing else."""
    command = [sys.executable, __file__, "--only", way, str(pairs), "--objective", options.objective]
    command += ["--micro-batch", str(options.micro_batch)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def one_step(way: str, pairs: int, options: argparse.Namespace) -> dict[str, float]:
    """One step of the `joint` stage of the embedded model with `pairs` pairs that are all compared."""
    size = pairs if way == "one batch" else options.micro_batch
    pipeline = BackToFrontPipeline.from_pretrained(MINI, dtype=torch.float32)
    parts = {"gradient_accumulation_steps": pairs // size, "cached_contrast": way == "cached"}
    trainer = random_trainer(pipeline, PRESETS[options.objective], "all", "no", batch_size=size, **parts)
    before = peak_memory_mib(resource.getrusage(resource.RUSAGE_SELF))
    begin = time.perf_counter()
    trainer.advance()
    seconds = time.perf_counter() - begin
    after = peak_memory_mib(resource.getrusage(resource.RUSAGE_SELF))
    return {"before_mib": before, "peak_mib": after, "seconds": seconds}


def table(results: dict) -> Table:
    """What is printed and goes into the docs."""
    return Table(
        "memory",
        f"one step of the embedded model, objective {results['objective']}, cached in micro-batches of"
        f" {results['micro_batch']}: peak memory of the process",
        ["pairs compared", "way", "peak in MiB", "of which before the step", "seconds for a pair"],
        [
            [
                str(each["pairs"]),
                each["way"],
                f"{each['peak_mib']:.0f}",
                f"{each['before_mib']:.0f}",
                f"{each['seconds'] / each['pairs']:.3f}",
            ]
            for each in results["steps"]
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
