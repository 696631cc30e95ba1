"""What the pipeline returns."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput


@dataclass
class BackToFrontPipelineOutput(StableDiffusionPipelineOutput):
    """Stable Diffusion's output and the control pictures.

    Args:
        images (`list[PIL.Image.Image]`, `list[numpy.ndarray]`, `numpy.ndarray` or `torch.Tensor`):
            The generated fronts, `num_images_per_prompt` for each back, in the order of the backs, without the
            letterbox's padding. Arrays are `(N, H, W, 3)`, tensors `(N, 3, H, W)`, both in [0, 1]; where the sizes
            differ it is a list of `(H, W, 3)` or `(3, H, W)`. Latents are `(N, C, h, w)`, padding included.
        nsfw_content_detected (`list[bool]` or `None`):
            What the safety checker says of each image, or `None` without a safety checker.
        control_images (`list[PIL.Image.Image]`):
            The picture that entered the ControlNet, one for each back, letterboxed and, if so configured, mirrored;
            several parts (`canny+rgb`) and several ControlNets lie side by side. Where `latents` entered it is the
            picture they were made of.
    """

    images: list[PIL.Image.Image] | list[np.ndarray] | np.ndarray | list[torch.Tensor] | torch.Tensor
    nsfw_content_detected: list[bool] | None
    control_images: list[PIL.Image.Image]
