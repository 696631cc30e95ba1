"""Model classes."""

from .controlnet_backshan import BackshanControlNetModel, BackshanControlNetOutput

__all__ = ["BackshanControlNetModel", "BackshanControlNetOutput"]
