"""`BackToFrontPipeline`: Stable Diffusion with a ControlNet that sees the back of a person and draws the front."""

import contextlib
import inspect
import json
import math
import os
from collections.abc import Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ModelMixin,  # diffusers looks for it in the module that a component's class is loaded from: see load_config
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import is_peft_available
from diffusers.utils.torch_utils import is_compiled_module
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from ..conditioning import (
    CANNY_HIGH_THRESHOLD,
    CANNY_LOW_THRESHOLD,
    CONDITIONINGS,
    LATENTS,
    conditioning_channels,
    control_image,
    control_latents,
    control_picture,
    picture_latents,
)
from ..folder_check import check_folder, lone_variant, records_conditioning
from ..models.controlnet_backshan import DEFAULT_PROMPT, BackshanControlNetModel, check_count
from ..pictures import Letterbox, load_picture, pixels_to_decode
from ..publishing import Published, hub_in_words
from ..safetensors_only import SafetensorsAdapters, SafetensorsFile, with_safetensors
from ..sheets import picture_sheet
from .pipeline_output import BackToFrontPipelineOutput

__all__ = ["BackToFrontPipeline", "ModelMixin", "NotFiniteError"]

ARGUMENTS_PASSED_ON = frozenset(inspect.signature(StableDiffusionControlNetPipeline.__call__).parameters) | {
    "callback",
    "callback_steps",
}


class NotFiniteError(ArithmeticError):
    """A result holds NaN or infinite values; the message is one sentence that says what to do."""


class FiniteImageProcessor(VaeImageProcessor):
    """The parent's, which would show what is not finite as black."""

    def postprocess(self, image: torch.Tensor, *args, **kwargs):
        bad = sum(not each.isfinite().all() for each in image)
        if bad:
            raise NotFiniteError(
                f"{bad} of {len(image)} results hold NaN or infinite values:"
                " give a smaller guidance_scale, or load the pipeline in float32."
            )
        return super().postprocess(image, *args, **kwargs)


class BackToFrontPipeline(SafetensorsFile, SafetensorsAdapters, Published, StableDiffusionControlNetPipeline):
    """Generates the picture of a clothed person seen from the front from a picture of the same person's back.

    It is a [`~diffusers.StableDiffusionControlNetPipeline`] that makes its control picture itself. All that is
    documented there works: schedulers, LoRA, IP-Adapter, textual inversion, offloading, slicing, tiling. It is saved
    in the form of its parent, so that a saved folder also opens in `StableDiffusionControlNetPipeline` and
    `DiffusionPipeline`. To make one of these from this one with `from_pipe`, pass `controlnet=` along.

    Args:
        vae ([`~diffusers.AutoencoderKL`]): between pictures and latents.
        text_encoder (`CLIPTextModel`): encodes the prompt.
        tokenizer (`CLIPTokenizer`): splits the prompt into tokens.
        unet ([`~diffusers.UNet2DConditionModel`]): denoises the latents.
        controlnet ([`BackshanControlNetModel`]):
            Brings the back picture in, and records how. A stock [`~diffusers.ControlNetModel`], or a list of
            ControlNets, works too; each call must then say which `conditioning` enters it.
        scheduler ([`~diffusers.SchedulerMixin`]): any scheduler of Stable Diffusion.
        safety_checker (`StableDiffusionSafetyChecker`, *optional*): judges the generated images.
        feature_extractor (`CLIPImageProcessor`, *optional*): needed by the safety checker and by IP-Adapters.
        image_encoder (`CLIPVisionModelWithProjection`, *optional*): needed by IP-Adapters.
        requires_safety_checker (`bool`): whether to warn when there is no safety checker.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        controlnet: BackshanControlNetModel
        | ControlNetModel
        | list[ControlNetModel]
        | tuple[ControlNetModel]
        | MultiControlNetModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = False,
    ):
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        # every result passes through it, pictures and latents alike
        self.image_processor = FiniteImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True)
        self._encoded_prompt = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "BackToFrontPipeline":
        """Load a pipeline from a folder or a Hub repository, as `DiffusionPipeline.from_pretrained` does.

        A ControlNet whose config says what it reads becomes a [`BackshanControlNetModel`]. Two defaults differ from
        the parent's: every component comes in float32 unless `dtype` says otherwise (transformers would keep the type
        of the file), and only safetensors files are read.

        Raises:
            OSError: if a folder or a repository is no pipeline, lacks a file, has a damaged one, or has weights only
                as pickles, or a folder only in a variant that is not asked for; as
                [`~backshan_diffusers.hub.HubError`] if there is no such repository, or no way to it.
            ValueError: if `use_safetensors=False` is given.
        """
        kwargs = with_safetensors(kwargs)
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = torch.float32
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            check_folder(folder, set(kwargs))
            if kwargs.get("variant") is None and (variant := lone_variant(folder, set(kwargs))):
                raise OSError(f"{folder} holds its weights only in the variant {variant}: give variant={variant!r}.")
        return super().from_pretrained(os.fspath(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str | os.PathLike:
        """The parent's; but what a repository has is checked as a folder is, and what it lacks is one sentence."""
        revision = kwargs.get("revision")
        with hub_in_words(pretrained_model_name, revision, given=kwargs):
            folder = super().download(pretrained_model_name, **with_safetensors(kwargs))
        with hub_in_words(pretrained_model_name, revision, Path(folder)):
            check_folder(Path(folder), set(kwargs))
        return folder

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """The parent's; but where a ControlNet's own config says what it reads, our class is named to load it."""
        with hub_in_words(pretrained_model_name_or_path, kwargs.get("revision")):
            config = super().load_config(pretrained_model_name_or_path, **kwargs)
        file = Path(pretrained_model_name_or_path, "controlnet", BackshanControlNetModel.config_name)
        is_stock = isinstance(config, dict) and config.get("controlnet") == ["diffusers", ControlNetModel.__name__]
        if is_stock and file.is_file():
            own_config = json.loads(file.read_text(encoding="utf-8"))
            if records_conditioning(own_config):
                config["controlnet"] = [__name__, BackshanControlNetModel.__name__]
        return config

    def save_pretrained(self, save_directory: str | os.PathLike, safe_serialization: bool = True, *args, **kwargs):
        """As `DiffusionPipeline.save_pretrained`, in the form of the parent class and in safetensors only."""
        if not safe_serialization:
            raise ValueError("weights are saved as safetensors only: leave safe_serialization out.")
        super().save_pretrained(save_directory, True, *args, **kwargs)

    def to_json_string(self) -> str:
        """`model_index.json` in the stock form, which every diffusers user can open, without the folder of origin."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        config["_class_name"] = StableDiffusionControlNetPipeline.__name__
        if config["controlnet"][1] == BackshanControlNetModel.__name__:
            config["controlnet"] = ["diffusers", ControlNetModel.__name__]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def __call__(
        self,
        back_image: Any,
        prompt: str | list[str] | None = None,
        conditioning: str | list[str] | None = None,
        mirror: bool | list[bool] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        restore_size: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        **kwargs,
    ) -> BackToFrontPipelineOutput | tuple:
        """Generate fronts from backs.

        Args:
            back_image (`str`, `os.PathLike`, `PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor`, or a list of them):
                The backs, of any size and in all forms that [`~backshan_diffusers.pictures.load_picture`] reads; also
                an array `(N, H, W, C)` or a tensor `(N, C, H, W)`.
            prompt (`str` or `list[str]`, *optional*):
                One for all backs or one for each; one back may have several. By default the one the ControlNet
                records.
            conditioning (`str`, *optional*):
                What enters the ControlNet, one of `canny`, `rgb`, `canny+rgb` and `latents` (those of the pipeline's
                VAE). By default what the ControlNet records; required with a stock ControlNet. With several
                ControlNets a list with one for each is possible.
            mirror (`bool`, *optional*):
                Whether the back is flipped left-right for the ControlNet. By default what the ControlNet records, and
                `False` with a stock ControlNet. With several ControlNets a list with one for each is possible.
            height, width (`int`, *optional*):
                Side in px of the square on which pictures are generated. By default the one the ControlNet records, or
                the U-Net's with a stock ControlNet.
            num_inference_steps (`int`, *optional*):
                By default what the ControlNet records, and the parent's default with a stock ControlNet.
            guidance_scale (`float`, *optional*):
                By default what the ControlNet records, and the parent's default with a stock ControlNet.
            negative_prompt (`str` or `list[str]`, *optional*): what not to draw, one for all backs or one for each.
            num_images_per_prompt (`int`): number of fronts for each back.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor`, *optional*):
                `(1, tokens, width)` for all backs or `(N, tokens, width)`, in place of the prompts.
            restore_size (`bool`): whether the fronts are resized to the px of their backs.
            output_type (`str`): `pil`, `np`, `pt` or `latent`.
            return_dict (`bool`): whether to return an output object or the parent's `(images, nsfw_content_detected)`.
            kwargs: every other argument of [`~diffusers.StableDiffusionControlNetPipeline`], such as `generator`,
                `latents`, `controlnet_conditioning_scale`, `guess_mode`, `ip_adapter_image` or `callback_on_step_end`.

        Returns:
            [`BackToFrontPipelineOutput`]: the fronts have the aspect ratio of their backs.

        Raises:
            PictureError: if a back cannot be used.
            NotFiniteError: if a result holds NaN or infinite values.
            ValueError: if an argument does not fit the others or the ControlNet.
            TypeError: if an argument is unknown.
        """
        if isinstance(kwargs.get("generator"), tuple):  # of which diffusers knows lists only
            kwargs["generator"] = list(kwargs["generator"])
        self._check_arguments(kwargs, restore_size, output_type)
        check_count("num_images_per_prompt", num_images_per_prompt)
        if num_inference_steps is not None:
            check_count("num_inference_steps", num_inference_steps)
        if guidance_scale is not None and not (isinstance(guidance_scale, Real) and math.isfinite(guidance_scale)):
            raise ValueError(f"guidance_scale is {guidance_scale!r}: give a finite number, such as 3.0.")
        nets = self._nets()
        side = self._side(height, width)
        backs = [load_picture(back, pixels_to_decode(side, restore_size)) for back in _as_list(back_image)]
        count = _batch_size(len(backs), prompt, prompt_embeds)
        backs = backs * (count // len(backs))
        self._check_latents(kwargs.get("latents"), count * num_images_per_prompt, side)

        letterboxes = [Letterbox(back.size, side) for back in backs]
        squares = [letterbox.apply(back) for letterbox, back in zip(letterboxes, backs)]
        settings = self._control_settings(conditioning, mirror)
        pictures = [torch.stack([control_image(square, *setting) for square in squares]) for _, setting in settings]
        controls = [
            self._latents_as_control(each) if what == LATENTS else each for (what, _), each in zip(settings, pictures)
        ]

        if prompt is None and prompt_embeds is None:
            prompt = _recorded(nets[0], "default_prompt", DEFAULT_PROMPT)
        for name, value in {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}.items():
            value = _recorded(nets[0], f"default_{name}", None) if value is None else value
            if value is not None:  # else the parent's default
                kwargs[name] = value
        images, nsfw_content_detected = super().__call__(
            prompt=_for_each(prompt, count, "prompt"),
            image=controls if isinstance(self._controlnet(), MultiControlNetModel) else controls[0],
            negative_prompt=_for_each(negative_prompt, count, "negative_prompt"),
            num_images_per_prompt=num_images_per_prompt,
            prompt_embeds=_for_each(prompt_embeds, count, "prompt_embeds"),
            negative_prompt_embeds=_for_each(negative_prompt_embeds, count, "negative_prompt_embeds"),
            output_type=output_type,
            return_dict=False,
            **kwargs,
        )
        if output_type != "latent":
            fits = [letterbox for letterbox in letterboxes for _ in range(num_images_per_prompt)]
            images = _without_padding(images, fits, restore_size)
        if not return_dict:
            return images, nsfw_content_detected
        control_images = [
            picture_sheet(
                [[control_picture(net[i], setting[0]) for net, (_, setting) in zip(pictures, settings)]], gap=0
            )
            for i in range(count)
        ]
        return BackToFrontPipelineOutput(images, nsfw_content_detected, control_images)

    def encode_prompt(
        self,
        prompt,
        device,
        num_images_per_prompt,
        do_classifier_free_guidance,
        negative_prompt=None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ):
        """The parent's; the latest result is kept and given again while nothing that it depends on has changed."""
        self._check_clip_skip(clip_skip)
        arguments = (device, num_images_per_prompt, do_classifier_free_guidance)
        options = {"lora_scale": lora_scale, "clip_skip": clip_skip}
        state = self._text_encoder_state()
        if state is None or prompt is None or prompt_embeds is not None or negative_prompt_embeds is not None:
            with _text_model_is_the_encoder(self.text_encoder):
                return super().encode_prompt(
                    prompt, *arguments, negative_prompt, prompt_embeds, negative_prompt_embeds, **options
                )
        texts = [
            text for each in (prompt, negative_prompt or []) for text in ([each] if isinstance(each, str) else each)
        ]
        tokens = self.tokenizer(texts, truncation=True).input_ids
        key = json.dumps([prompt, negative_prompt, tokens, *map(str, arguments), options, state])
        if self._encoded_prompt is None or self._encoded_prompt[0] != key:
            with _text_model_is_the_encoder(self.text_encoder):
                self._encoded_prompt = key, super().encode_prompt(prompt, *arguments, negative_prompt, **options)
        # copies, because a callback may write into what it is given
        return tuple(embeds if embeds is None else embeds.clone() for embeds in self._encoded_prompt[1])

    def _text_encoder_state(self) -> list | None:
        """What tells one state of the text encoder from another, or `None` where its result must not be kept.

        Sums of the weights' bits notice what a version counter would miss: fused LoRAs, EMA copies, new embeddings,
        exchanged rows. They read each weight twice, which is cheap beside one denoising step.
        """
        encoder = self.text_encoder
        if encoder is None or encoder.training or torch.is_grad_enabled() or _has_adapters(encoder):
            return None
        weights = [weight.detach() for weight in encoder.parameters()]
        if any(weight.is_meta or type(weight) is not torch.Tensor for weight in weights):  # offloaded or quantised
            return None
        if torch.is_autocast_enabled(encoder.device.type):  # its result is rounded as that says
            return None
        sums = [_sums_of_bits(weight) for weight in weights]
        return torch.stack([each.cpu() for each in sums]).tolist()

    def _check_arguments(self, kwargs: dict[str, Any], restore_size: bool, output_type: str) -> None:
        if "image" in kwargs:
            raise TypeError(
                "this pipeline makes its control picture itself: give the photo as back_image, not as image."
            )
        unknown = sorted(kwargs.keys() - ARGUMENTS_PASSED_ON)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(unknown)}: see its documentation.")
        generator = kwargs.get("generator")
        generators = generator if isinstance(generator, list) else [generator]
        if not all(each is None or isinstance(each, torch.Generator) for each in generators):
            raise TypeError(f"generator is {generator!r}: give torch.Generator().manual_seed(0), or a list of such.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}: choose one of pil, np, pt, latent.")
        if restore_size and output_type == "latent":
            raise ValueError(
                "latents cannot be resized to a picture's size: drop restore_size or choose another output_type."
            )

    def _check_clip_skip(self, clip_skip: int | None) -> None:
        if clip_skip is None or self.text_encoder is None:
            return
        layers = self.text_encoder.config.num_hidden_layers
        if not (isinstance(clip_skip, Integral) and 0 <= clip_skip <= layers):
            raise ValueError(
                f"clip_skip is {clip_skip!r}: give a number from 0 to {layers}, the text encoder's layers."
            )

    def _check_latents(self, latents: torch.Tensor | None, count: int, side: int) -> None:
        size = side // self.vae_scale_factor
        expected = (count, self.unet.config.in_channels, size, size)
        if not isinstance(latents, torch.Tensor | None):
            raise TypeError(f"latents are of the type {type(latents).__name__}: give a torch.Tensor.")
        if latents is not None and tuple(latents.shape) != expected:
            raise ValueError(
                f"latents have the shape {tuple(latents.shape)}: give {expected}, one for each front of {side} px."
            )

    def _controlnet(self) -> ControlNetModel | MultiControlNetModel:
        return self.controlnet._orig_mod if is_compiled_module(self.controlnet) else self.controlnet

    def _nets(self) -> list[ControlNetModel]:
        controlnet = self._controlnet()
        return list(controlnet.nets) if isinstance(controlnet, MultiControlNetModel) else [controlnet]

    def _side(self, height: int | None, width: int | None) -> int:
        if height is None and width is None:
            side = _recorded(self._nets()[0], "image_size", None)
            return self._side_of_unet() if side is None else side
        side = height if height is not None else width
        is_side = isinstance(side, Integral) and side > 0 and side % self.vae_scale_factor == 0
        if not is_side or width not in (None, side):
            raise ValueError(
                f"pictures are generated on a square whose side is a multiple of {self.vae_scale_factor} px:"
                f" give such a height and the same width, not {height!r} and {width!r}."
            )
        return side

    def _side_of_unet(self) -> int:
        size = self.unet.config.sample_size  # may be missing, or height and width
        sides = {size} if isinstance(size, int) else set(size or ())
        if len(sides) != 1:
            raise ValueError("neither the ControlNet nor the U-Net records one side of its pictures: give height.")
        return sides.pop() * self.vae_scale_factor

    def _latents_as_control(self, pictures: torch.Tensor) -> torch.Tensor:
        """The control tensor `N x C x S x S` of `N x 3 x S x S` pictures in [0, 1]."""
        pixels = (pictures * 2 - 1).to(self._execution_device)
        return control_latents(picture_latents(pixels, self.vae), pictures.shape[-1])

    def _control_settings(self, conditioning, mirror) -> list[tuple[str, tuple[str, bool, int, int]]]:
        """What enters each ControlNet, and the arguments of `control_image` after the picture: for latents those of
        the picture that is encoded."""
        nets = self._nets()
        conditionings = conditioning if isinstance(conditioning, list | tuple) else [conditioning] * len(nets)
        mirrors = mirror if isinstance(mirror, list | tuple) else [mirror] * len(nets)
        if len(conditionings) != len(nets) or len(mirrors) != len(nets):
            raise ValueError(
                f"the pipeline has {len(nets)} ControlNets: give conditioning and mirror once or for each."
            )
        settings = []
        for net, what, flipped in zip(nets, conditionings, mirrors):
            what = _recorded(net, "conditioning", None) if what is None else what
            if what is None:
                raise ValueError(
                    f"a stock ControlNet does not say what enters it: pass conditioning as {', '.join(CONDITIONINGS)}."
                )
            channels = conditioning_channels(what, self.vae.config.latent_channels)
            if channels != net.config.conditioning_channels:
                raise ValueError(
                    f"this ControlNet takes {net.config.conditioning_channels} channels but {what} has {channels}:"
                    " choose another conditioning."
                )
            factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
            if factor != self.vae_scale_factor:
                raise ValueError(
                    f"this ControlNet reads pictures at 1/{factor} of their side and latents have"
                    f" 1/{self.vae_scale_factor}: make it with conditioning_embedding_out_channels of"
                    f" {self.vae_scale_factor.bit_length()} numbers."
                )
            flipped = _recorded(net, "mirror", False) if flipped is None else flipped
            if not isinstance(flipped, bool | np.bool_):
                raise ValueError(f"mirror is {flipped!r}: give True or False.")
            low = _recorded(net, "canny_low_threshold", CANNY_LOW_THRESHOLD)
            high = _recorded(net, "canny_high_threshold", CANNY_HIGH_THRESHOLD)
            settings.append((what, ("rgb" if what == LATENTS else what, flipped, low, high)))
        return settings


def _sums_of_bits(weight: torch.Tensor) -> torch.Tensor:
    """Two int64: of the sums of a weight's columns and of its rows, each multiplied by an odd number of its own."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = torch.atleast_2d(weight).flatten(0, -2).view(integers[weight.element_size()])
    weighted = []
    for dim in (0, 1):
        sums = bits.sum(dim, dtype=torch.int64)
        # cubes, because values in an arithmetic series would let exchanges cancel; they wrap around at 64 bits
        weighted.append((sums * torch.arange(1, 2 * len(sums), 2, device=sums.device) ** 3).sum())
    return torch.stack(weighted)


def _recorded(net: ControlNetModel, name: str, otherwise: Any) -> Any:
    # also where diffusers has opened one of ours in its stock class, as it does for a pipeline from a repository
    return net.config[name] if records_conditioning(net.config) else otherwise


@contextlib.contextmanager
def _text_model_is_the_encoder(encoder: torch.nn.Module | None) -> Iterator[None]:
    """For `clip_skip`, diffusers 0.42 looks for the last norm in `text_model`, a level that transformers 5 removed."""
    if encoder is None or hasattr(encoder, "text_model"):
        yield
        return
    object.__setattr__(encoder, "text_model", encoder)  # past torch, which would register a module within itself
    try:
        yield
    finally:
        object.__delattr__(encoder, "text_model")


def _has_adapters(module: torch.nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(layer, BaseTunerLayer) for layer in module.modules())


def _as_list(back_image: Any) -> list:
    is_batch = isinstance(back_image, np.ndarray | torch.Tensor) and back_image.ndim == 4
    backs = list(back_image) if is_batch or isinstance(back_image, list | tuple) else [back_image]
    if not backs:
        raise ValueError("back_image is empty: give at least one picture.")
    return backs


def _batch_size(backs: int, prompt: Any, prompt_embeds: torch.Tensor | None) -> int:
    """One back may have several prompts; otherwise there are as many results as backs."""
    if backs > 1:
        return backs
    if isinstance(prompt, list):
        return max(1, len(prompt))
    return 1 if prompt_embeds is None else len(prompt_embeds)


def _for_each(value: Any, count: int, name: str) -> Any:
    """`value` (a text, a list of texts, or embeddings) once for each of `count` backs."""
    if isinstance(value, str):
        return [value] * count
    if not isinstance(value, list | torch.Tensor) or len(value) == count:
        return value  # the parent refuses what is neither
    if isinstance(value, torch.Tensor) and len(value) == 1:
        return value.expand(count, -1, -1)
    raise ValueError(f"there are {len(value)} {name} for {count} backs: give one for all backs or one for each.")


def _without_padding(images: Any, letterboxes: list[Letterbox], restore_size: bool) -> Any:
    """Each image's content, of its own size; stacked if they are arrays or tensors of one size."""
    if isinstance(images, list):
        sizes = [letterbox.picture_size if restore_size else None for letterbox in letterboxes]
        return [letterbox.invert(image, size) for letterbox, image, size in zip(letterboxes, images, sizes)]
    if isinstance(images, np.ndarray):
        contents = _without_padding(torch.from_numpy(images).permute(0, 3, 1, 2), letterboxes, restore_size)
        if isinstance(contents, list):
            return [content.permute(1, 2, 0).numpy() for content in contents]
        return contents.permute(0, 2, 3, 1).numpy()
    contents = []
    for image, letterbox in zip(images, letterboxes):
        left, top, right, bottom = letterbox.box
        content = image[:, top:bottom, left:right]
        if restore_size:
            width, height = letterbox.picture_size
            content = (
                torch.nn.functional.interpolate(
                    content[None].float(), (height, width), mode="bicubic", antialias=True
                )[0]
                .clamp(0, 1)
                .to(image.dtype)
            )
        contents.append(content)
    return torch.stack(contents) if len({content.shape for content in contents}) == 1 else contents
