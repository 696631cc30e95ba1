"""Files and folders that appear when they are complete."""

import os
from pathlib import Path

import pytest

from backshan_diffusers.files import complete_file, replace_folder, write_text


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), complete_file(path) as pending:
        pending.write_text("half")
        raise RuntimeError
    assert content(tmp_path) == {"log.txt": b"old"}
    with complete_file(path) as pending:
        assert pending.parent == tmp_path  # a rename to another file system would not be one step
        pending.write_text("new")
        assert path.read_text() == "old"
    assert content(tmp_path) == {"log.txt": b"new"}


def test_two_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "log.txt"
    with complete_file(path) as first, complete_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert content(tmp_path) == {"log.txt": b"first"}  # the block that ends last


def test_any_name_that_the_file_system_takes_can_be_written(tmp_path):
    name = "a" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write_text(tmp_path / name, "new")
    assert content(tmp_path) == {name: b"new"}


def test_a_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, "older")
    with path.open() as reader:
        write_text(path, "前")
        assert reader.read() == "older"  # who reads while it is written has a whole file
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half\ud800")
    assert content(tmp_path) == {"report.json": "前".encode()}


def test_a_folder_takes_the_place_of_another(tmp_path):
    target = tmp_path / "mini"
    replace_folder(folder_with(tmp_path / "first", "first"), target)
    assert content(tmp_path) == {"mini/file": b"first"}
    replace_folder(folder_with(tmp_path / "second", "second"), target)
    assert content(tmp_path) == {"mini/file": b"second"}
    assert os.listdir(tmp_path) == ["mini"]


def test_an_exchange_that_fails_puts_the_old_folder_back(tmp_path):
    target = folder_with(tmp_path / "mini", "old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "absent", target)
    assert content(tmp_path) == {"mini/file": b"old"}


def test_a_folder_that_a_killed_process_put_aside_comes_back(tmp_path):
    aside = folder_with(tmp_path / ".mini.replaced", "old")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "absent", tmp_path / "mini")
    assert content(tmp_path) == {"mini/file": b"old"}
    folder_with(aside, "older")  # what a process left that was killed later
    replace_folder(folder_with(tmp_path / "new", "new"), tmp_path / "mini")
    assert content(tmp_path) == {"mini/file": b"new"}
