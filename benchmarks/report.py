"""What every benchmark shares: its command line, its tables, and the JSON file that the docs' numbers come from."""

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from backshan_diffusers import MINI
from backshan_diffusers.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = (":(exclude)benchmarks/results", ":(exclude)docs/images")
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "scikit-image", "pillow")


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        name: by which the docs ask for it.
        title: one line over it.
        columns: headings.
        rows: one list of cells for each row, the first of which names it.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """For a terminal: columns padded, the first to the left and the others to the right."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        padded = [
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
            for line in lines
        ]
        padded.insert(1, ["-" * width for width in widths])
        return "\n".join([self.title, *("  ".join(line).rstrip() for line in padded)])

    def markdown(self) -> str:
        """For the docs."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


class Parser(argparse.ArgumentParser):
    """A parser that refuses bad arguments with one sentence and exit code 2."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    """An argument that must be a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up.")
    return int(text)


def several(text: str) -> int:
    """An argument that counts what an interval is taken over: it needs items of two groups."""
    if positive(text) < 2:
        raise argparse.ArgumentTypeError("must be at least 2, because an interval needs items of two groups.")
    return int(text)


def output_file(text: str) -> Path:
    """An argument that names a file to write; refused now if it cannot be written after the measurement."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: name a file in a folder that exists.")
    return path


def parser_of_fronts(script: str, description: str, count: int) -> Parser:
    """The options of every script that measures the fronts that a model makes of `wardrobe` pairs.

    Args:
        script: its file's name.
        description: what it measures.
        count: of pairs by default.
    """
    parser = Parser(prog=script, description=description)
    parser.add_argument("--model", default=MINI, help="folder or Hub id of a pipeline (default: the embedded one)")
    parser.add_argument("--count", type=several, default=count, help="pairs to measure on (default: %(default)s)")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="their split (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16, help="fronts generated at once (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise and the bootstrap (default: %(default)s)")
    parser.add_argument("--json", type=output_file, help="write the results here")
    return parser


def open_pipeline(parser: Parser, model: str):
    """The pipeline of a folder or repository, as the commands open it, and the folder where it was found.

    The parser refuses what cannot be measured.
    """
    # here, because benchmarks of the data alone should not need torch
    import torch

    from backshan_diffusers.commands.exits import UnusableArgumentError
    from backshan_diffusers.commands.loading import find_model, load_pipeline

    try:
        found = find_model(model)
        return load_pipeline(model, found, torch.device("cpu"), torch.float32), found.folder
    except UnusableArgumentError as error:
        parser.error(f"--model {model}: {error}")


def publish(
    tables: Sequence[Table], results: dict, arguments: Sequence[str], seed: int | None, path: Path | None
) -> None:
    """Print the tables and, if a path is given, write them with the results and how they came about.

    Args:
        tables: in the order in which they are printed.
        results: every number, unrounded, as JSON can hold it.
        arguments: of the command line, without the script.
        seed: that the results depend on, if any.
        path: JSON file with `command`, `commit`, `modified`, `date`, `seed`, `machine`, `results` and `tables`.
    """
    print("\n\n".join(table.text() for table in tables))
    if path is not None:
        commit, modified = git_state()
        report = {
            "command": command_line(arguments),
            "commit": commit,
            "modified": modified,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": seed,
            "machine": machine(),
            "results": results,
            "tables": [asdict(table) for table in tables],
        }
        write_text(path, json.dumps(report, indent=1, allow_nan=False) + "\n")


def command_line(arguments: Sequence[str]) -> str:
    """The running script and its arguments as one would type them in the repository's folder.

    Of absolute paths to elsewhere only the name is kept: where they were is nobody's business.
    """
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    return shlex.join(["python", *(_from_root(each) for each in [str(script), *arguments])])


def _from_root(argument: str) -> str:
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def git_state() -> tuple[str | None, bool | None]:
    """The commit and whether tracked files differ from it, but for results, which the benchmark before this one may
    just have written; `None` twice where there is no commit or no git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *RESULTS))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def machine() -> dict:
    """Processor, cores, memory and versions; nothing that names the computer or its user."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def peak_memory_mib(usage: resource.struct_rusage) -> float:
    """The most memory that one process has held, in MiB; if the usage is of several processes, the largest one."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
