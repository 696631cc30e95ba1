"""Files to which a stage adds a line now and then, and which a resumed stage cuts back to where it goes on."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from ..files import write_text

_logger = logging.getLogger(__name__)


def append_line(path: Path, line: str) -> None:
    """Add one line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def append_row(path: Path, row: dict) -> None:
    """Add one row of a table, and above the first one the names of its columns."""
    if not path.exists() or not path.stat().st_size:
        append_line(path, ",".join(row))
    append_line(path, ",".join(map(str, row.values())))


def json_step(line: str) -> int:
    """The step of a line of `metrics.jsonl`."""
    return json.loads(line)["step"]


def csv_step(line: str) -> int:
    """The step of a line of `validation.csv`; 0 for the names of its columns, which are there from the beginning."""
    step = line.partition(",")[0]
    return 0 if step == "step" else int(step)


def drop_later_lines(path: Path, step: int, step_of: Callable[[str], int]) -> None:
    """Leave the lines up to `step`: the steps after it will be done, and logged, once more.

    A last line that a killed run did not finish is dropped too, and so are damaged ones, which a warning counts.
    """
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept, damaged = [], 0
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            continue
        try:
            if step_of(line) <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        _logger.warning("%s has damaged lines, which are left out: %d.", path, damaged)
    write_text(path, "".join(kept))


def peak_memory(device: torch.device) -> float:
    """The most memory that was ever in use, in MiB: of the device where it is counted, else of this process."""
    count = getattr(torch.get_device_module(device.type), "max_memory_allocated", None)
    if count is not None:
        return count(device) / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # here, because Windows has none

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
