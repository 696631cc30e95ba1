"""How near generated fronts come to the true ones where people stand otherwise in the picture than in `mini`'s pairs.

python benchmarks/framing.py --json benchmarks/results/framing.json
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from mini_quality import GENERATED, MIRRORED, beside_mirrored, beside_mirrored_columns, identity
from report import Parser, Table, open_pipeline, output_file, parser_of_fronts, publish

from backshan_diffusers.data.wardrobe import Wardrobe
from backshan_diffusers.evaluation import GeneratedFront, MirroredBack, measure, summarise
from backshan_diffusers.pictures import save_picture
from backshan_diffusers.sheets import picture_sheet

SHOWN = 4
"""Items of each framing on the sheet: the first ones."""

KEYS = ("person_l1", "head_l1")


@dataclass(frozen=True)
class Framing:
    """How people stand in their pictures.

    Args:
        scale: of the person; at 1 it is as high as `wardrobe` draws it, about nine tenths of the picture.
        right, down: where its middle lies in the back view, off the picture's, as shares of the side.
    """

    scale: float = 1.0
    right: float = 0.0
    down: float = 0.0


FRAMINGS = {
    "as wardrobe draws it": Framing(),
    "85 % as high": Framing(0.85),
    "70 % as high": Framing(0.7),
    "50 % as high": Framing(0.5),
    "120 %, cut off": Framing(1.2),
    "85 %, a tenth aside": Framing(0.85, right=0.1),
    "85 %, a tenth lower": Framing(0.85, down=0.1),
}


@dataclass(frozen=True)
class Reframed(Wardrobe):
    """People in another framing: pictures shrunk or enlarged and shifted. What comes in continues the border."""

    framing: Framing

    def row(self, index: int) -> dict:
        """One pair, its masks likewise."""
        return {
            name: self._reframed(value, name.startswith("back")) if isinstance(value, PIL.Image.Image) else value
            for name, value in super().row(index).items()
        }

    def _reframed(self, picture: PIL.Image.Image, of_back: bool) -> PIL.Image.Image:
        window, right = self.size / self.framing.scale, self.framing.right if of_back else -self.framing.right
        corner = [self.size * (1.5 - shift / self.framing.scale) - window / 2 for shift in (right, self.framing.down)]
        around = [(self.size, self.size)] * 2 + [(0, 0)] * (len(picture.getbands()) > 1)
        padded = PIL.Image.fromarray(np.pad(np.asarray(picture), around, mode="edge"))
        box = (*corner, corner[0] + window, corner[1] + window)
        return padded.resize((self.size, self.size), PIL.Image.Resampling.LANCZOS, box=box)


def parse(arguments: Sequence[str]) -> tuple[Parser, argparse.Namespace]:
    """The parser, for later refusals, and the options."""
    parser = parser_of_fronts("framing.py", __doc__.partition("\n")[0], count=200)
    parser.add_argument("--sheet", type=output_file, help=f"write a PNG of {SHOWN} people in each framing here")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    parser, options = parse(arguments)
    pipeline, folder = open_pipeline(parser, options.model)
    size = pipeline.controlnet.config.image_size

    systems = {GENERATED: GeneratedFront(pipeline, options.seed), MIRRORED: MirroredBack()}
    measured, shown = {}, []
    for name, framing in FRAMINGS.items():
        wardrobe = Reframed(options.split, size, framing)
        rows = [wardrobe.row(index) for index in range(options.count)]
        records, triples = [], []
        for row, fronts, record in measure(rows, systems, options.batch_size):
            records.append(record)
            triples.append([row["back"], PIL.Image.fromarray(fronts[GENERATED]), row["front"]])
        measured[name] = summarise(records, GENERATED, options.seed)
        shown.append([picture for triple in triples[:SHOWN] for picture in triple])

    if options.sheet:
        titles = ["back", "generated", "true front"] * min(SHOWN, options.count)
        save_picture(picture_sheet(shown, titles=titles, captions=list(FRAMINGS)), options.sheet)
    results = {
        **identity(options.model, folder),
        "size_px": size,
        "steps": pipeline.controlnet.config.default_num_inference_steps,
        **{name: getattr(options, name) for name in ("split", "count", "batch_size")},
        "framings": measured,
    }
    publish([table(results)], results, arguments, options.seed, options.json)


def table(results: dict) -> Table:
    """What is printed and goes into the docs."""
    title = (
        f"{results['count']} {results['split']} people in each framing, {results['size_px']} px,"
        f" {results['steps']} steps: mean [95 % interval]"
    )
    rows = [[name, *beside_mirrored(of, KEYS)] for name, of in results["framings"].items()]
    return Table("framings", title, ["person", *beside_mirrored_columns(KEYS)], rows)


if __name__ == "__main__":
    main(sys.argv[1:])
