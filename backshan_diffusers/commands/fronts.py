"""A run of `backshan generate`: pictures are loaded, fronts generated and saved, and what fails is reported."""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from .exits import DONE, SOME_FAILED, exit_code
from .messages import PROGRAM, as_utf8, on_one_line, report, say
from .outputs import Job

if TYPE_CHECKING:
    import PIL.Image

    from ..hub import Model

SHEET_CELL_SIDE = 256
"""Longest side in px of a picture on the sheet."""

FOLDER_TAKES_NO_MORE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT))
"""Errors of writing a file that the next file would meet too: the disk is full, or the folder is gone."""


class FolderTakesNoMoreError(OSError):
    """A picture could not be written, and no other one could be."""


@dataclass
class Tally:
    """What has come of a run so far: fronts written, and the backs or the sheet of which something is missing."""

    written: int = 0
    failed: set[Path] = field(default_factory=set)


def write_fronts(
    pipeline, found: Model, jobs: list[Job], sheet: Path | None, settings: dict, options: argparse.Namespace
) -> int:
    """Generate, save and report; what is finished stays, whatever happens afterwards."""
    from tqdm import tqdm

    folder, metadata = jobs[0].result.parent, _metadata(found, settings, options)
    tally = Tally()
    # None: no bar where stderr is no terminal
    with tqdm(total=len(jobs), unit="front", disable=None if sys.stderr else True) as progress:
        try:
            _write_pictures(pipeline, jobs, sheet, settings, metadata, options, tally, progress)
        except KeyboardInterrupt as interruption:
            report(f"interrupted: {tally.written} of {len(jobs)} fronts were written to {folder}.")
            return exit_code(interruption)
        except FolderTakesNoMoreError as error:
            report(
                f"nothing more can be written to the folder {folder} ({error.strerror}):"
                f" {tally.written} of {len(jobs)} fronts were written."
            )
            return SOME_FAILED
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            remedy = "a smaller --batch-size" if options.batch_size > 1 else "another --device or --model"
            report(f"the device ran out of memory after {tally.written} of {len(jobs)} fronts: give {remedy}.")
            return SOME_FAILED
    summary = f"{tally.written} of {len(jobs)} fronts were written to {folder}"
    if not say(summary, sys.stdout):
        report(f"{summary}.")
    return SOME_FAILED if tally.failed else DONE


def _write_pictures(
    pipeline,
    jobs: list[Job],
    sheet: Path | None,
    settings: dict,
    metadata: dict,
    options: argparse.Namespace,
    tally: Tally,
    progress,
) -> None:
    """Every front that can be generated, and then the sheet, if one is wanted."""
    from ..sheets import picture_sheet

    rows: dict[Path, list[PIL.Image.Image | None]] = {}
    usable = _load_backs(pipeline, jobs, options, tally.failed, progress)
    for job, back, seed, front in _fronts(pipeline, usable, settings, options):
        if front is None:
            tally.failed.add(job.back)
            report(
                f"the front of {job.back} with seed {seed} has values that are not finite, so it is not written:"
                f" {_remedy_of_not_finite(settings, options)}."
            )
        elif _save(front, job.result, metadata | {"seed": seed, "source": as_utf8(job.back.name)}):
            tally.written += 1
            if sheet:
                row = rows.setdefault(job.back, [_thumbnail(back)] + [None] * options.num_images)
                row[1 + job.number] = _thumbnail(front)
        else:
            tally.failed.add(job.back)
        progress.update()
    if rows:
        titles, names = ["back"] + ["generated"] * options.num_images, [on_one_line(back.name) for back in rows]
        picture = picture_sheet(list(rows.values()), titles, captions=names)
        if not _save(picture, sheet, metadata | {"seed": options.seed}):
            tally.failed.add(sheet)


def _remedy_of_not_finite(settings: dict, options: argparse.Namespace) -> str:
    remedies = ["a smaller --guidance"] if settings["guidance_scale"] > 1 else []
    remedies += ["--dtype float32"] if options.dtype != "float32" else []
    return f"give {', or '.join(remedies)}" if remedies else "the model's weights may be damaged, so give another one"


def _is_lack_of_memory(error: Exception) -> bool:
    import torch

    # for the memory of the machine itself, torch has no class of its own
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _metadata(found: Model, settings: dict, options: argparse.Namespace) -> dict[str, str | int | float | None]:
    """What is recorded in every front, besides its seed and its source. Folders above the model's are left out."""
    is_folder = os.path.isdir(options.model)
    return {
        "Software": PROGRAM,
        "version": __version__,
        "model": as_utf8(Path(options.model).resolve().name if is_folder else options.model),
        # the cache of huggingface_hub names the folder after it
        "commit": found.folder.name if found.repo_id else None,
        "steps": settings["num_inference_steps"],
        "guidance": settings["guidance_scale"],
        "prompt": settings["prompt"],
        "negative_prompt": settings["negative_prompt"],
        "dtype": options.dtype,
        "original_size": options.original_size,
    }


def _load_backs(
    pipeline, jobs: Iterable[Job], options: argparse.Namespace, failed: set[Path], progress
) -> Iterator[tuple[Job, PIL.Image.Image]]:
    """Each job with its picture; the jobs of a picture that cannot be used are reported once and left out."""
    from ..pictures import PictureError, load_picture, pixels_to_decode

    enough_pixels = pixels_to_decode(pipeline.controlnet.config.image_size, options.original_size)
    for path, group in itertools.groupby(jobs, key=lambda job: job.back):
        same_back = list(group)
        try:
            back = load_picture(path, enough_pixels)
        except (PictureError, OSError) as error:
            failed.add(path)
            report(str(error))
            progress.update(len(same_back))
            continue
        yield from ((job, back) for job in same_back)


def _fronts(
    pipeline, usable: Iterator[tuple[Job, PIL.Image.Image]], settings: dict, options: argparse.Namespace
) -> Iterator[tuple[Job, PIL.Image.Image, int, PIL.Image.Image | None]]:
    """Job, back, seed and front, which is `None` where its values are not finite."""
    while batch := list(itertools.islice(usable, options.batch_size)):
        yield from _fronts_of_batch(pipeline, batch, settings, options)


def _fronts_of_batch(
    pipeline, batch: list[tuple[Job, PIL.Image.Image]], settings: dict, options: argparse.Namespace
) -> Iterator[tuple[Job, PIL.Image.Image, int, PIL.Image.Image | None]]:
    """As `_fronts`. Neither its seed nor its failure makes a front depend on which other pictures are given."""
    import torch

    from ..pipelines import NotFiniteError

    seeds = [options.seed + job.number for job, _ in batch]
    try:
        fronts = pipeline(
            [back for _, back in batch],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            restore_size=options.original_size,
            **settings,
        ).images
    except NotFiniteError:
        if len(batch) > 1:
            for each in batch:
                yield from _fronts_of_batch(pipeline, [each], settings, options)
            return
        fronts = [None]
    for (job, back), seed, front in zip(batch, seeds, fronts, strict=True):
        yield job, back, seed, front


def _save(picture: PIL.Image.Image, path: Path, metadata: dict) -> bool:
    """Whether the picture was written; if not, that is reported.

    Raises:
        FolderTakesNoMoreError: if no other picture could be written there either.
    """
    from ..pictures import save_picture

    try:
        save_picture(picture, path, metadata)
    except OSError as error:
        if error.errno in FOLDER_TAKES_NO_MORE:
            raise FolderTakesNoMoreError(error.errno, error.strerror) from error
        report(f"{path} cannot be written ({error.strerror}).")
        return False
    return True


def _thumbnail(picture: PIL.Image.Image) -> PIL.Image.Image:
    """As large as on the sheet: the pictures of all rows are held until the last front is made."""
    import PIL.ImageOps

    return PIL.ImageOps.contain(picture, (SHEET_CELL_SIDE, SHEET_CELL_SIDE))
