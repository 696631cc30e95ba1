"""The method's two stages as shipped, at the size of Stable Diffusion 1.5: some steps here, and all of them on paper.

python benchmarks/full_size.py --json benchmarks/results/full_size.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from random_sd15 import random_sd15
from report import ROOT, Parser, Table, output_file, peak_memory_mib, positive, publish

from backshan_diffusers.training.config import TrainingConfig
from backshan_diffusers.training.estimate import rehearse
from backshan_diffusers.training.options import load_config

STAGES = {"sd15-stage1": "controlnet", "sd15-stage2": "joint"}
"""The config of each of the method's stages, and the stage of a run that it holds."""

GPUS = {"A100": 312e12, "H100 SXM": 989e12}
"""Dense bfloat16 operations a second, as NVIDIA's data sheets give them."""

UTILISATION = 0.4
"""Share of these that a training step is taken to reach: an assumption, not a measurement."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = Parser(prog="full_size.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=positive, default=3, help="of each stage (default: %(default)s)")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=2,
        help="pairs in a step here, which are compared (default: %(default)s)",
    )
    parser.add_argument("--base", type=Path, help="folder in the public base model's layout (default: random weights)")
    parser.add_argument("--controlnet", type=Path, help="folder of the ControlNet that belongs to --base")
    parser.add_argument("--json", type=output_file, help="write the results here")
    options = parser.parse_args(arguments)
    if (options.base is None) != (options.controlnet is None):
        parser.error("--base and --controlnet belong together: give both or neither.")
    return options


def main(arguments: Sequence[str]) -> None:
    """Train, count, print, write what was asked for."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="full-size-") as folder:
        base, controlnet = options.base, options.controlnet
        if base is None:
            base, controlnet = write_random(Path(folder))
        stages, begin = {}, {"base_model": str(base), "controlnet": str(controlnet)}
        for name, stage in STAGES.items():
            config = load_config(ROOT / f"examples/configs/{name}.yaml", output_dir=str(Path(folder, name)), **begin)
            stages[name] = train(name, config, begin, options) | on_paper(config)
            begin = {"base_model": str(Path(folder, name, stage, "pipeline"))}
    results = {"steps": options.steps, "threads": torch.get_num_threads(), "stages": stages}
    publish([table_here(results), table_on_paper(results)], results, arguments, 0, options.json)


def write_random(folder: Path) -> tuple[Path, Path]:
    """A base and a Canny ControlNet with random weights, in the layout in which both are published."""
    pipeline = random_sd15(512)
    parts = {name: part for name, part in pipeline.components.items() if name not in ("controlnet", "image_encoder")}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder / "base")
    ControlNetModel.from_unet(pipeline.unet).save_pretrained(folder / "controlnet")
    return folder / "base", folder / "controlnet"


def train(name: str, config: TrainingConfig, begin: dict[str, str], options: argparse.Namespace) -> dict:
    """Run a shipped config for some steps, through the script that a user starts.

    Returns:
        `pairs_per_second`, the median over the steps after the first, and `peak_memory_mib` of the process.

    Raises:
        subprocess.CalledProcessError: if training fails. What it prints goes to standard error.
    """
    stage = STAGES[name]
    short = {"train_pairs": 4 * options.batch_size, "validation_pairs": 1, "output_dir": config.output_dir}
    short |= {f"stages.{stage}.max_steps": options.steps, "batch_size": options.batch_size, "log_every": 1}
    short |= {"checkpoint_every": options.steps, "validate_every": options.steps, **begin}
    command = [sys.executable, str(ROOT / "examples/train_backshan.py")]
    command += ["--config", str(ROOT / f"examples/configs/{name}.yaml")]
    command += [word for option, value in short.items() for word in (f"--{option}", str(value))]
    # 2: standard output holds the tables alone
    process = subprocess.Popen(command, stdout=2, env={**os.environ, "ACCELERATE_MIXED_PRECISION": "bf16"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # so that it is not waited for again
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    log = Path(config.output_dir, stage, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(line)["images_per_second"] for line in log]
    return {"pairs_per_second": statistics.median(rates[1:] or rates), "peak_memory_mib": peak_memory_mib(usage)}


def on_paper(config: TrainingConfig) -> dict:
    """Operations of a step of the shipped config and hours of its steps on each GPU, with the assumed utilisation."""
    (needs,) = rehearse(config).stages
    stage = config.stage(needs.name)
    operations = needs.step_flops * stage.max_steps
    hours = {gpu: operations / (speed * UTILISATION) / 3600 for gpu, speed in GPUS.items()}
    return {
        "max_steps": stage.max_steps,
        "batch_size": stage.batch_size,
        "step_flops": needs.step_flops,
        "memory_mib": needs.total_bytes / 2**20,
        "hours": hours,
    }


def table_here(results: dict) -> Table:
    """What was measured."""
    return Table(
        "full_size_here",
        f"{results['steps']} steps of each shipped config on this processor, {results['threads']} threads, bf16",
        ["config", "pairs a second", "peak memory in MiB"],
        [
            [name, f"{stage['pairs_per_second']:.3f}", f"{stage['peak_memory_mib']:.0f}"]
            for name, stage in results["stages"].items()
        ],
    )


def table_on_paper(results: dict) -> Table:
    """What follows by counting."""
    return Table(
        "full_size_on_paper",
        f"all steps of each shipped config on one GPU, on paper: {UTILISATION:.0%} of its bfloat16 peak",
        [
            "config",
            "steps",
            "pairs in a step",
            "TFLOP in a step",
            "memory without activations in MiB",
            *(f"hours of one {gpu}" for gpu in GPUS),
        ],
        [
            [
                name,
                str(stage["max_steps"]),
                str(stage["batch_size"]),
                f"{stage['step_flops'] / 1e12:.1f}",
                f"{stage['memory_mib']:.0f}",
                *(f"{stage['hours'][gpu]:.1f}" for gpu in GPUS),
            ]
            for name, stage in results["stages"].items()
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
