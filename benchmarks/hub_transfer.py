"""Seconds and memory of a push and a pull of a pipeline, against huggingface_hub alone, with a Hub on this machine.

python benchmarks/hub_transfer.py --json benchmarks/results/hub_transfer.json
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from report import ROOT, Parser, Table, output_file, positive, publish
from safetensors.numpy import save_file

from backshan_diffusers import MINI

sys.path.insert(0, str(ROOT / "tests"))
from hub_clients import environment
from hub_server import Hub

SHARES = {"unet": 0.6, "controlnet": 0.25, "text_encoder": 0.1, "vae": 0.05}
"""Of a pipeline's bytes that lie in a component, about as in Stable Diffusion 1.5."""

CLIENT = """
import json, re, sys, time
{imports}
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, began = peak(), time.perf_counter()
{call}
print(json.dumps([time.perf_counter() - began, before, peak()]))
"""
"""Linux alone tells the peak of a program; what `getrusage` tells begins with that of the program that started it."""

TRANSFERS = {
    "push": ("from backshan_diffusers.hub import push", "push(sys.argv[1], 'org/ours')"),
    "upload_folder": (
        "from huggingface_hub import HfApi",
        "HfApi().create_repo('org/plain'); HfApi().upload_folder(repo_id='org/plain', folder_path=sys.argv[1])",
    ),
    "pull": ("from backshan_diffusers.hub import pull", "pull('org/ours')"),
    "snapshot_download": ("from huggingface_hub import snapshot_download", "snapshot_download('org/plain')"),
}
"""Imports, which are not timed, and what is."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = Parser(prog="hub_transfer.py", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--megabytes", type=positive, default=1500, metavar="MB", help="size of the pipeline (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="rounds, of which the median counts")
    parser.add_argument("--json", type=output_file, help="write the results here")
    return parser.parse_args(arguments)


def write_pipeline(folder: Path, megabytes: int) -> None:
    """A folder like that of a pipeline, with weights of random bytes that nothing can compress."""
    shutil.copytree(MINI, folder)
    random = np.random.default_rng()
    for component, share in SHARES.items():
        (weights,) = (folder / component).glob("*.safetensors")
        save_file({"weight": np.frombuffer(random.bytes(int(megabytes * 1e6 * share)), np.uint8)}, weights)


def transfer(name: str, hub: Hub, home: Path, folder: Path) -> dict[str, float]:
    """Seconds, and peak memory of the process in MiB, before the transfer began and at its end."""
    imports, call = TRANSFERS[name]
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT.format(imports=imports, call=call), str(folder)],
        env=environment(hub, home),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    printed, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, name)
    seconds, before, peak = json.loads(printed)
    return {"seconds": seconds, "memory_before_mib": before, "peak_memory_mib": peak}


def measure(megabytes: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """All transfers in turn, `repeats` times, each time with other weights, another Hub and empty caches."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in TRANSFERS}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="hub-transfer-") as place:
            root = Path(place)
            # what was sent once is not sent again: the two pushes need weights of their own
            for name in ("ours", "plain"):
                write_pipeline(root / name, megabytes)
            with Hub(root / "hub") as hub:
                for name in TRANSFERS:
                    folder = root / ("ours" if name in ("push", "pull") else "plain")
                    results[name].append(transfer(name, hub, root / f"home-{name}", folder))
    return results


def table(results: dict) -> Table:
    """What is printed and goes into the docs."""
    columns = ["transfer", "seconds", "MB a second", "peak memory in MiB", "of which before it began"]
    rows = []
    for name, rounds in results["transfers"].items():
        middle = {key: median(each[key] for each in rounds) for key in rounds[0]}
        rate = results["megabytes"] / middle["seconds"]
        cells = [f"{middle['seconds']:.1f}", f"{rate:.0f}"]
        rows.append([name, *cells, f"{middle['peak_memory_mib']:.0f}", f"{middle['memory_before_mib']:.0f}"])
    title = f"a pipeline of {results['megabytes']} MB over HTTP on one machine, medians of {results['repeats']} rounds"
    return Table("transfer", title, columns, rows)


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    options = parse(arguments)
    results = {
        "megabytes": options.megabytes,
        "repeats": options.repeats,
        "transfers": measure(options.megabytes, options.repeats),
    }
    publish([table(results)], results, arguments, None, options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
