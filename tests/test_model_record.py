"""What others may know of a model's training, and who in the package asks for it."""

import ast
from pathlib import Path

from backshan_diffusers import MINI
from backshan_diffusers.model_record import RECORD, is_embedded, with_folders_marked

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


def test_folders_that_look_like_repositories_are_marked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/sd15").mkdir(parents=True)
    for name, recorded in (
        ("models/sd15", "./models/sd15"),
        ("./models/sd15", "./models/sd15"),
        (str(tmp_path / "models/sd15"), str(tmp_path / "models/sd15")),
        ("models", "models"),
        ("owner/name", "owner/name"),
        (None, None),
    ):
        values = {"seed": 1, "base_model": "owner/base", "controlnet": "owner/net"}
        for field in ("base_model", "controlnet"):
            assert with_folders_marked(values | {field: name}) == values | {field: recorded}
