"""Configs from YAML files and from options of the command line: types and help by jsonargparse, meaning by us.

A file has the fields of [`TrainingConfig`], nested as its dataclasses are; an option has their dotted names, as
`--model.image_size 64`. Of what is said twice the later wins: the file over the defaults, an option over the file, a
later option over an earlier one. An option that names no stage also wins over the values of single stages before it.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import SUPPRESS, ArgumentParser

from ..objective import PRESETS
from .config import (
    DEFAULT_PRESET,
    OF_STAGE,
    STAGES,
    ConfigError,
    ModelSize,
    TrainingConfig,
    check,
    check_known,
    default_stages,
)

PRESET = "objective.preset"


class Option(NamedTuple):
    """Something that a file or the command line can set."""

    kind: Any
    help: str
    default: Any = None


@cache
def known_options() -> dict[str, Option]:
    """Every option by its dotted name. Those of single stages are left out of the help: they repeat the others."""
    hints, options = get_type_hints(TrainingConfig), {}
    for entry in fields(TrainingConfig):
        if entry.name == "model":
            options |= _options_of("model", ModelSize())
        elif entry.name == "objective":
            options[PRESET] = Option(str, f"Loss to begin from: {', '.join(PRESETS)}.", DEFAULT_PRESET)
            options |= _options_of("objective", PRESETS[DEFAULT_PRESET])
        elif entry.name != "stages":
            default = None if entry.default is MISSING else entry.default
            options[entry.name] = Option(hints[entry.name], entry.metadata["help"], default)
    of_stage = {name: option for name, option in options.items() if name.partition(".")[0] in OF_STAGE}
    for stage in STAGES:
        options |= {f"stages.{stage}.{name}": Option(option.kind, SUPPRESS) for name, option in of_stage.items()}
    return options


def _options_of(group: str, values: Any) -> dict[str, Option]:
    """Options for the fields of a dataclass, explained by its docstring."""
    hints, explained = get_type_hints(type(values)), docstring_parser.parse(type(values).__doc__).params
    helps = {entry.arg_name: entry.description for entry in explained}
    return {
        f"{group}.{entry.name}": Option(hints[entry.name], helps[entry.name], getattr(values, entry.name))
        for entry in fields(values)
    }


def new_parser(description: str) -> ArgumentParser:
    """A parser with every option; it raises errors instead of ending the program."""
    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    for name, option in known_options().items():
        parser.add_argument(f"--{name}", type=option.kind, help=option.help, default=option.default)
    return parser


def read_options(parser: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """The options among `words` as values of their types, in their order, by dotted name.

    Raises:
        ConfigError: for an unknown option or a value of another type.
    """
    cuts = {0, len(words), *(place for place, word in enumerate(words) if word.startswith("--"))}
    values = {}
    for begin, end in pairwise(sorted(cuts)):
        name, _, text = words[begin].removeprefix("--").partition("=")
        try:
            given = parser.parse_args(list(words[begin:end]), defaults=False)
        except ArgumentError as error:
            if name in known_options():
                raise _wrong_type(name, *filter(None, [text, *words[begin + 1 : end]])) from error
            hint = _hint(name, list(parser.get_defaults().keys()))
            raise ConfigError(f"{' '.join(words[begin:end])!r} cannot be read: {hint}.") from error
        for key, value in given.items():
            values.pop(key, None)  # the order is that of the last one
            values[key] = value
    return values


def _hint(name: str, known: Sequence[str]) -> str:
    """What to do instead of giving an option that is none of the `known` ones, or is one of the script's own."""
    if name in known:
        return f"--help says what --{name} takes"
    if name in _INSTEAD:
        return _INSTEAD[name]
    alike = get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.9)
    return f"give --{alike[0]}" if alike else "--help lists every option"


def load_config(path: str | Path, **options) -> TrainingConfig:
    """Read a YAML file; `options` win over it.

    Args:
        path: of the file.
        options: values by dotted name, in their order, as `read_options` gives them.

    Raises:
        ConfigError: for an unreadable file, an unknown field or an impossible value.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())  # an OSError names the file again
        raise ConfigError(f"{path} is not a readable YAML file: {reason}.") from error
    values = _typed({} if values is None else values, str(path))
    base_model = options.get("base_model", values.get("base_model"))
    # A preset begins the objective anew, so it comes before the changes to it.
    for name in sorted(options, key=lambda name: not name.endswith(PRESET)):
        if name.startswith("stages.") and not values.get("stages"):
            values["stages"] = {stage: {} for stage in default_stages(base_model)}
        _set(values, name, options[name])
    check("output_dir" in values, f"{path} names no output_dir: give --output_dir FOLDER.")
    return TrainingConfig(**values | {"model": ModelSize(**values.get("model", {}))})


def _set(values: dict, name: str, value: Any) -> None:
    """Set the value of a dotted name, in the whole and in every stage that has its own."""
    group, _, rest = name.partition(".")
    for changes in values.get("stages", {}).values():
        if group in changes:
            _set(changes, name, value)
    if name == PRESET:
        values[group] = {}
    if rest:
        _set(values.setdefault(group, {}), rest, value)
    else:
        values[name] = value


def _typed(values: Any, place: str, prefix: str = "") -> dict:
    """What a file holds, with every value in the type of its field."""
    below = [name.removeprefix(prefix) for name in known_options() if name.startswith(prefix)]
    known = list(dict.fromkeys(name.partition(".")[0] for name in below))
    check(isinstance(values, dict), f"{place} is {values!r}: write lines of the form `{known[0]}: value`.")
    check_known(place, values, known)
    typed = {}
    for name, value in values.items():
        if name in below:
            typed[name] = _typed_value(f"{prefix}{name}", value)
        else:
            typed[name] = _typed({} if value is None else value, f"{prefix}{name}", f"{prefix}{name}.")
    return typed


def _typed_value(name: str, value: Any) -> Any:
    if value is None and NoneType not in get_args(known_options()[name].kind):
        raise _wrong_type(name, value)
    try:
        return _file_parser().parse_object({name: value}, defaults=False)[name]
    except ArgumentError as error:
        raise _wrong_type(name, value) from error


@cache
def _file_parser() -> ArgumentParser:
    return new_parser("")


def _wrong_type(name: str, *values: Any) -> ConfigError:
    """A refusal of the value in a file, or of the words of a command line that follow an option."""
    value = values[0] if len(values) == 1 else " ".join(values)
    quoted = ", as one word or in quotes" if len(values) > 1 else ""
    return ConfigError(f"{name} is {value!r}: give {_in_words(known_options()[name].kind)}{quoted}.")


def _in_words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):  # one and the same from Python 3.14 on
        return " or ".join(_in_words(each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        each = get_args(kind)[0]
        return f"a list, in which each is {_in_words(each)}, as {_LISTS[each]}"
    return _WORDS[kind]


_WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", NoneType: "null"}
_LISTS = {bool: "[false, true]", int: "[32, 64]", float: "[0.1, 0.2]", str: '["one", "two"]'}

_GO_ON = "to go on with a run, give the same command again"
_INSTEAD = {
    "resume": _GO_ON,
    "resume_from_checkpoint": _GO_ON,
    "model": "give --model.FIELD VALUE",
    "objective": "give --objective.preset NAME, or --objective.FIELD VALUE",
    "stages": "give --stages.STAGE.FIELD VALUE, or write the stages into the config",
}
"""What is often given, from habit or because a file has it, and is no option."""
