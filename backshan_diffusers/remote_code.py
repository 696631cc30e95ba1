"""The code that a repository carries, so that its pipeline works where this package is not installed.

diffusers loads `pipeline.py` of a repository and the files beside it that it imports (`custom_pipeline` with
`trust_remote_code`). They are the package's own sources, copied: a repository has no folders for them, so that each
relative import names a file beside it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath

from . import __version__

PACKAGE = Path(__file__).parent
ENTRY = "pipelines/pipeline_back_to_front"
"""The module that becomes `pipeline.py`, below the package and without suffix."""

RELATIVE_IMPORT = re.compile(r"^(\s*from )\.+(?:\w+\.)*(\w+)(?= import )", re.MULTILINE)
HEADER = (
    f"# This file is part of backshan_diffusers {__version__} (Apache-2.0), copied here so that diffusers can load it"
    " without the package.\n"
)


def sources() -> dict[str, str]:
    """The files by their names: `pipeline.py`, and every module of the package that it needs."""
    found: dict[str, str] = {}
    waiting = [ENTRY]
    while waiting:
        module = waiting.pop()
        text = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
        found[_file_of(module)] = HEADER + RELATIVE_IMPORT.sub(r"\1.\2", text)
        waiting += [each for each in _imported(module, text) if _file_of(each) not in found]
    return found


def _file_of(module: str) -> str:
    return "pipeline.py" if module == ENTRY else f"{PurePosixPath(module).name}.py"


def _imported(module: str, text: str) -> list[str]:
    """The package's modules that one of them imports."""
    folders = PurePosixPath(module).parts[:-1]
    imports = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level)
    return ["/".join((*folders[: len(folders) + 1 - node.level], *node.module.split("."))) for node in imports]
