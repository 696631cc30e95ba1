"""What an installation brings."""

import re
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


def test_what_make_test_leaves_out_has_a_target_of_its_own():
    setup, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("setup.py", "Makefile"))
    left_out = re.findall(r'"(\w+)"', re.search(r"^NOT_IN_TESTS = \{(.+)\}$", setup, re.M)[1])
    installed = re.search(r"^\$\(VENV\)/ready-extras:.*\n\t.+'\.\[([\w,]+)\]'$", makefile, re.M)[1]
    assert sorted(installed.split(",")) == sorted(left_out)
    skip = re.compile(rf"needs the extra (?:{'|'.join(left_out)})\b")
    skipping = {
        f"tests/{file.name}" for file in (ROOT / "tests").glob("*.py") if skip.search(file.read_text(encoding="utf-8"))
    }
    command = re.search(r"^test-extras: \$\(VENV\)/ready-extras\b.*\n\t(.+)$", makefile, re.M)[1]
    assert skipping and skipping <= set(command.split())
