"""What an installation brings."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "backshan_diffusers"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_file_of_the_package_is_installed(tmp_path):
    """The embedded weights and the cards' templates among them; in a copy, because setuptools writes beside it."""
    source, built = tmp_path / "source", tmp_path / "built"
    shutil.copytree(ROOT / PACKAGE, source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(built)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    assert files(built / PACKAGE) == files(source / PACKAGE)
