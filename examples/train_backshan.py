"""Train a back-to-front model: `accelerate launch examples/train_backshan.py --config FILE --output_dir DIR`.

Any field of the config may follow as `--field value`. To resume, run the same command again.
"""

import argparse
import sys
from dataclasses import asdict, fields
from typing import get_type_hints

import yaml
from accelerate import PartialState

from backshan_diffusers.training.config import TrainingConfig, load_config
from backshan_diffusers.training.run import TrainingRun


def parse_arguments(arguments: list[str] | None = None) -> tuple[TrainingConfig, bool]:
    """The resolved config, and whether only to show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file with fields of the config.")
    parser.add_argument("--dry_run", action="store_true", help="Print the config and the models' sizes, and stop.")
    hints = get_type_hints(TrainingConfig)
    for entry in fields(TrainingConfig):
        kind = hints[entry.name] if entry.name != "base_model" else str
        if kind in _SCALARS:
            parser.add_argument(f"--{entry.name}", type=_SCALARS[kind], help=entry.metadata["help"])
    values = vars(parser.parse_args(arguments))
    config_file, dry_run = values.pop("config"), values.pop("dry_run")
    try:
        return load_config(config_file, **{key: value for key, value in values.items() if value is not None}), dry_run
    except (ValueError, TypeError) as error:
        parser.error(str(error))


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: give true or false.")
    return text.lower() == "true"


_SCALARS = {str: str, int: int, float: float, bool: _switch}


def show(config: TrainingConfig) -> None:
    """Print the resolved config and the number of weights of every model."""
    pipeline = TrainingRun(config).start(None)
    print(yaml.safe_dump(asdict(config) | {"model": str(config.model)}, sort_keys=False))
    for name in ("vae", "unet", "controlnet", "text_encoder"):
        weights = sum(parameter.numel() for parameter in getattr(pipeline, name).parameters())
        print(f"{name:13} {weights / 1e6:8.2f} M weights")


def main() -> int:
    """Train, or show what would be trained."""
    config, dry_run = parse_arguments()
    if dry_run:
        show(config)
        return 0
    try:
        finished = TrainingRun(config).run()
    except FloatingPointError as error:
        print(error, file=sys.stderr)
        return 1
    PartialState().print(f"The finished pipeline is in {finished}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
