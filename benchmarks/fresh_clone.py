"""Wall time and peak memory of `make demo` and `make test` in a fresh clone, with and without the installation.

python benchmarks/fresh_clone.py --json benchmarks/results/fresh_clone.json
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from report import ROOT, Parser, Table, git_state, output_file, peak_memory_mib, publish

LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
"""Variables that would lead from the clone to what is installed elsewhere, or to the options of another `make`. Git's
own are left out as well."""


def parse(arguments: Sequence[str]) -> tuple[Parser, argparse.Namespace]:
    """The parser, for later refusals, and the options."""
    parser = Parser(prog="fresh_clone.py", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=("demo", "test"),
        default=["demo"],
        help="of make, each in a clone of its own (default: demo)",
    )
    parser.add_argument("--json", type=output_file, help="write the results here")
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    parser, options = parse(arguments)
    commit, _ = git_state()
    if commit is None:
        parser.error(f"{ROOT} has no commit to clone: run this in a git repository, with git installed.")
    if shutil.which("make") is None:
        parser.error("make was not found: install it.")
    try:
        runs = [run for target in options.targets for run in measure(ROOT, commit, target)]
    except subprocess.CalledProcessError as failed:
        parser.error(f"`{' '.join(failed.cmd)}` ended with {failed.returncode}: what it printed above says why.")
    results = {"commit": commit, "runs": runs}
    publish([table(results)], results, arguments, None, options.json)


def measure(repository: Path, commit: str, target: str) -> Iterator[dict]:
    """Clone, run `make` with the target, delete what it made but for the installation, and run it again.

    Args:
        repository: folder of the repository.
        commit: what is checked out.
        target: of its Makefile.

    Yields:
        For both runs `target`, `installs`, `seconds` of wall time, and `peak_memory_mib` of the largest process.

    Raises:
        subprocess.CalledProcessError: if git or make fails. What they print goes to standard error.
    """
    with tempfile.TemporaryDirectory(prefix="fresh-clone-") as folder:
        clone = Path(folder, "clone")
        git("clone", "--quiet", "--no-checkout", str(repository), str(clone), cwd=Path(folder))
        git("checkout", "--quiet", "--detach", commit, cwd=clone)
        yield {"target": target, "installs": True, **make(clone, target)}
        installed = ("--exclude=.venv", "--exclude=*.egg-info")
        git("clean", "--quiet", "-dffx", *installed, cwd=clone)
        yield {"target": target, "installs": False, **make(clone, target)}


def git(*arguments: str, cwd: Path) -> None:
    """Run git on the repository in `cwd` and no other."""
    subprocess.run(["git", *arguments], cwd=cwd, check=True, env=outside())


def outside() -> dict[str, str]:
    """The environment without what leads elsewhere: to another installation, another `make`, another repository."""
    return {name: value for name, value in os.environ.items() if name not in LEFT_OUT and not name.startswith("GIT_")}


def make(clone: Path, target: str) -> dict[str, float]:
    """Seconds of wall time and peak memory of one run of `make`, without pip's cache of earlier downloads.

    The kernel hands over the memory with the process that ended, so that no run sees the peak of another one.
    """
    began = time.perf_counter()
    # 2: standard output holds the tables alone
    process = subprocess.Popen(["make", target], cwd=clone, stdout=2, env={**outside(), "PIP_NO_CACHE_DIR": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # so that it is not waited for again
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return {"seconds": seconds, "peak_memory_mib": peak_memory_mib(usage)}


def table(results: dict) -> Table:
    """What is printed and goes into the docs."""
    return Table(
        "make",
        f"`make` in a fresh clone of {results['commit'][:7]}",
        ["target", "installation", "wall time in s", "peak memory of the largest single process in MiB"],
        [
            [
                run["target"],
                "with downloads" if run["installs"] else "there already",
                f"{run['seconds']:.0f}",
                f"{run['peak_memory_mib']:.0f}",
            ]
            for run in results["runs"]
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
