"""Seconds for one generated front on this machine's CPU, by denoising steps and batch size, and the memory it takes.

python benchmarks/generate_speed.py --json benchmarks/results/generate_speed.json
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from report import Parser, Table, open_pipeline, output_file, peak_memory_mib, positive, publish

from backshan_diffusers import MINI, BackToFrontPipeline
from backshan_diffusers.data import load_pairs


def parse(arguments: Sequence[str]) -> tuple[Parser, argparse.Namespace]:
    """The parser, for later refusals, and the options."""
    parser = Parser(prog="generate_speed.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=MINI, help="folder or Hub id of a pipeline (default: the embedded one)")
    parser.add_argument("--steps", type=positive, nargs="+", default=[2, 10, 20], help="(default: %(default)s)")
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[1, 4], help="(default: %(default)s)")
    parser.add_argument("--repeats", type=positive, default=5, help="calls for each median (default: %(default)s)")
    parser.add_argument("--json", type=output_file, help="write the results here")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    parser, options = parse(arguments)
    before_loading = peak_memory_mib(resource.getrusage(resource.RUSAGE_SELF))
    begin = time.perf_counter()
    pipeline, _ = open_pipeline(parser, options.model)
    loading_s = time.perf_counter() - begin
    side = pipeline.controlnet.config.image_size
    rows = load_pairs("wardrobe", split="test", size=side, count=max(options.batch_sizes))
    backs = [row["back"] for row in rows]

    timings = []
    for steps in options.steps:
        for batch_size in options.batch_sizes:
            seconds = time_calls(pipeline, backs[:batch_size], steps, options.repeats)
            timings.append({"steps": steps, "batch_size": batch_size, **per_image(seconds, batch_size)})
    results = {
        "size_px": side,
        "repeats": options.repeats,
        "threads": torch.get_num_threads(),
        "loading_s": loading_s,
        "peak_memory_before_loading_mib": before_loading,
        "peak_memory_mib": peak_memory_mib(resource.getrusage(resource.RUSAGE_SELF)),
        "timings": timings,
    }
    publish([table(results)], results, arguments, None, options.json)


def time_calls(pipeline: BackToFrontPipeline, backs: list, steps: int, repeats: int) -> list[float]:
    """Wall time of each of `repeats` calls, in s, after one that is not counted."""
    seconds = []
    for repeat in range(repeats + 1):
        noise = [torch.Generator().manual_seed(repeat) for _ in backs]
        begin = time.perf_counter()
        pipeline(backs, generator=noise, num_inference_steps=steps)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def per_image(seconds: list[float], batch_size: int) -> dict[str, float]:
    """Median, fastest and slowest call, in s for each image."""
    values = {"median_s": statistics.median(seconds), "fastest_s": min(seconds), "slowest_s": max(seconds)}
    return {name: value / batch_size for name, value in values.items()}


def table(results: dict) -> Table:
    """What is printed and goes into the docs."""
    first = results["timings"][0]["median_s"]
    return Table(
        "seconds",
        f"seconds for one image of {results['size_px']} px, {results['threads']} threads, {results['repeats']} calls;"
        f" loading {results['loading_s']:.1f} s; peak memory {results['peak_memory_mib']:.0f} MiB,"
        f" of which {results['peak_memory_before_loading_mib']:.0f} MiB before loading",
        ["steps", "batch", "median", "fastest", "slowest", "median / first"],
        [
            [
                str(timing["steps"]),
                str(timing["batch_size"]),
                *(f"{timing[name]:.3f}" for name in ("median_s", "fastest_s", "slowest_s")),
                f"{timing['median_s'] / first:.2f}",
            ]
            for timing in results["timings"]
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
