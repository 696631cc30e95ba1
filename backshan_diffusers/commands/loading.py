"""The model of a command, and the device and the type it is loaded to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .exits import UnusableArgumentError
from .messages import as_utf8, first_sentence, quiet_hub, report

if TYPE_CHECKING:
    import torch

    from .. import BackToFrontPipeline
    from ..hub import Model


def device_and_dtype(device_name: str | None, dtype_name: str) -> tuple[torch.device, torch.dtype]:
    """What `--device` and `--dtype` stand for; by default the accelerator, if there is one.

    Raises:
        UnusableArgumentError: if there is no such device here.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(device_name) if device_name is not None else accelerator or torch.device("cpu")
    except RuntimeError as error:
        raise UnusableArgumentError(f"there is no device {device_name!r}: give cpu, cuda or mps.") from error
    here = {"cpu": 1} | ({accelerator.type: torch.accelerator.device_count()} if accelerator else {})
    if (device.index or 0) >= here.get(device.type, 0):
        raise UnusableArgumentError(f"the device {device_name} is not on this machine: give {' or '.join(here)}.")
    return device, getattr(torch, dtype_name)


def find_model(model: str) -> Model:
    """Where the model of a command lies: the embedded `mini`, a folder, or a Hub repository; which, is said.

    Raises:
        UnusableArgumentError: if there is no such model.
    """
    from .. import hub

    try:
        with quiet_hub():  # and not quiet_libraries, with which transformers takes the bar of a download away
            found = hub.find_model(model)
    except hub.HubError as error:
        raise UnusableArgumentError(str(error)) from error
    if as_utf8(model) != model:
        raise UnusableArgumentError(
            f"the name of the model {model} is not in UTF-8, and its files cannot be opened by another: rename it."
        )
    if found.is_choice:
        report(f"the model is {found.origin}.")
    return found


def load_pipeline(model: str, found: Model, device: torch.device, dtype: torch.dtype) -> BackToFrontPipeline:
    """The pipeline of a command's model, as it was called and as it was found.

    Raises:
        UnusableArgumentError: if it cannot be loaded.
    """
    from .. import BackshanControlNetModel, BackToFrontPipeline
    from ..folder_check import ADAPTERS, find_damage, lone_variant, refuse_random_encoders

    try:
        # whether a folder has its weights in a variant alone, a user of the command need not know
        variant = lone_variant(found.folder)
        pipeline = BackToFrontPipeline.from_pretrained(found.folder, dtype=dtype, variant=variant).to(device)
        refuse_random_encoders(found.folder)
        if (found.folder / ADAPTERS).exists():  # a part of what the folder was trained to do
            pipeline.load_lora_weights(found.folder)
    except Exception as error:  # damaged files make the readers raise nearly anything
        reason = (None if isinstance(error, OSError) else find_damage(found.folder)) or first_sentence(error)
        raise UnusableArgumentError(f"the model {model} cannot be loaded: {reason}") from error
    if not isinstance(pipeline.controlnet, BackshanControlNetModel):
        raise UnusableArgumentError(
            f"the ControlNet of {model} does not record how it reads a picture: give a model made by this package."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
