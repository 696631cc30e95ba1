"""Train a back-to-front model: `accelerate launch examples/train_backshan.py --config FILE --output_dir DIR`.

Any field of the config may follow as `--field value`, and wins over the file. A value for one stage alone is
`--stages.STAGE.FIELD value`, as `--stages.joint.max_steps 5`. To resume, run the same command again.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from backshan_diffusers.files import DiskFullError
from backshan_diffusers.hub import HubError, UnfinishedPushes, check_repo_id, push_finished
from backshan_diffusers.training.config import ConfigError, TrainingConfig, check
from backshan_diffusers.training.estimate import describe, rehearse
from backshan_diffusers.training.options import load_config, new_parser, read_options
from backshan_diffusers.training.run import Previews, TrainingRun

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def build_parser() -> ArgumentParser:
    """`--config`, `--dry_run`, where to push, and every field of the config."""
    parser = new_parser(__doc__)
    parser.add_argument("--push_to_hub", help="Hub repo id to which the finished pipeline is pushed, as owner/name.")
    parser.add_argument("--hub_private", action="store_true", help="Only its owner sees that repository.")
    parser.add_argument("--push_every", type=PositiveInt, help="Push every so many checkpoints too, to a branch.")
    parser.add_argument("--config", help="YAML file with fields of the config.")
    parser.add_argument("--dry_run", action="store_true", help="Print what would be trained and what it needs; stop.")
    return parser


def parse_arguments(arguments: Sequence[str]) -> tuple[TrainingConfig, dict[str, Any]]:
    """The resolved config, and what of the script's own options was given."""
    options = read_options(build_parser(), arguments)
    of_script = ("dry_run", "push_to_hub", "hub_private", "push_every")
    own = {name: options.pop(name) for name in of_script if name in options}
    if "push_to_hub" in own:
        check_repo_id(own["push_to_hub"])
    else:
        check("push_every" not in own, "push_every is given without push_to_hub: say where to push.")
    if "config" not in options:
        raise ConfigError("there is no config: give --config FILE, as examples/configs/smoke.yaml.")
    return load_config(options.pop("config"), **options), own


def show(config: TrainingConfig) -> None:
    """Print the resolved config, the number of weights, and what each stage needs; nothing is written."""
    needs = rehearse(config)
    PartialState().print(yaml.safe_dump(asdict(config), sort_keys=False))
    PartialState().print(describe(needs))


@contextmanager
def previews(config: TrainingConfig, own: dict[str, Any]) -> Iterator[Previews | None]:
    """What is done with models that still learn: nothing, or they are pushed; the last push ends with the block."""
    if "push_every" not in own:
        yield None
        return
    folder, private = Path(config.output_dir, ".pushed"), own.get("hub_private", False)
    pushes = UnfinishedPushes(own["push_to_hub"], folder, logging.warning, private=private)
    yield Previews(own["push_every"], pushes.begin)
    if PartialState().is_main_process:  # and not after an error: another run may be at work in the folder
        pushes.end()


def main() -> int:
    """Train, or show what would be trained."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("backshan_diffusers").setLevel(logging.INFO)
    try:
        config, own = parse_arguments(sys.argv[1:])
        if own.get("dry_run"):
            show(config)
            return 0
        with previews(config, own) as shown:
            finished = TrainingRun(config, shown).run()
    except (ConfigError, HubError) as error:
        print(error, file=sys.stderr)
        return 2
    except (FloatingPointError, DiskFullError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint.", file=sys.stderr)
        return INTERRUPTED
    PartialState().print(f"The finished pipeline is in {finished}.")
    if "push_to_hub" in own and PartialState().is_main_process:
        push_finished(finished, own["push_to_hub"], logging.warning, private=own.get("hub_private", False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
