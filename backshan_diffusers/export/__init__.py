"""Models in forms that other tools read: the original ControlNet layout, and ONNX."""

from .onnx_folder import export_onnx
from .origin import ExportError, origin_of
from .original_layout import export_controlnet, load_stored_controlnet

__all__ = ["ExportError", "export_controlnet", "export_onnx", "load_stored_controlnet", "origin_of"]
