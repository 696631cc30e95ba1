"""Which pictures are read: what files, folders and globs stand for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from .exits import UnusableArgumentError
from .messages import PROGRAM
from .outputs import is_ours


def find_backs(arguments: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The pictures that files, folders and globs stand for, in the order given, each once.

    Returns:
        The pictures, and a sentence about each argument, folder or link that stands for none, each once.

    Raises:
        UnusableArgumentError: if there are no pictures; its message is the first of those sentences.
    """
    found: dict[str, Path] = {}
    left_out: list[str] = []
    for argument in arguments:
        paths, sentences = _expand(argument)
        left_out += sentences
        for path in paths:
            if os.path.exists(path):
                found.setdefault(os.path.realpath(path), path)
            elif os.path.islink(path):
                left_out.append(f"{path} is a link that leads nowhere: point it to a picture, or remove it.")
            else:  # it was listed, but its folder may not be entered
                left_out.append(f"{path} cannot be reached: give one that this user may read.")
    if not found:
        raise UnusableArgumentError(left_out[0])
    return list(found.values()), list(dict.fromkeys(left_out))


def without_results(backs: list[Path]) -> tuple[list[Path], list[str]]:
    """The pictures that this command did not write itself, so that a run into the folder of its backs can be repeated.

    Returns:
        These, and a sentence about the others, if there are any.

    Raises:
        UnusableArgumentError: if this command wrote all of them.
    """
    results = dict.fromkeys(back for back in backs if is_ours(back))
    if not results:
        return backs, []
    named = f"{next(iter(results))}{', ...' if len(results) > 1 else ''}"
    if len(results) == len(backs):
        raise UnusableArgumentError(f"{PROGRAM} wrote these pictures itself ({named}): give pictures of backs.")
    sentence = f"{len(results)} of the pictures are left out, because {PROGRAM} wrote them itself ({named})."
    return [back for back in backs if back not in results], [sentence]


def _expand(argument: str) -> tuple[list[Path], list[str]]:
    """What one argument stands for, links that lead nowhere included, and sentences about what stands for nothing."""
    if not argument:
        return [], ["one of the pictures has an empty name: give a picture, a folder or a glob."]
    paths, sentences = [], []
    for match in [argument] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True)):
        try:
            pictures, others = _pictures_in(Path(match)) if os.path.isdir(match) else ([Path(match)], [])
            paths += pictures
            sentences += others
        except OSError as error:
            sentences.append(f"the folder {match} cannot be read ({error.strerror}): give one that can.")
    if not paths and not sentences:
        sentences = [
            f"the folder {argument} holds no pictures: give one with JPEG or PNG files in it."
            if os.path.isdir(argument)
            else f"{argument} does not exist: give a picture, a folder or a glob that matches some."
        ]
    return paths, sentences


def _pictures_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder, sorted, and a sentence about those that nothing here can open."""
    from ..pictures import PICTURE_SUFFIXES, UNREAD_SUFFIXES

    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".") and not entry.is_dir()]
    unread = [entry for entry in entries if entry.suffix.lower() in UNREAD_SUFFIXES]
    named = f"{unread[0].name}{', ...' if len(unread) > 1 else ''}" if unread else ""
    sentence = f"{len(unread)} of the pictures in {folder} cannot be opened ({named}): convert to JPEG."
    return [entry for entry in entries if entry.suffix.lower() in PICTURE_SUFFIXES], [sentence] if unread else []
