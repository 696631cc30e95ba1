"""Front views from back views: a ControlNet, a pipeline, a loss and paired data, in the manner of diffusers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from . import no_telemetry

__version__ = "0.1.0"

MINI = str(Path(__file__).parent / "weights" / "mini")
"""Folder of the embedded pipeline, trained on drawn pictures; `BackToFrontPipeline.from_pretrained(MINI)` opens it."""

_HOME_OF = {
    "BackToFrontPipeline": "pipelines",
    "BackToFrontPipelineOutput": "pipelines",
    "BackshanControlNetModel": "models",
    "BackshanControlNetOutput": "models",
}

__all__ = ["MINI", "__version__", *_HOME_OF]

if TYPE_CHECKING:
    from .models import BackshanControlNetModel, BackshanControlNetOutput
    from .pipelines import BackToFrontPipeline, BackToFrontPipelineOutput


def __getattr__(name: str):
    """Import a public class when it is first asked for: torch and diffusers take seconds."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
