"""Files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows: there, what killed processes left behind stays
    fcntl = None

UNFINISHED = ".unfinished-"
TOKEN_BYTES = 4
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """There is no room left; the message is one sentence that says what to do."""


@contextmanager
def full_disk_in_words(folder: Path) -> Iterator[None]:
    """Within, an error that says that the disk is full becomes a [`DiskFullError`]."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _number_in(str(error))
        if number not in _FULL:
            raise
        raise DiskFullError(
            f"{folder} cannot be written ({os.strerror(number)}): make room and run the same command again; what was"
            " complete is kept."
        ) from error


def _number_in(message: str) -> int | None:
    """The system's number of what went wrong, which safetensors puts into its messages."""
    found = re.search(r"\(os error (\d+)\)", message)
    return int(found[1]) if found else None


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` at the end of the block; what `path` was stays if the block fails.

    Where `path` is a link, it is the file to which it leads. What is written lies in the same folder. Its name is
    short, because that of `path` may already be as long as the file system allows, and no other process has it,
    because two may write `path` at once. What a killed process leaves of it is for [`clear_unfinished`].
    """
    path = _linked(path)
    pending = path.with_name(f"{UNFINISHED}{secrets.token_hex(TOKEN_BYTES)}")
    try:
        with _owned(pending) as mode:
            yield pending
            if mode is not None:
                with suppress(OSError):  # some shared folders have no modes
                    pending.chmod(mode)  # safetensors puts a file in its place that nobody but its owner may read
            os.replace(pending, path)
    finally:
        pending.unlink(missing_ok=True)


@contextmanager
def _owned(path: Path) -> Iterator[int | None]:
    """Within, there is a file of this name that [`clear_unfinished`] does not take for abandoned; gives its mode.

    A lock says so, which the system lets go with the process, however that ends; a process id would mean nothing on
    another machine that shares the folder.
    """
    if fcntl is None:
        yield None
        return
    while True:
        with open(path, "xb") as file:
            with suppress(OSError):  # some shared folders have no locks: nothing in them is taken for abandoned
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():  # else it was cleared before it was locked
                yield os.fstat(file.fileno()).st_mode
                return


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes left of the files of [`complete_file`]; those being written stay."""
    for path in folder.glob(UNFINISHED + "[0-9a-f]" * 2 * TOKEN_BYTES) if fcntl else ():
        with suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8; `path` is replaced when all of it is written."""
    with complete_file(path) as pending:
        pending.write_text(text, encoding="utf-8")


def replace_folder(new: Path, target: Path) -> None:
    """Rename the folder `new` to `target`; what `target` was is put aside first, and back if that fails.

    Where `target` is a link, the folder to which it leads is replaced, and the link stays.
    """
    target = _linked(target)
    put_back(target)
    old = _put_aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    finally:
        put_back(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Where to write what becomes the folder `target` at the end of the block; what `target` was stays if it fails.

    Where `target` is a link, it is the folder to which it leads.
    """
    target = _linked(target)
    pending = target.with_name(f".{target.name}.unfinished")
    put_back(target)
    shutil.rmtree(pending, ignore_errors=True)
    try:
        pending.mkdir(parents=True)
        yield pending
        replace_folder(pending, target)
    finally:
        shutil.rmtree(pending, ignore_errors=True)


def put_back(target: Path) -> None:
    """Undo what a killed `replace_folder` left behind: where `target` is missing, the folder it was is put back."""
    target = _linked(target)
    if _put_aside(target).exists() and not target.exists():
        _put_aside(target).rename(target)


def _linked(path: Path) -> Path:
    """What a path names: by its own name, where that is `.` or the name of a link."""
    return Path(os.path.realpath(path))


def _put_aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")
