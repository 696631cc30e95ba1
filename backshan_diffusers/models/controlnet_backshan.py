"""`BackshanControlNetModel`: a ControlNet that knows which picture it reads and how."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from os import PathLike

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.controlnets.controlnet import ControlNetOutput

from ..conditioning import conditioning_channels as channels_of


@dataclass
class BackshanControlNetOutput(ControlNetOutput):
    """Residuals of one ControlNet pass, as the U-Net adds them.

    Args:
        down_block_res_samples (`tuple[torch.Tensor]`): one `B x C_i x H_i x W_i` tensor per skip connection.
        mid_block_res_sample (`torch.Tensor`): `B x C x H x W`, the middle block's residual.
    """

    def split(self, sizes: list[int]) -> list[BackshanControlNetOutput]:
        """Cut the batch into parts of `sizes` items; the inverse of running the parts as one batch."""
        downs = zip(*(residual.split(sizes) for residual in self.down_block_res_samples), strict=True)
        mids = self.mid_block_res_sample.split(sizes)
        return [BackshanControlNetOutput(tuple(down), mid) for down, mid in zip(downs, mids, strict=True)]


class BackshanControlNetModel(ControlNetModel):
    """ControlNet for back-to-front generation, with its way of reading a picture recorded in its config.

    Every argument of [`diffusers.ControlNetModel`] is accepted and means the same. A saved folder also opens in the
    stock class, which ignores the fields below.

    Args:
        conditioning (`str`, defaults to `"rgb"`): which control picture enters: `"canny"`, `"rgb"` or
            `"canny+rgb"`. It fixes `conditioning_channels` (3, 3 and 6).
        mirror (`bool`, defaults to `True`): whether the back picture is flipped left-right, which lays its
            silhouette on the front's.
        image_size (`int`, defaults to 512): side in pixels of the square picture the model was trained on.
        canny_low_threshold (`int`, defaults to 100): lower hysteresis threshold of the edge detector, 0 to 255.
        canny_high_threshold (`int`, defaults to 200): upper hysteresis threshold of the edge detector, 0 to 255.
        default_prompt (`str`): the prompt used where a call names none.
        default_guidance_scale (`float`, defaults to 7.5): guidance where a call names none; 1 switches it off.
        default_num_inference_steps (`int`, defaults to 50): denoising steps where a call names none.
    """

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
        canny_low_threshold: int = 100,
        canny_high_threshold: int = 200,
        default_prompt: str = "Front side of the person",
        default_guidance_scale: float = 7.5,
        default_num_inference_steps: int = 50,
    ):
        arguments = {name: value for name, value in locals().items() if name in _PARENT_ARGUMENTS}
        expected = channels_of(conditioning)
        if conditioning_channels not in (None, expected):
            raise ValueError(
                f"conditioning {conditioning!r} has {expected} channels, but conditioning_channels is"
                f" {conditioning_channels}: leave conditioning_channels out, or name the conditioning that fits."
            )
        arguments["conditioning_channels"] = expected
        super().__init__(**arguments)

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
            load_weights_from_unet (`bool`): copy the weights too, not the shape alone.
            conditioning (`str`): see the class; fixes the width of the condition embedding.
            recorded: any of the class's own config fields (`mirror`, `image_size`, ...).

        Returns:
            [`BackshanControlNetModel`] whose residuals are exactly zero until it is trained.
        """
        _check_recorded(recorded)
        stock = ControlNetModel.from_unet(
            unet,
            controlnet_conditioning_channel_order=controlnet_conditioning_channel_order,
            conditioning_embedding_out_channels=conditioning_embedding_out_channels,
            load_weights_from_unet=load_weights_from_unet,
            conditioning_channels=channels_of(conditioning),
        )
        return cls._from_stock(stock, conditioning=conditioning, **recorded)

    @classmethod
    def from_controlnet(
        cls,
        controlnet: ControlNetModel | str | PathLike,
        conditioning: str = "canny",
        load_kwargs: dict | None = None,
        **recorded,
    ) -> BackshanControlNetModel:
        """Take over a stock ControlNet, widening its condition embedding where `conditioning` has more channels.

        The old input channels keep their weights and the new ones start at zero, so a widened model computes what it
        computed before, whatever the new channels show, until it is trained.

        Args:
            controlnet: a loaded `ControlNetModel`, a Hub repo id, or a folder.
            conditioning (`str`): see the class. `"canny+rgb"` puts the old Canny channels first.
            load_kwargs (`dict`, *optional*): passed to `ControlNetModel.from_pretrained`, e.g. `revision`, `dtype`.
            recorded: any of the class's own config fields.

        Raises:
            ValueError: if the ControlNet has more condition channels than `conditioning`.
        """
        _check_recorded(recorded)
        if not isinstance(controlnet, ControlNetModel):
            controlnet = ControlNetModel.from_pretrained(controlnet, **(load_kwargs or {}))
        return cls._from_stock(controlnet, conditioning=conditioning, **recorded)

    @classmethod
    def _from_stock(cls, stock: ControlNetModel, conditioning: str, **recorded) -> BackshanControlNetModel:
        config = {name: value for name, value in stock.config.items() if name in _PARENT_ARGUMENTS}
        config["conditioning_channels"] = None
        if isinstance(stock, BackshanControlNetModel):
            recorded = {name: stock.config[name] for name in _OWN_ARGUMENTS} | recorded
        model = cls(**{**config, **recorded, "conditioning": conditioning}).to(stock.device)
        if stock.dtype != model.dtype:
            model.to(stock.dtype)
        weights = stock.state_dict()
        weights[_FIRST_CONV] = _widen(weights[_FIRST_CONV], model.config.conditioning_channels)
        model.load_state_dict(weights)
        return model

    def forward(self, *args, return_dict: bool = True, **kwargs) -> BackshanControlNetOutput | tuple:
        """As [`diffusers.ControlNetModel.forward`], with an output that can be split along the batch."""
        downs, mid = super().forward(*args, return_dict=False, **kwargs)
        return BackshanControlNetOutput(downs, mid) if return_dict else (downs, mid)

    @staticmethod
    def control_features(residuals: ControlNetOutput) -> torch.Tensor:
        """Flatten every residual of a pass into one vector for each item: the beta of the objective.

        Args:
            residuals (`ControlNetOutput`): what `forward` returned for `B` pictures.

        Returns:
            `torch.Tensor` of shape `B x D`, `D` the number of all residual values of one item.
        """
        every = (*residuals.down_block_res_samples, residuals.mid_block_res_sample)
        return torch.cat([residual.flatten(1) for residual in every], dim=1)


_FIRST_CONV = "controlnet_cond_embedding.conv_in.weight"
_PARENT_ARGUMENTS = tuple(inspect.signature(ControlNetModel.__init__).parameters)[1:]
_OWN_ARGUMENTS = tuple(
    name
    for name in inspect.signature(BackshanControlNetModel.__init__).parameters
    if name not in (*_PARENT_ARGUMENTS, "self")
)


def _check_recorded(recorded: dict) -> None:
    unknown = sorted(set(recorded) - set(_OWN_ARGUMENTS))
    if unknown:
        raise TypeError(f"{', '.join(unknown)}: no such config field; choose from {', '.join(_OWN_ARGUMENTS)}.")


def _widen(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Give an `out x in x k x k` kernel `channels` input channels; the new ones are zero."""
    out_channels, in_channels, *kernel = weight.shape
    if in_channels > channels:
        raise ValueError(
            f"the ControlNet reads {in_channels} condition channels, more than the {channels} asked for:"
            " choose a conditioning that is at least as wide."
        )
    return torch.cat([weight, weight.new_zeros(out_channels, channels - in_channels, *kernel)], dim=1)
