"""Which files are written: planned, and judged before anything is done."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .exits import UnusableArgumentError
from .messages import PROGRAM

LONGEST_STEM = 230
"""Bytes of a back's name that go into that of its front, which a number may follow."""

MOST_FRONTS = 1_000_000
"""Of one run: each is planned before the first is made."""


@dataclass
class Job:
    """One front to generate: the `number`th (from 0) of a back."""

    back: Path
    number: int
    result: Path


def plan(backs: list[Path], out: str, num_images: int, with_sheet: bool) -> tuple[list[Job], Path | None]:
    """Which front goes to which file, and where the sheet goes, if one is wanted.

    Args:
        backs: the pictures.
        out: a folder or a file. As with `cp`, what is a folder or ends with a slash is one, whatever its name.
        num_images: fronts for each back.
        with_sheet: whether a sheet is wanted.

    Raises:
        UnusableArgumentError: if `out` is empty, stdout or an address, no name for a PNG file, or one file for several
            fronts, or if there are more fronts than can be planned.
    """
    from ..pictures import PICTURE_SUFFIXES, UNREAD_SUFFIXES

    if not out:
        raise UnusableArgumentError("--out is empty: give a folder, or . for the current one.")
    if out == "-":
        raise UnusableArgumentError(
            "fronts are not written to stdout: give a folder or a .png name, or ./- if so named."
        )
    if "://" in out:
        raise UnusableArgumentError(f"{out} is an address: give a folder or a .png name on this machine as --out.")
    count = len(backs) * num_images
    if count > MOST_FRONTS:
        raise UnusableArgumentError(f"{count} fronts are more than the {MOST_FRONTS} of one run: give fewer.")
    path, suffix = Path(out), Path(os.path.basename(out)).suffix.lower()
    suffixes = PICTURE_SUFFIXES | UNREAD_SUFFIXES
    if os.path.basename(out).lower() in suffixes and not os.path.isdir(out):
        raise UnusableArgumentError(f"{out} is a suffix without a name: give a folder or a .png name as --out.")
    if os.path.isdir(out) or suffix not in suffixes:
        jobs = [
            Job(back, number, path / (f"{stem}_front.png" if num_images == 1 else f"{stem}_front_{number + 1}.png"))
            for back, stem in zip(backs, _distinct_stems(backs))
            for number in range(num_images)
        ]
        return jobs, path / "sheet.png" if with_sheet else None
    if suffix != ".png":
        raise UnusableArgumentError(f"fronts are written as PNG files, not {path.name}: give a folder or a .png name.")
    if count > 1:
        raise UnusableArgumentError(
            f"{out} is one file but there are {count} fronts to write: give a folder as --out."
        )
    return [Job(backs[0], 0, path)], path.with_name(f"{path.stem}_sheet.png") if with_sheet else None


def _distinct_stems(backs: list[Path]) -> list[str]:
    """The files' names without suffix; where that was taken, with the folder's name, and then with a number. Those too
    long for a front's name are cut."""
    stems: dict[str, str] = {}
    for back in backs:
        names = itertools.chain(
            (_cut(back.stem), _cut(f"{back.absolute().parent.name}_{back.stem}")),
            (f"{_cut(back.stem)}_{n}" for n in itertools.count(2)),
        )
        stem = next(name for name in names if name.casefold() not in stems)
        stems[stem.casefold()] = stem
    return list(stems.values())


def _cut(stem: str) -> str:
    """What of a name leaves room for what is put behind it in a file's name of the usual 255 bytes."""
    encoded = os.fsencode(stem)
    return stem if len(encoded) <= LONGEST_STEM else encoded[:LONGEST_STEM].decode("utf-8", "ignore")


def check_writable(folder: Path, targets: list[Path]) -> None:
    """Refuse what could not be written in the end, without writing it: the folder is made when the model is there.

    Raises:
        UnusableArgumentError: if nothing can be written to the folder, or a name in it is too long.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
    with refusing_to_write_in(folder), tempfile.TemporaryFile(dir=existing):
        pass
    names = dict.fromkeys([*folder.absolute().parts, *(target.name for target in targets)])
    for path in (*(existing / name for name in names), *targets):
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UnusableArgumentError(
                    f"the name or path of {path.name} is too long: give another --out, or rename the back."
                ) from error


@contextmanager
def refusing_to_write_in(folder: Path) -> Iterator[None]:
    """Within, what the system refuses makes `--out` an unusable argument."""
    try:
        yield
    except OSError as error:
        raise UnusableArgumentError(
            f"nothing can be written to the folder {folder} ({error.strerror}): give another --out."
        ) from error


def check_targets(targets: list[Path], backs: list[Path]) -> None:
    """Refuse to replace a picture that was given, a folder, or anything that this command did not write.

    Raises:
        UnusableArgumentError: if one of the targets is such a thing.
    """
    given = {os.path.realpath(back) for back in backs}
    for target in targets:
        if os.path.realpath(target) in given:
            raise UnusableArgumentError(f"{target} is one of the backs and would be replaced: give another --out.")
        if os.path.lexists(target) and not is_ours(target):
            raise UnusableArgumentError(f"{target} exists and was not written by {PROGRAM}: give another --out.")


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that this command wrote, as its text chunks say."""
    import PIL.PngImagePlugin

    if not path.is_file():  # to open a pipe would wait for its other end
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels: none is decoded
            # not PIL.Image.open, which refuses the pixels of a long sheet
            with PIL.PngImagePlugin.PngImageFile(path) as picture:
                return picture.info.get("Software") == PROGRAM
    except Exception:  # whatever is no PNG is not ours
        return False
