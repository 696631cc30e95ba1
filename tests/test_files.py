"""Files and folders that appear when they are complete."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from backshan_diffusers.files import (
    DiskFullError,
    clear_unfinished,
    complete_file,
    complete_folder,
    full_disk_in_words,
    put_back,
    replace_folder,
    write_text,
)


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


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "elsewhere" / "file.txt")
    for text in ("new", "newer"):  # at first it leads to nothing
        write_text(tmp_path / "link.txt", text)
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "elsewhere" / "file.txt").read_text() == text


def test_two_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "log.txt"
    with complete_file(path) as first, complete_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert content(tmp_path) == {"log.txt": b"first"}  # the block that ends last


WRITER = """
import sys
from pathlib import Path
from backshan_diffusers.files import complete_file
with complete_file(Path(sys.argv[1])) as pending:
    pending.write_text("new")
    print("ready", flush=True)
    sys.stdin.read()
"""


def writing(path: Path) -> subprocess.Popen:
    """A process that has written what is to become `path`, and waits until its stdin is closed."""
    command = [sys.executable, "-c", WRITER, path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_killed_processes_left_is_cleared_and_what_is_being_written_stays(tmp_path):
    killed, alive = writing(tmp_path / "killed.txt"), writing(tmp_path / "alive.txt")
    killed.kill()
    killed.wait()
    (tmp_path / ".unfinished-symphony").write_text("mine")
    (tmp_path / ".unfinished-00000000").mkdir()
    assert len(content(tmp_path)) == 3
    with complete_file(tmp_path / "own.txt") as pending:
        pending.write_text("own")
        clear_unfinished(tmp_path)
        assert len(content(tmp_path)) == 3
    alive.communicate()
    assert content(tmp_path) == {"alive.txt": b"new", "own.txt": b"own", ".unfinished-symphony": b"mine"}


def test_a_file_that_is_cleared_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    def lock(file, operation, really=fcntl.flock, times=[]):  # noqa: B006
        times.append(None)
        if len(times) == 1:
            os.unlink(file.name)
        really(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    with complete_file(tmp_path / "log.txt"):
        assert len(content(tmp_path)) == 1
        clear_unfinished(tmp_path)
    assert content(tmp_path) == {"log.txt": b""}


def test_a_folder_without_locks_is_written_and_never_cleared(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(95, "Operation not supported")

    (tmp_path / ".unfinished-01234567").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    clear_unfinished(tmp_path)
    write_text(tmp_path / "log.txt", "new")
    assert content(tmp_path) == {"log.txt": b"new", ".unfinished-01234567": b""}


def test_a_folder_without_modes_is_written(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_text(tmp_path / "log.txt", "new")
    assert content(tmp_path) == {"log.txt": b"new"}


def test_weights_may_be_read_by_whoever_may_read_other_files(tmp_path):
    with complete_file(tmp_path / "a.safetensors") as pending:
        save_file({"a": torch.zeros(3)}, pending)
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_any_name_that_the_file_system_takes_can_be_written(tmp_path):
    name = "a" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write_text(tmp_path / name, "new")
    assert content(tmp_path) == {name: b"new"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_sentence_whoever_finds_it(tmp_path, number):
    for error in (OSError(number, "no room"), SafetensorError(f"I/O error: no room (os error {number})")):
        with pytest.raises(DiskFullError, match="cannot be written .*: make room"), full_disk_in_words(tmp_path):
            raise error


def test_another_error_is_not_taken_for_a_full_disk(tmp_path):
    for error in (OSError(errno.EACCES, "denied"), SafetensorError("(os error 13)"), SafetensorError("header")):
        with pytest.raises(type(error)) as caught, full_disk_in_words(tmp_path):
            raise error
        assert caught.value is error


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


def test_a_folder_appears_when_it_is_complete_and_leftovers_of_a_killed_process_are_cleared(tmp_path):
    target = tmp_path / "mini"
    folder_with(tmp_path / ".mini.replaced", "old")
    folder_with(tmp_path / ".mini.unfinished", "half")
    with pytest.raises(RuntimeError), complete_folder(target) as pending:
        assert content(pending) == {} and content(target) == {"file": b"old"}
        (pending / "file").write_text("half")
        raise RuntimeError
    assert content(tmp_path) == {"mini/file": b"old"}
    with complete_folder(target) as pending:
        (pending / "other").write_text("new")
    assert content(tmp_path) == {"mini/other": b"new"}


def test_a_link_stays_and_its_folder_is_replaced(tmp_path):
    target = folder_with(tmp_path / "mini", "old")
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to("mini")
    dangling.symlink_to("later")
    for place, text in ((link, "new"), (link, "newer"), (dangling, "first")):
        with complete_folder(place) as pending:
            folder_with(pending / "in", text)
    replace_folder(folder_with(tmp_path / "by-itself", "newest"), link)
    assert link.is_symlink() and dangling.is_symlink()
    assert content(target) == {"file": b"newest"} and content(tmp_path / "later") == {"in/file": b"first"}
    assert sorted(os.listdir(tmp_path)) == ["dangling", "later", "link", "mini"]
    target.rename(tmp_path / ".mini.replaced")  # as a killed process leaves it
    put_back(link)
    assert content(link) == {"file": b"newest"}
