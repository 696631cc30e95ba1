"""Peak memory of one training step by the pairs that are compared in it: as one batch, and as cached micro-batches.

python benchmarks/contrast_memory.py --json benchmarks/results/contrast_memory.json
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from report import Parser, Table, output_file, peak_memory_mib, positive, publish
from tqdm import tqdm

from backshan_diffusers import MINI, BackToFrontPipeline
from backshan_diffusers.objective import PRESETS
from backshan_diffusers.training.batches import StepSampler, noise_batch, timestep_batch
from backshan_diffusers.training.config import TrainingConfig
from backshan_diffusers.training.stages import ControlStage, noise_schedule
from backshan_diffusers.training.trainer import StageTrainer

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
    pipeline, objective = BackToFrontPipeline.from_pretrained(MINI, dtype=torch.float32), PRESETS[options.objective]
    side, latent = pipeline.controlnet.config.image_size, pipeline.unet.config.sample_size

    def make_batch(number: int, sampler: StepSampler) -> dict:
        generator = sampler.generator(number, "picture")
        latents = torch.randn(size, pipeline.unet.config.in_channels, latent, latent, generator=generator)
        batch = {
            "latents": latents,
            "prompts": torch.zeros(size, 77, pipeline.unet.config.cross_attention_dim),
            "back_control": torch.rand(size, 3, side, side, generator=generator),
            "front_control": torch.rand(size, 3, side, side, generator=generator),
            "groups": torch.arange(size) + number * size,
            "shown": torch.ones(size, dtype=torch.bool),
            "contrastive_weight": torch.tensor(objective.contrastive_weight),
            "timesteps": timestep_batch(size, 1000, generator),
        }
        return batch | noise_batch(objective, latents, generator)

    stage = ControlStage(
        pipeline.controlnet, pipeline.unet, noise_schedule(pipeline.scheduler), objective, train_unet="all"
    )
    folder = Path(tempfile.mkdtemp())
    parts = {"gradient_accumulation_steps": pairs // size, "cached_contrast": way == "cached"}
    config = TrainingConfig(output_dir=str(folder), batch_size=size, **parts)
    trainer = StageTrainer(Accelerator(), stage, make_batch, config, "joint", folder)
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
