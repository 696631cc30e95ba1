"""`make demo`: the script that it runs, with a tiny model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from backshan_diffusers.data import load_pairs

SCRIPT = Path(__file__).parents[1] / "examples" / "demo.py"
CELL, GAP, COLUMNS = 192, 4, 6


def run_demo(folder: Path, model: Path | str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--model", str(model)], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_demo_shows_test_people_beside_their_fronts(tiny_folder, tmp_path):
    done = run_demo(tmp_path, tiny_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the sheet was written to demo.png"
    expected = []
    for number, row in enumerate(load_pairs("wardrobe", split="test", size=128, count=8), start=1):
        with Image.open(tmp_path / f"demo/fronts/person_{number}_front.png") as front:
            expected += [row["back"], front.convert("RGB"), row["front"]]
    with Image.open(tmp_path / "demo.png") as sheet:
        top = sheet.height - len(expected) // COLUMNS * (CELL + GAP)
        for place, picture in enumerate(expected):
            left, upper = GAP + place % COLUMNS * (CELL + GAP), top + place // COLUMNS * (CELL + GAP)
            shown = sheet.crop((left, upper, left + CELL, upper + CELL))
            assert np.array_equal(np.asarray(shown), np.asarray(ImageOps.contain(picture, (CELL, CELL)))), place


def test_a_demo_without_its_model_ends_as_the_command_does(tmp_path):
    done = run_demo(tmp_path, "./nowhere")
    assert done.returncode == 2 and "the model folder ./nowhere does not exist" in done.stderr
    assert not (tmp_path / "demo.png").exists()
