"""Put a trained pipeline into the package in half precision, and its record beside it in the docs.

python examples/embed_mini.py --run runs/mini
"""

import argparse
import csv
import json
import os
import shutil
import sys
from pathlib import Path

import matplotlib
import torch

from backshan_diffusers import MINI, BackToFrontPipeline

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LIMIT = 40e6
"""Bytes that the embedded folder may have."""


def embed(run: Path, target: Path) -> int:
    """Write the last stage's pipeline to `target` in half precision; returns its size in bytes."""
    pipeline = BackToFrontPipeline.from_pretrained(run / "joint" / "pipeline")
    # The text encoder stays in float32: transformers loads weights in the type of their file, diffusers does not.
    for model in (pipeline.vae, pipeline.unet, pipeline.controlnet):
        model.to(torch.float16)
    pending = target.with_suffix(".tmp")
    shutil.rmtree(pending, ignore_errors=True)
    pipeline.save_pretrained(pending)
    size = sum(path.stat().st_size for path in pending.rglob("*") if path.is_file())
    if size > LIMIT:
        shutil.rmtree(pending)
        raise ValueError(f"the pipeline has {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}: train a smaller one.")
    shutil.rmtree(target, ignore_errors=True)
    pending.rename(target)
    return size


def record(run: Path, folder: Path) -> None:
    """Copy each stage's config, log and held-out L1, and draw the curves."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = [name for name in ("vae", "prior", "controlnet", "joint") if (run / name / "pipeline").exists()]
    figure, axes = plt.subplots(1, len(stages), figsize=(4 * len(stages), 3), layout="constrained", squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        for name, kept in (("metrics.jsonl", f"{stage}.jsonl"), ("training_config.yaml", f"{stage}.yaml")):
            shutil.copy(run / stage / name, folder / kept)
        lines = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
        axis.plot([line["step"] for line in lines], [line["loss"] for line in lines], lw=0.6, label="training loss")
        with open(run / stage / "validation.csv", newline="") as file:
            rows = [(int(step), float(value)) for step, value in csv.reader(file)]
        axis.plot(*zip(*rows, strict=True), "o-", label="held-out L1 in [0, 1]")
        axis.set(title=stage, xlabel="step", yscale="log")
        axis.legend(fontsize="small")
        shutil.copy(run / stage / "validation.csv", folder / f"{stage}-validation.csv")
    pending = folder / "curves.tmp.png"
    figure.savefig(pending, dpi=80)
    os.replace(pending, folder / "curves.png")


def main() -> int:
    """Embed, record, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="Output folder of the training run.")
    parser.add_argument("--target", type=Path, default=Path(MINI), help="Folder of the embedded pipeline.")
    parser.add_argument("--record", type=Path, default=Path("docs/mini"), help="Folder of logs and curves.")
    arguments = parser.parse_args()
    if not (arguments.run / "joint" / "pipeline").exists():
        parser.error(f"{arguments.run} holds no finished run: train one with examples/configs/mini.yaml first.")
    size = embed(arguments.run, arguments.target)
    record(arguments.run, arguments.record)
    print(f"{arguments.target}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
