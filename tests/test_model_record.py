"""What others may know of a model's training, and who in the package asks for it."""

import ast
from pathlib import Path

from backshan_diffusers import MINI
from backshan_diffusers.model_record import RECORD, is_embedded

PACKAGE = Path(MINI).parents[1]


def modules() -> dict[str, list[ast.AST]]:
    """The nodes of each of the package's modules."""
    files = PACKAGE.rglob("*.py")
    return {str(path.relative_to(PACKAGE)): list(ast.walk(ast.parse(path.read_text("utf-8")))) for path in files}


def test_the_name_of_the_record_is_written_once():
    assert [
        name for name, nodes in modules().items() if any(getattr(node, "value", None) == RECORD for node in nodes)
    ] == ["model_record.py"]


def test_only_the_hub_knows_of_cards():
    importing = [
        name
        for name, nodes in modules().items()
        for node in nodes
        if isinstance(node, ast.ImportFrom | ast.Import)
        if "cards" in (getattr(node, "module", None) or "").split(".") or "cards" in [each.name for each in node.names]
    ]
    assert importing == ["hub.py"]


def test_the_embedded_model_is_known_by_its_folder(tmp_path):
    (tmp_path / "link").symlink_to(MINI)
    assert is_embedded(Path(MINI)) and is_embedded(tmp_path / "link")
    assert not is_embedded(tmp_path)
