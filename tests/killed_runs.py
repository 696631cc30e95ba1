"""Runs that are killed: `python killed_runs.py CONFIG FOLDER KILLS SEED`, a report as JSON on stdout.

Torch takes seconds to import, so one process imports everything and is forked for each attempt. A child is the
training script from the first line of its `main` on, and dies by SIGKILL. In `FOLDER/whole` a run is left alone; in
`FOLDER/0`, `FOLDER/1`, ... a run is killed and begun again until `KILLS` kills are spent and the last run is finished.
"""

import importlib.util
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

SCRIPT = Path(__file__).parents[1] / "examples" / "train_backshan.py"


def start(config: str, folder: Path) -> int:
    """Fork a process that trains in `folder`; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = [str(SCRIPT), "--config", config, "--output_dir", str(folder)]
        code = script.main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(child: int, block: bool) -> int | None:
    """Of a process; None while it runs."""
    ended, status = os.waitpid(child, 0 if block else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def lines_in(folder: Path) -> int:
    """Lines of all stages' logs: about as many steps are done."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*/metrics.jsonl"))


def saving(folder: Path) -> bool:
    """Whether a checkpoint is being written, or would be if its process were alive."""
    return any(folder.glob("*/checkpoint-*.tmp"))


def moments(seed: int) -> Iterator[tuple[str, float, float]]:
    """What to wait for, how often or how long, and how many seconds more, without end."""
    draw = random.Random(seed)
    while True:
        yield "step", draw.randint(1, 3), draw.uniform(0, 0.3)
        yield "save", draw.randint(1, 2), draw.uniform(0, 0.01)
        yield "time", draw.uniform(0, 2.5), 0.0


def kill_at(moment: tuple[str, float, float], child: int, folder: Path) -> bool:
    """Kill the process at its moment; false if it was finished before."""
    kind, count, delay = moment
    begun, lines, seen, before = time.monotonic(), lines_in(folder), 0, saving(folder)
    while True:
        if (code := exit_code(child, block=False)) is not None:
            assert code == 0, folder.with_suffix(".log").read_text()
            return False
        now = saving(folder)
        seen, before = seen + (now and not before), now
        reached = {"step": lines_in(folder) - lines, "save": seen, "time": time.monotonic() - begun}[kind]
        if reached >= count:
            break
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return exit_code(child, block=True) == -signal.SIGKILL


def second_run_is_refused(config: str, folder: Path) -> int:
    """Exit code of a run that is begun while another one works in its folder."""
    first = start(config, folder)
    while not lines_in(folder):
        time.sleep(0.01)
    code = exit_code(start(config, folder), block=True)
    os.kill(first, signal.SIGKILL)
    exit_code(first, block=True)
    return code


def main(config: str, folder: str, kills: str, seed: str) -> None:
    """Run everything and print the report."""
    home = Path(folder)
    assert exit_code(start(config, home / "whole"), block=True) == 0, (home / "whole.log").read_text()
    second = second_run_is_refused(config, home / "0")
    report, runs = [], 0
    for moment in moments(int(seed)):
        run = home / str(runs)
        if kill_at(moment, start(config, run), run):
            report.append({"lines": lines_in(run), "saving": moment[0] == "save" and saving(run)})
            FileLock(run / ".lock").acquire(timeout=0).lock.release()
        else:
            runs += 1
        if len(report) == int(kills):
            break
    run = home / str(runs)
    assert exit_code(start(config, run), block=True) == 0, run.with_suffix(".log").read_text()
    print(json.dumps({"kills": report, "runs": runs + 1, "second_run": second}))


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("train_backshan", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    main(*sys.argv[1:])
