"""Processes that talk to a Hub of the tests: the libraries read its address from the environment when they start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hub_server import TOKEN, Hub

ROOT = Path(__file__).parents[1]

WITHOUT_PACKAGE = 'import sys; sys.modules["backshan_diffusers"] = None\n'
"""Before code that runs as on a machine where this package is not installed."""

NURSERY = """
import json, os, sys, traceback
import diffusers, huggingface_hub, torch, transformers
from diffusers import StableDiffusionControlNetPipeline
torch.set_num_threads(1)

for line in sys.stdin:
    command = json.loads(line)
    if "wait" in command:
        print(os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    for stream, path in ((1, command["out"]), (2, command["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    sys.argv = ["-c", *command["arguments"]]
    sys.path.insert(0, command["root"])
    code = 0
    try:
        exec(compile(command["code"], "client", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


@dataclass
class Ended:
    """What a client has left: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    def checked(self) -> Ended:
        """Itself, if it ended well."""
        assert self.code == 0, self.err
        return self


def environment(hub: Hub, home: Path, **more: str | None) -> dict[str, str]:
    """Of a process that has this Hub and no other.

    Args:
        hub: the server.
        home: folder of the process's caches.
        more: further variables; those that are `None` are taken out.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    ours = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "localhost,127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    return {name: value for name, value in {**kept, **ours, **more}.items() if value is not None}


def run_apart(hub: Hub, home: Path, code: str, *arguments: object, **more: str | None) -> Ended:
    """Run code in a process of its own, with variables that are read when it starts; see [`environment`]."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(hub, home, **more), capture_output=True, text=True, check=False, timeout=280
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Clients:
    """Clients that come fast: a process that has imported the libraries is forked for each of them.

    Args:
        hub: that they talk to.
        folder: for their caches, which all of them share, and for what they write.
    """

    def __init__(self, hub: Hub, folder: Path):
        self.hub, self.home, self.folder = hub, folder / "home", folder / "work"
        self.folder.mkdir(parents=True)
        self.nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env=environment(hub, self.home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def forget(self) -> None:
        """As if nothing had ever been downloaded."""
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self, code: str, *arguments: object, **variables: str) -> int:
        """Run code in a new process with further variables of the environment; returns its number."""
        paths = {"out": str(self.folder / "out.txt"), "err": str(self.folder / "err.txt")}
        command = {"code": code, "arguments": list(map(str, arguments)), "environment": variables, "root": str(ROOT)}
        return int(self._ask({**command, **paths, "folder": str(self.folder)}))

    def wait(self, number: int) -> Ended:
        """What the process that was started last leaves at its end."""
        code = int(self._ask({"wait": number}))
        return Ended(code, *((self.folder / name).read_text("utf-8") for name in ("out.txt", "err.txt")))

    def run(self, code: str, *arguments: object, **variables: str) -> Ended:
        """Start, and wait."""
        return self.wait(self.start(code, *arguments, **variables))

    def kill(self, number: int) -> None:
        """As `kill -9` does."""
        os.kill(number, signal.SIGKILL)
        self.wait(number)

    def stop(self) -> None:
        """No further ones."""
        self.nursery.kill()
        self.nursery.communicate()

    def _ask(self, command: dict) -> str:
        self.nursery.stdin.write(json.dumps(command) + "\n")
        self.nursery.stdin.flush()
        return self.nursery.stdout.readline()
