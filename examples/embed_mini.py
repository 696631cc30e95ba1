"""Put a trained pipeline into the package in half precision, and its record beside it in the docs.

python examples/embed_mini.py --run runs/mini
"""

import argparse
import sys
from pathlib import Path

from backshan_diffusers import MINI
from backshan_diffusers.training.embedding import embed, record


def main() -> int:
    """Embed, record, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="Output folder of the training run.")
    parser.add_argument("--target", type=Path, default=Path(MINI), help="Folder of the embedded pipeline.")
    parser.add_argument("--record", type=Path, default=Path("docs/mini"), help="Folder of logs and curves.")
    parser.add_argument("--steps", type=int, help="Denoising steps of a call that names none. Default: as trained.")
    parser.add_argument("--fresh-noise", action="store_true", help="Sample with fresh noise in each step.")
    parser.add_argument(
        "--average-with", type=Path, help="Pipeline of an earlier run, with whose weights the run's are averaged."
    )
    arguments = parser.parse_args()
    try:
        size = embed(arguments.run, arguments.target, arguments.steps, arguments.fresh_noise, arguments.average_with)
    except ValueError as error:
        parser.error(str(error))
    record(arguments.run, arguments.record)
    print(f"{arguments.target}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
