"""Files to which a stage adds a line now and then, and which a resumed stage cuts back to where it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..files import write_text


def append_line(path: Path, line: str) -> None:
    """Add one line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def json_step(line: str) -> int:
    """The step of a line of `metrics.jsonl`."""
    return json.loads(line)["step"]


def csv_step(line: str) -> int:
    """The step of a line of `validation.csv`."""
    return int(line.partition(",")[0])


def drop_later_lines(path: Path, step: int, step_of: Callable[[str], int]) -> None:
    """Leave the lines up to `step`: the steps after it will be done, and logged, once more.

    A last line that a killed run did not finish is dropped too.
    """
    if not path.exists():
        return
    complete = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    kept = "".join(line for line in complete if step_of(line) <= step)
    write_text(path, kept)
