"""`backshan export`: a model in a form that other tools read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .exits import DONE, SOME_FAILED, UnusableArgumentError
from .loading import find_model, load_pipeline
from .messages import first_sentence, quiet_libraries, report, say
from .outputs import check_writable


def add_export(commands) -> None:
    """Add the subcommand to the `commands` of a parser."""
    parser = commands.add_parser(
        "export",
        allow_abbrev=False,
        help="write a model in a form that other tools read",
        description="Writes the ControlNet as one .safetensors file in the original key layout, which Stable "
        "Diffusion web UIs and ComfyUI load, or the whole pipeline as a folder of ONNX files. "
        "What this command wrote before is replaced; anything else is left alone.",
        epilog="exit codes: 0 done, 1 the disk is full, 2 unusable arguments, 130 interrupted",
    )
    parser.set_defaults(run=export)
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="folder of a pipeline or, for controlnet, of a ControlNet alone; a Hub repo id; or mini",
    )
    add("-o", "--out", required=True, metavar="OUT", help="NAME.safetensors for controlnet, a folder for onnx")
    add("--format", required=True, choices=("controlnet", "onnx"), help="what to write")


def export(options: argparse.Namespace) -> int:
    """`backshan export`: nothing is written under its name before all of it is there."""
    import torch

    from ..export import ExportError, export_controlnet, export_onnx, load_stored_controlnet, origin_of
    from ..files import DiskFullError

    out = _checked_target(options)
    found = find_model(options.model)
    with quiet_libraries():
        try:
            origin = origin_of(found.folder, found.repo_id)
            if options.format == "controlnet":
                export_controlnet(load_stored_controlnet(found.folder), out, origin)
            else:
                pipeline = load_pipeline(options.model, found, torch.device("cpu"), torch.float32)
                export_onnx(pipeline, out, origin)
        except DiskFullError as error:
            report(str(error))
            return SOME_FAILED
        except (ExportError, OSError) as error:
            raise UnusableArgumentError(first_sentence(error)) from error
    summary = f"the model was written to {out}"
    if not say(summary, sys.stdout):
        report(f"{summary}.")
    return DONE


def _checked_target(options: argparse.Namespace) -> Path:
    """Where the model goes, judged before it is sought, which may be a long download.

    Raises:
        UnusableArgumentError: if it cannot be written there.
    """
    from ..export import ExportError, onnx_folder, original_layout

    if not options.out:
        raise UnusableArgumentError("--out is empty: give a name for what is written.")
    out = Path(options.out)
    check_writable(out.parent, [out])
    try:
        (original_layout if options.format == "controlnet" else onnx_folder).check_target(out)
    except ExportError as error:
        raise UnusableArgumentError(first_sentence(error)) from error
    return out
