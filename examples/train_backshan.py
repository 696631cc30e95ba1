"""Train a back-to-front model: `accelerate launch examples/train_backshan.py --config FILE --output_dir DIR`.

Any field of the config that is one text, number or switch may follow as `--field value`. To resume, run the same
command again.
"""

import argparse
import sys
from dataclasses import asdict, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from accelerate import PartialState

from backshan_diffusers.training.config import ConfigError, TrainingConfig, load_config
from backshan_diffusers.training.files import DiskFullError
from backshan_diffusers.training.run import TrainingRun


def build_parser() -> argparse.ArgumentParser:
    """`--config`, `--dry_run`, and every field of the config that is one text, number or switch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file with fields of the config.")
    parser.add_argument("--dry_run", action="store_true", help="Print the config and the models' sizes, and stop.")
    hints = get_type_hints(TrainingConfig)
    for entry in fields(TrainingConfig):
        if (reader := _READERS.get(_without_none(hints[entry.name]))) is not None:
            parser.add_argument(f"--{entry.name}", type=reader, help=entry.metadata["help"])
    return parser


def parse_arguments(arguments: list[str] | None = None) -> tuple[TrainingConfig, bool]:
    """The resolved config, and whether only to show it."""
    values = vars(build_parser().parse_args(arguments))
    config_file, dry_run = values.pop("config"), values.pop("dry_run")
    return load_config(config_file, **{key: value for key, value in values.items() if value is not None}), dry_run


def _without_none(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is UnionType else hint


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: give true or false.")
    return text.lower() == "true"


_READERS = {str: str, int: int, float: float, bool: _switch}


def show(config: TrainingConfig) -> None:
    """Print the resolved config and the number of weights of every model."""
    pipeline = TrainingRun(config).start(None)
    print(yaml.safe_dump(asdict(config) | {"model": str(config.model)}, sort_keys=False))
    for name in ("vae", "unet", "controlnet", "text_encoder"):
        weights = sum(parameter.numel() for parameter in getattr(pipeline, name).parameters())
        print(f"{name:13} {weights / 1e6:8.2f} M weights")


def main() -> int:
    """Train, or show what would be trained."""
    try:
        config, dry_run = parse_arguments()
        if dry_run:
            show(config)
            return 0
        finished = TrainingRun(config).run()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (FloatingPointError, DiskFullError) as error:
        print(error, file=sys.stderr)
        return 1
    PartialState().print(f"The finished pipeline is in {finished}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
