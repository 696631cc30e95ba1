"""How near generated fronts come to the true ones, beside three baselines, on `wardrobe` pairs.

python benchmarks/mini_quality.py --json benchmarks/results/mini_quality.json
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image
from report import ROOT, Parser, Table, cores, open_pipeline, output_file, parser_of_fronts, positive, publish

from backshan_diffusers import MINI
from backshan_diffusers.data import load_pairs
from backshan_diffusers.data.wardrobe import HAIR_SIDE, OUTFIT_SIDES, Wardrobe
from backshan_diffusers.data.wardrobe.tops import CLOSURES, COLLARS
from backshan_diffusers.evaluation import (
    METRICS,
    GeneratedFront,
    MirroredBack,
    NearestTrainingFront,
    measure,
    summarise,
    summarise_presences,
    summarise_sides,
)
from backshan_diffusers.files import write_text
from backshan_diffusers.model_record import record_of
from backshan_diffusers.pictures import save_picture
from backshan_diffusers.sheets import picture_sheet
from backshan_diffusers.training.captions import caption, read_rule
from backshan_diffusers.training.options import load_config

GENERATED, MIRRORED, TOLD = "generated", "mirrored back", "generated, told by captions"
SHEET_ITEMS, SHEET_COLUMNS = 32, 4
RECIPE = ROOT / "examples" / "configs" / "mini-crisp.yaml"
"""The config of the last part of `mini`'s training, which knew all the pairs of the others too."""
SMALLEST_SUBSET = 15
"""Subsets with fewer items are left out of the table: their intervals say nothing."""

SUBSETS: dict[str, Callable[[dict], bool]] = {
    "top is plain": lambda of: of["top_pattern"] == "plain",
    "top is patterned": lambda of: of["top_pattern"] != "plain",
    "dress": lambda of: of["bottom"] == "none",
    "top worn open": lambda of: of["open"],
    "top closed, with a bottom": lambda of: not of["open"] and of["bottom"] != "none",
    "print on the back": lambda of: of["back_print"] != "none",
    "print on the chest": lambda of: of["chest_print"] != "none",
    "plain backdrop": lambda of: of["backdrop"] == "plain",
    "gradient backdrop": lambda of: of["backdrop"] == "gradient",
    "cluttered backdrop": lambda of: of["backdrop"] == "cluttered",
}

FRONT_THINGS = {
    **{name: [name] for name in CLOSURES},
    "closures, all": list(CLOSURES),
    **{f"{name}, collar": [name] for name in COLLARS},
    "collars, all": list(COLLARS),
    "pockets": ["pockets"],
    "face": ["face"],
}
"""Rows of the table of things that only the front shows, and what each of them counts."""


def parse(arguments: Sequence[str]) -> tuple[Parser, argparse.Namespace]:
    """The parser, for later refusals, and the options."""
    parser = parser_of_fronts("mini_quality.py", __doc__.partition("\n")[0], count=500)
    parser.add_argument(
        "--train-count",
        type=positive,
        default=load_config(RECIPE, output_dir="unused").train_pairs,
        help="training pairs that the nearest is sought among (default: %(default)s, all that mini was trained on)",
    )
    parser.add_argument("--steps", type=positive, help="denoising steps (default: what the model records)")
    parser.add_argument("--items", type=output_file, help="write every item's values here, one line of JSON each")
    parser.add_argument("--sheet", type=output_file, help=f"write a PNG of {SHEET_ITEMS} evenly spaced results here")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    parser, options = parse(arguments)
    pipeline, folder = open_pipeline(parser, options.model)
    try:
        size = pipeline.controlnet.config.image_size
        rows = load_pairs("wardrobe", split=options.split, size=size, count=options.count)
        training_rows = load_pairs("wardrobe", split="train", size=size, count=options.train_count)
        rules = [*map(read_rule, record_of(folder).get("captions", ()))]
    except ValueError as error:
        parser.error(str(error))

    systems = {
        GENERATED: GeneratedFront(pipeline, options.seed, options.steps),
        MIRRORED: MirroredBack(),
        "nearest training front": NearestTrainingFront(training_rows, cores()),
        "blank back": GeneratedFront(pipeline, options.seed, options.steps, blank=True),
    }
    if rules:
        prompt = pipeline.controlnet.config.default_prompt
        systems[TOLD] = GeneratedFront(
            pipeline,
            options.seed,
            options.steps,
            prompt_of=lambda row: caption(prompt, rules, row["attributes"]),
        )
    records, triples = [], []
    shown = set(np.linspace(0, len(rows) - 1, min(SHEET_ITEMS, len(rows))).round().astype(int).tolist())
    drawn = Wardrobe(options.split, size)
    altered = drawn.other_side_fronts, drawn.fronts_without
    for row, fronts, record in measure(rows, systems, options.batch_size, *altered):
        if len(records) in shown:
            triples.append([row["back"], PIL.Image.fromarray(fronts[GENERATED]), row["front"]])
        records.append(record)

    if options.items:
        write_text(options.items, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))
    if options.sheet:
        save_picture(sheet(triples), options.sheet)
    results = {
        **identity(options.model, folder),
        "size_px": size,
        "steps": options.steps or pipeline.controlnet.config.default_num_inference_steps,
        "guidance_scale": pipeline.controlnet.config.default_guidance_scale,
        **{name: getattr(options, name) for name in ("split", "count", "train_count", "batch_size")},
        **summarise(records, GENERATED, options.seed),
        "subsets": subsets(records, options.seed),
        "sides": sides(records),
        "presences": presences(records, options.seed),
    }
    publish(tables(results), results, arguments, options.seed, options.json)


def subsets(records: list[dict], seed: int) -> dict:
    """The summary of every subset that is large enough."""
    chosen = {name: [each for each in records if holds(each["attributes"])] for name, holds in SUBSETS.items()}
    return {
        name: summarise(members, GENERATED, seed)
        for name, members in chosen.items()
        if len(members) >= SMALLEST_SUBSET
    }


def sides(records: list[dict]) -> dict:
    """Shares on the correct side, for each one-sided thing and for those of the outfit together."""
    things = {name: [name] for name in [*OUTFIT_SIDES, HAIR_SIDE]} | {"outfit, all": list(OUTFIT_SIDES)}
    shares = {name: summarise_sides(records, members) for name, members in things.items()}
    return {name: share for name, share in shares.items() if share is not None}


def presences(records: list[dict], seed: int) -> dict:
    """How strongly each kind of thing that only the front shows is there."""
    strengths = {name: summarise_presences(records, members, seed) for name, members in FRONT_THINGS.items()}
    return {name: strength for name, strength in strengths.items() if strength is not None}


def tables(results: dict) -> list[Table]:
    """What is printed and goes into the docs."""
    labels = [f"{metric.label} {'↓' if metric.lower_is_better else '↑'}" for metric in METRICS.values()]
    made = [
        Table(
            "systems",
            f"{results['count']} {results['split']} pairs, {results['size_px']} px, {results['steps']} steps:"
            " mean [95 % interval]",
            ["system", *labels],
            [[name, *(cell(key, of[key]) for key in METRICS)] for name, of in results["systems"].items()],
        ),
        Table(
            "differences",
            "generated minus each other system [95 % interval], and the share of items in which generated is better",
            ["generated against", *labels],
            [
                [name, *(difference_cell(key, of[key], True) for key in METRICS)]
                for name, of in results["differences"].items()
            ],
        ),
    ]
    if results["subsets"]:
        keys = ("person_l1", "garment_colour_difference")
        made.append(
            Table(
                "subsets",
                "by what is worn: generated, and generated minus mirrored back [95 % interval]",
                ["subset", "items", *beside_mirrored_columns(keys)],
                [
                    [name, str(of["systems"][GENERATED][keys[0]]["items"]), *beside_mirrored(of, keys)]
                    for name, of in results["subsets"].items()
                ],
            )
        )
    share = "one-sided things that come out on the correct side: share [95 % interval]"
    strength = "how strongly what only the front shows is there: 0 not at all, 1 as in the true front [95 % interval]"
    for name, title, cell_of in (("sides", share, percent_cell), ("presences", strength, strength_cell)):
        if results[name]:
            made.append(table_of_things(name, title, results, cell_of))
    return made


def table_of_things(name: str, title: str, results: dict, cell_of: Callable[[dict], str]) -> Table:
    """A row for each thing, a column for each system."""
    return Table(
        name,
        title,
        ["thing", "seen", *results["systems"]],
        [
            [thing, str(next(iter(of.values()))["items"]), *map(cell_of, of.values())]
            for thing, of in results[name].items()
        ],
    )


def beside_mirrored_columns(keys: Sequence[str]) -> list[str]:
    """The headings over the cells of [`beside_mirrored`]."""
    return [text for key in keys for text in (f"{METRICS[key].label}, generated", "minus mirrored back")]


def beside_mirrored(of: dict, keys: Sequence[str]) -> list[str]:
    """For each metric ours, and the difference to the mirrored back."""
    ours, difference = of["systems"][GENERATED], of["differences"][MIRRORED]
    return [text for key in keys for text in (cell(key, ours[key]), difference_cell(key, difference[key], False))]


def cell(key: str, interval: dict, sign: str = "") -> str:
    """`0.1234 [0.1200, 0.1270]` with the metric's decimals."""
    mean, low, high = (f"{interval[name]:{sign}.{METRICS[key].digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def difference_cell(key: str, interval: dict, with_win_rate: bool) -> str:
    """The difference, the share of items won, and a verdict where the interval excludes zero."""
    sign = METRICS[key].sign
    best, worst = sorted((sign * interval["low"], sign * interval["high"]), reverse=True)
    verdict = "better" if worst > 0 else "worse" if best < 0 else "undecided"
    share = f", {interval['win_rate']['mean']:.0%}" if with_win_rate else ""
    return f"{cell(key, interval, '+')} {verdict}{share}"


def percent_cell(interval: dict) -> str:
    """`93 % [90, 95]`."""
    mean, low, high = (f"{100 * interval[name]:.0f}" for name in ("mean", "low", "high"))
    return f"{mean} % [{low}, {high}]"


def strength_cell(interval: dict) -> str:
    """`0.62 [0.58, 0.66]`."""
    mean, low, high = (f"{interval[name]:.2f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def sheet(triples: list[list[PIL.Image.Image]]) -> PIL.Image.Image:
    """Back, generated and true front of each item, several items side by side."""
    items_across = min(SHEET_COLUMNS, len(triples))
    starts = range(0, len(triples), items_across)
    rows = [list(chain(*triples[start : start + items_across])) for start in starts]
    return picture_sheet(rows, titles=["back", "generated", "true front"] * items_across)


def identity(model: str, folder: Path) -> dict[str, str]:
    """Which model was measured: its name, without folders above it, and the weights in its folder."""
    return {"model": "mini" if model == MINI else Path(model).name, "weights_sha256": fingerprint(folder)}


def fingerprint(folder: Path) -> str:
    """SHA-256 over a folder's safetensors files in the order of their names, those of adapters beside the components
    last."""
    digest = hashlib.sha256()
    for file in [*sorted(folder.glob("*/*.safetensors")), *sorted(folder.glob("*.safetensors"))]:
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
