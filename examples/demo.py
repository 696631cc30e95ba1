"""Front views of 8 drawn people whom the embedded model has never seen: writes demo.png.

The backs of the first 8 test pairs of `wardrobe` are written to a folder as pictures, `backshan generate` turns them
into fronts as it would anybody's pictures, and the sheet shows back, generated front and true front of each.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from PIL import Image

from backshan_diffusers.data import load_pairs
from backshan_diffusers.pictures import save_picture
from backshan_diffusers.sheets import picture_sheet

PEOPLE = 8
PEOPLE_IN_A_ROW = 2
SIDE = 128  # px, the native size of the embedded model
CELL_SIDE = 192  # px on the sheet


def main() -> int:
    """Draw, generate and show; return the exit code of `backshan generate`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="as in backshan generate (default: %(default)s)")
    parser.add_argument("--out", default="demo.png", help="the sheet (default: %(default)s)")
    parser.add_argument("--folder", default="demo", help="where backs and fronts are kept (default: %(default)s)")
    options = parser.parse_args()

    pairs = load_pairs("wardrobe", split="test", size=SIDE, count=PEOPLE)
    backs, fronts = Path(options.folder, "backs"), Path(options.folder, "fronts")
    backs.mkdir(parents=True, exist_ok=True)
    names = [f"person_{number}" for number in range(1, PEOPLE + 1)]
    for name, pair in zip(names, pairs, strict=True):
        save_picture(pair["back"], backs / f"{name}.png")

    command = [sys.executable, "-m", "backshan_diffusers", "generate", str(backs), "--out", str(fronts)]
    code = subprocess.run([*command, "--model", options.model], check=False).returncode
    if code:
        return code

    cells = []
    for name, pair in zip(names, pairs, strict=True):
        cells += [pair["back"], Image.open(fronts / f"{name}_front.png"), pair["front"]]
    columns = 3 * PEOPLE_IN_A_ROW
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    titles = ["back", "generated", "true front"] * PEOPLE_IN_A_ROW
    save_picture(picture_sheet(rows, titles, cell_side=CELL_SIDE), options.out)
    print(f"the sheet was written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
