"""Two real processes on gloo, and what their runs are compared by."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

UNLIKE = (
    "stage",
    "doubt",
    "images_per_second",
    "peak_memory_mib",
    "grad_norm_mse",
    "grad_norm_contrast",
    "grad_norm_ratio",
)
"""What is no number, what no two runs have in common, and what is not probed of cut-up models."""


def launch(*command: str | Path, **environment: str) -> str:
    """What a script prints that two processes run, each on one thread of the processor.

    Args:
        command: the script and its arguments.
        environment: further variables.
    """
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, *map(str, command)], capture_output=True, text=True, env=os.environ | environment, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def turn_back(run: Path) -> None:
    """Put two copies of a finished run beside it, `NAME resumed` and `NAME resumed otherwise`, that have yet to take
    the last two of the joint stage's four steps."""
    resumed = shutil.copytree(run, run.with_name(f"{run.name} resumed"))
    shutil.rmtree(resumed / "joint" / "pipeline")
    shutil.rmtree(resumed / "joint" / "checkpoint-4")
    shutil.copytree(resumed, run.with_name(f"{run.name} resumed otherwise"))


def log(stage: Path) -> list[dict]:
    """The lines of a stage's log, without what is `UNLIKE`."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in UNLIKE} for line in lines]


def files(stage: Path) -> list[Path]:
    """The weights and configs of a stage."""
    return sorted(path.relative_to(stage) for path in stage.rglob("*") if path.suffix in (".safetensors", ".json"))


def assert_close(stage: Path, other: Path) -> None:
    """Equal but for the order in which sums are taken: losses, norms, weights, moments, averages."""
    assert len(log(stage)) == len(log(other))
    for ours, theirs in zip(log(stage), log(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=2e-6)
    assert files(stage) == files(other)
    for path in files(stage):
        if path.suffix == ".safetensors":
            torch.testing.assert_close(load_file(stage / path), load_file(other / path), rtol=1e-3, atol=1e-5)


def assert_bit_identical(resumed: Path, whole: Path) -> None:
    """Of stages of four steps: all that can be told of them is the same."""
    assert log(resumed) == log(whole) and len(log(whole)) == 4
    assert files(resumed) == files(whole)
    for path in files(whole):
        if path.suffix == ".safetensors" or path.name == "values.json":
            assert (resumed / path).read_bytes() == (whole / path).read_bytes(), path
