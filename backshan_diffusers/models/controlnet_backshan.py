"""`BackshanControlNetModel`: a ControlNet that knows which picture it reads and how."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from typing import Any, TypeVar

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.controlnets.controlnet import ControlNetOutput

from ..conditioning import (
    CANNY_HIGH_THRESHOLD,
    CANNY_LOW_THRESHOLD,
    CHANNELS_PER_PART,
    LATENTS,
    conditioning_parts,
)
from ..conditioning import conditioning_channels as channels_of
from ..folder_check import records_conditioning
from ..publishing import Published, hub_in_words
from ..safetensors_only import SafetensorsFile, with_safetensors

DEFAULT_PROMPT = "Front side of the person"
"""The prompt where neither a call nor a record names one."""

PerResidual = TypeVar("PerResidual")


@dataclass
class BackshanControlNetOutput(ControlNetOutput):
    """Residuals of one ControlNet pass, as the U-Net adds them.

    Args:
        down_block_res_samples (`tuple[torch.Tensor]`): one `B x C_i x H_i x W_i` tensor per skip connection.
        mid_block_res_sample (`torch.Tensor`): `B x C x H x W`, the middle block's residual.
        down_block_hidden_states (`tuple[torch.Tensor]`, *optional*): what enters the zero convolutions of the skip
            connections, of the same shapes but for the batch: all items are there, also those without residuals.
        mid_block_hidden_state (`torch.Tensor`, *optional*): the same for the middle block.
    """

    down_block_hidden_states: tuple[torch.Tensor, ...] | None = None
    mid_block_hidden_state: torch.Tensor | None = None

    def first(self, items: int) -> BackshanControlNetOutput:
        """The residuals of the first items of the batch."""
        downs = tuple(residual[:items] for residual in self.down_block_res_samples)
        return BackshanControlNetOutput(downs, self.mid_block_res_sample[:items])


class BackshanControlNetModel(SafetensorsFile, Published, ControlNetModel):
    """ControlNet for back-to-front generation, with its way of reading a picture recorded in its config.

    Every argument of [`diffusers.ControlNetModel`] is accepted and means the same. A saved folder also opens in the
    stock class, which ignores the fields below. To make one from a stock ControlNet, use [`from_controlnet`].

    Args:
        conditioning (`str`, defaults to `"rgb"`): what enters of the back picture: `"canny"`, `"rgb"`, `"canny+rgb"`
            or `"latents"`, those of the VAE. It fixes `conditioning_channels` (3, 3, 6 and `in_channels`).
        mirror (`bool`, defaults to `True`): whether the back picture is flipped left-right, which lays its
            silhouette on the front's.
        image_size (`int`, defaults to 512): side in pixels of the square picture the model was trained on.
        canny_low_threshold (`int`, defaults to 100): lower hysteresis threshold of the edge detector, in 8-bit grey
            levels of the gradient's absolute values in both directions added.
        canny_high_threshold (`int`, defaults to 200): the upper one, in the same unit.
        default_prompt (`str`): the prompt used where a call names none.
        default_guidance_scale (`float`, defaults to 7.5): guidance where a call names none; 1 switches it off.
        default_num_inference_steps (`int`, defaults to 50): denoising steps where a call names none.

    Raises:
        ValueError: if there is no such `conditioning`, or `conditioning_channels` does not fit it, if `image_size`
            cannot be halved as often as the condition embedding does, or if a recorded value is of another type or
            out of its range.
    """

    _repeated_blocks = UNet2DConditionModel._repeated_blocks
    """What `compile_repeated_blocks` compiles; the parent does not name it."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int | None = None,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        only_cross_attention: bool | tuple[bool] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        projection_class_embeddings_input_dim: int | None = None,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
        conditioning: str = "rgb",
        mirror: bool = True,
        image_size: int = 512,
        canny_low_threshold: int = CANNY_LOW_THRESHOLD,
        canny_high_threshold: int = CANNY_HIGH_THRESHOLD,
        default_prompt: str = DEFAULT_PROMPT,
        default_guidance_scale: float = 7.5,
        default_num_inference_steps: int = 50,
    ):
        arguments = {name: value for name, value in locals().items() if name in _PARENT_ARGUMENTS}
        expected = channels_of(conditioning, in_channels)
        if conditioning_channels not in (None, expected):
            raise ValueError(
                f"conditioning {conditioning!r} has {expected} channels, but conditioning_channels is"
                f" {conditioning_channels}: leave conditioning_channels out, or name the conditioning that fits."
            )
        arguments["conditioning_channels"] = expected
        check_count("image_size", image_size, int)  # NumPy's numbers cannot be written into a config
        if not conditioning_embedding_out_channels:
            raise ValueError(
                f"conditioning_embedding_out_channels is {conditioning_embedding_out_channels!r}: give the width of"
                " each level of the condition embedding."
            )
        shrinkage = 2 ** (len(conditioning_embedding_out_channels) - 1)
        if image_size % shrinkage:
            raise ValueError(
                f"image_size is {image_size}: give a multiple of {shrinkage}, by which the condition embedding shrinks"
                " pictures."
            )
        check_count("default_num_inference_steps", default_num_inference_steps, int)
        if not isinstance(mirror, bool):
            raise ValueError(f"mirror is {mirror!r}: give a truth value, True or False.")
        if not isinstance(default_prompt, str):
            raise ValueError(f"default_prompt is {default_prompt!r}: give a text.")
        _check_number("canny_low_threshold", canny_low_threshold)
        _check_number("canny_high_threshold", canny_high_threshold)
        _check_number("default_guidance_scale", default_guidance_scale)
        super().__init__(**arguments)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs) -> BackshanControlNetModel:
        """Load a ControlNet from a folder or a Hub repository, as `ModelMixin.from_pretrained` does.

        Unlike the parent's, it reads only safetensors files.

        Raises:
            OSError: if there is none, or it has its weights only as a pickle; as
                [`~backshan_diffusers.hub.HubError`] if it is not on the Hub, or there is no way to it.
            ValueError: if `use_safetensors=False` is given.
        """
        kwargs = with_safetensors(kwargs)
        with hub_in_words(pretrained_model_name_or_path, kwargs.get("revision")):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict, **kwargs):
        """The parent's part of `from_pretrained` and `from_config`; a stock ControlNet's config is refused here.

        Raises:
            ValueError: if the config does not record what the ControlNet reads, whatever else is passed; with a guess
                it would work, on the wrong picture.
        """
        if not records_conditioning(config_dict):
            raise ValueError(
                "the config does not say what the ControlNet reads, as a stock one's does not: take it over with"
                f" {cls.__name__}.from_controlnet, and give its conditioning there."
            )
        return super().extract_init_dict(config_dict, **kwargs)

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning: str = "rgb",
        **recorded,
    ) -> BackshanControlNetModel:
        """Copy a U-Net's encoder into a new ControlNet, as the parent does, and record how it reads pictures.

        Args:
            unet (`UNet2DConditionModel`): the U-Net whose encoder is copied; it is left as it is.
            conditioning_embedding_out_channels (`tuple[int, ...]`): of the condition embedding, which halves the
                picture's side between two of them. It has to shrink pictures as the U-Net's VAE does, of which the
                U-Net knows nothing: the default is for Stable Diffusion's 1/8; for `mini`, with 1/4, give 3 numbers.
            load_weights_from_unet (`bool`): copy the weights too, not the shape alone.
            conditioning (`str`): see the class; fixes the width of the condition embedding.
            recorded: any of the class's own config fields (`mirror`, `image_size`, ...).

        Returns:
            [`BackshanControlNetModel`] whose residuals are exactly zero until it is trained.

        Raises:
            TypeError: if a recorded field is unknown.
            ValueError: if a recorded value is one that the class refuses.
        """
        _check_recorded(recorded)
        stock = ControlNetModel.from_unet(
            unet,
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
            load_weights_from_unet=load_weights_from_unet,
            conditioning_channels=channels_of(conditioning, unet.config.in_channels),
        )
        return cls._take_over(stock, conditioning=conditioning, **recorded)

    @classmethod
    def from_controlnet(
        cls,
        controlnet: ControlNetModel | str | PathLike,
        conditioning: str | None = None,
        load_kwargs: dict | None = None,
        **recorded,
    ) -> BackshanControlNetModel:
        """Take over a stock ControlNet or one of ours, widening its condition embedding where `conditioning` is wider.

        The kernels stay with the parts of the condition that they read, and those of new parts start at zero: a
        widened model computes what it computed before, whatever the new parts show, until it is trained.

        Args:
            controlnet: a loaded `ControlNetModel`, a Hub repo id, or a folder. What one of ours records is kept.
            conditioning (`str`, *optional*): see the class. By default what the ControlNet records, and `"canny"` for
                a stock one. A stock one is taken to read what it begins with: 3 channels are Canny where `"canny"` or
                `"canny+rgb"` is given, and RGB where `"rgb"` is given. With `"latents"` one that is as wide as these
                is taken to read them, and of one that reads a picture the kernels for it are dropped: until it is
                trained it computes what it did for a black one, which for a Canny one has no edges.
            load_kwargs (`dict`, *optional*): passed to `from_pretrained`, e.g. `revision`, `subfolder`, `dtype`.
            recorded: any of the class's own config fields; they win over what the ControlNet records.

        Raises:
            OSError: if a ControlNet that is given by its name cannot be loaded.
            TypeError: if a recorded field is unknown.
            ValueError: if `conditioning` lacks a part of what the ControlNet records, does not begin with as many
                channels as a stock one reads, or is `"latents"` where a stock one reads neither these nor a picture;
                or if a recorded value is one that the class refuses.
        """
        _check_recorded(recorded)
        if not isinstance(controlnet, ControlNetModel):
            load_kwargs = with_safetensors(load_kwargs or {})
            is_ours = records_conditioning(cls.load_config(controlnet, **load_kwargs))
            controlnet = (cls if is_ours else ControlNetModel).from_pretrained(controlnet, **load_kwargs)
        record = {name: controlnet.config[name] for name in OWN_ARGUMENTS if name in controlnet.config}
        if conditioning is None:
            conditioning = record.get("conditioning", "canny")
        return cls._take_over(controlnet, **record | recorded | {"conditioning": conditioning})

    @classmethod
    def _take_over(cls, controlnet: ControlNetModel, conditioning: str, **recorded) -> BackshanControlNetModel:
        parts = conditioning_parts(conditioning)
        parts_read = _parts_read(controlnet, parts)
        config = {name: value for name, value in controlnet.config.items() if name in _PARENT_ARGUMENTS}
        config["conditioning_channels"] = None
        model = cls(**config, conditioning=conditioning, **recorded).to(controlnet.device)
        if controlnet.dtype != model.dtype:
            model.to(controlnet.dtype)
        weights = controlnet.state_dict()
        if controlnet.config.controlnet_conditioning_channel_order == "bgr":  # the parent turns all channels round
            parts, parts_read = parts[::-1], parts_read[::-1]
        weights[_FIRST_CONV] = _place(weights[_FIRST_CONV], parts_read, parts, controlnet.config.in_channels)
        model.load_state_dict(weights)
        return model

    def forward(
        self, *args, return_dict: bool = True, hidden_states_of: int | None = None, **kwargs
    ) -> BackshanControlNetOutput | tuple:
        """As [`diffusers.ControlNetModel.forward`], with an output that can be cut along the batch.

        Args:
            return_dict (`bool`): whether an output object comes back, not a tuple of both kinds of residuals.
            hidden_states_of (`int`, *optional*): also return what enters the zero convolutions, for every item, and
                hand only the first so many items on to them: the others have no residuals then, which saves their
                work. Needs `return_dict`.

        Raises:
            ValueError: if hidden states are wanted in a tuple.
        """
        if hidden_states_of is not None and not return_dict:
            raise ValueError("a tuple holds no hidden states: leave return_dict out, or hidden_states_of.")
        if hidden_states_of is None:
            downs, mid = super().forward(*args, return_dict=False, **kwargs)
            return BackshanControlNetOutput(downs, mid) if return_dict else (downs, mid)
        with self._overheard(hidden_states_of) as hidden_states:
            downs, mid = super().forward(*args, return_dict=False, **kwargs)
        return BackshanControlNetOutput(downs, mid, tuple(hidden_states[:-1]), hidden_states[-1])

    @contextmanager
    def _overheard(self, items: int) -> Iterator[list[torch.Tensor]]:
        """Within, what enters the zero convolutions is appended to the list, and only its first `items` go on."""
        hidden_states: list[torch.Tensor] = []

        def listen(_convolution, inputs):
            hidden_states.append(inputs[0])
            return (inputs[0][:items],)

        convolutions = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        handles = [convolution.register_forward_pre_hook(listen) for convolution in convolutions]
        try:
            yield hidden_states
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def control_features(
        output: ControlNetOutput,
        features: str = "all",
        pooled: bool = False,
        before_zero_convolutions: bool = False,
        mirrored: bool = False,
    ) -> torch.Tensor:
        """One vector for each item of a pass: the beta of the objective.

        Args:
            output (`ControlNetOutput`): what `forward` returned for `B` pictures.
            features (`str`): `"all"` residuals, that of the middle block (`"mid"`), or the last one on the way down
                (`"last_down"`).
            pooled (`bool`): average each residual over its positions.
            before_zero_convolutions (`bool`): take what enters the zero convolutions in place of the residuals;
                `output` has to hold it.
            mirrored (`bool`): flip each residual left-right.

        Returns:
            `torch.Tensor` of shape `B x D`, `D` the number of values, or if pooled of channels, of one item.

        Raises:
            ValueError: if there are no such features, or `output` does not hold them.
        """
        if before_zero_convolutions and getattr(output, "mid_block_hidden_state", None) is None:
            raise ValueError("the output holds no hidden states: call the model with hidden_states_of.")
        if before_zero_convolutions:
            downs, mid = output.down_block_hidden_states, output.mid_block_hidden_state
        else:
            downs, mid = output.down_block_res_samples, output.mid_block_res_sample
        chosen = chosen_features(features, downs, mid)
        if mirrored:
            chosen = tuple(each.flip(-1) for each in chosen)
        return torch.cat([each.mean(dim=(2, 3)) if pooled else each.flatten(1) for each in chosen], dim=1)


def chosen_features(features: str, downs: tuple[PerResidual, ...], mid: PerResidual) -> tuple[PerResidual, ...]:
    """Of what there is for each residual, what belongs to those that are compared.

    Args:
        features (`str`): as in [`~BackshanControlNetModel.control_features`].
        downs (`tuple`): for the residuals on the way down.
        mid: for that of the middle block.

    Raises:
        ValueError: if there are no such features.
    """
    choices = {"all": (*downs, mid), "mid": (mid,), "last_down": downs[-1:]}
    if features not in choices:
        raise ValueError(f"features is {features!r}: choose one of {', '.join(choices)}.")
    return choices[features]


_FIRST_CONV = "controlnet_cond_embedding.conv_in.weight"
_PARENT_ARGUMENTS = tuple(inspect.signature(ControlNetModel.__init__).parameters)[1:]
OWN_ARGUMENTS = tuple(
    name
    for name in inspect.signature(BackshanControlNetModel.__init__).parameters
    if name not in (*_PARENT_ARGUMENTS, "self")
)
"""What the class records beyond its parent: how it reads a picture, and the defaults of a call."""


def _check_recorded(recorded: dict) -> None:
    unknown = sorted(set(recorded) - set(OWN_ARGUMENTS))
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no such config field; choose from {', '.join(OWN_ARGUMENTS)}.")


def check_count(name: str, value: Any, kind: type = Integral) -> None:
    """Refuse what is no number of things, or not of this kind, with a `ValueError` that names it."""
    if not isinstance(value, kind) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least 1.")


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}: give a number of at least 0.")


def _parts_read(controlnet: ControlNetModel, parts: list[str]) -> list[str]:
    """The parts of a condition that a ControlNet reads: those it records, or else as many of `parts` as it is wide."""
    wanted, channels = "+".join(parts), controlnet.config.conditioning_channels
    if records_conditioning(controlnet.config):
        parts_read = conditioning_parts(controlnet.config.conditioning)
        if not set(parts_read) <= set(parts):
            raise ValueError(
                f"the ControlNet reads {controlnet.config.conditioning}, which is not all in {wanted}:"
                " choose a conditioning with every part of it."
            )
        return parts_read
    if parts == [LATENTS]:
        latent_channels = controlnet.config.in_channels
        if channels not in (latent_channels, CHANNELS_PER_PART):
            raise ValueError(
                f"the ControlNet reads {channels} condition channels and latents have {latent_channels}: give one that"
                f" reads as many, or {CHANNELS_PER_PART}, a picture's."
            )
        return parts if channels == latent_channels else ["rgb"]
    parts_read = parts[: channels // CHANNELS_PER_PART]
    if channels != CHANNELS_PER_PART * len(parts_read):
        raise ValueError(
            f"the ControlNet reads {channels} condition channels, and {wanted} has {CHANNELS_PER_PART * len(parts)}"
            f" in parts of {CHANNELS_PER_PART}: choose a conditioning that begins with what it reads."
        )
    return parts_read


def _place(weight: torch.Tensor, parts_read: list[str], parts: list[str], latent_channels: int) -> torch.Tensor:
    """The kernels `out x in x k x k` of `parts_read`, laid where these stand among `parts`; the others' are zero."""
    placed = {
        part: weight.new_zeros(len(weight), channels_of(part, latent_channels), *weight.shape[2:]) for part in parts
    }
    kernels = zip(parts_read, weight.chunk(len(parts_read), dim=1), strict=True)
    placed |= {part: kernel for part, kernel in kernels if part in placed}
    return torch.cat(list(placed.values()), dim=1)
