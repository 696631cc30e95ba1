"""`BackToFrontPipeline`: real classes at tiny size, compared with the stock pipeline and with plain NumPy."""

import functools
import inspect
import json
import warnings

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    MultiControlNetModel,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tiny import tiny_autoencoder, tiny_ip_adapter, tiny_pipeline
from transformers import CLIPConfig, CLIPImageProcessor

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline, BackToFrontPipelineOutput
from backshan_diffusers.pictures import PictureError, load_picture
from backshan_diffusers.pipelines import NotFiniteError

SIDE = 64


@pytest.fixture
def pipe():
    return tiny_pipeline()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photo(width=50, height=80, seed=0):
    """A soft asymmetric picture with noise."""
    generator = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), generator.integers(120, 256, 3), np.uint8)
    cv2.rectangle(
        pixels, (width // 8, height // 6), (width // 2, height - 8), generator.integers(0, 255, 3).tolist(), -1
    )
    cv2.circle(pixels, (2 * width // 3, height // 3), width // 6, generator.integers(0, 255, 3).tolist(), -1)
    return PIL.Image.fromarray((pixels * 0.9 + generator.integers(0, 25, pixels.shape)).astype(np.uint8))


def entering(pipe, *args, **kwargs):
    """The condition that reaches the ControlNet in the first step of a call."""
    seen = []
    hook = pipe.controlnet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["controlnet_cond"]), with_kwargs=True
    )
    try:
        pipe(*args, **({"num_inference_steps": 1, "generator": seeded()} | kwargs))
    finally:
        hook.remove()
    return seen[0]


def stock_of(pipe):
    """The stock pipeline with the same components."""
    return StableDiffusionControlNetPipeline(**pipe.components, requires_safety_checker=False)


def letterboxed(picture):
    """The picture on its square, and the content's box, written down a second time."""
    width, height = picture.size
    longer = max(width, height)
    size = (int(width * SIDE / longer + 0.5), int(height * SIDE / longer + 0.5))
    content = np.asarray(picture.resize(size, PIL.Image.Resampling.LANCZOS))
    ring = np.concatenate([content[0], content[-1], content[1:-1, 0], content[1:-1, -1]])
    square = np.tile(np.rint(np.median(ring, axis=0)).astype(np.uint8), (SIDE, SIDE, 1))
    left, top = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    square[top : top + size[1], left : left + size[0]] = content
    return square, (slice(top, top + size[1]), slice(left, left + size[0]))


def canny(pixels, low=100, high=200):
    return cv2.Canny(np.ascontiguousarray(pixels), low, high)[:, :, None].repeat(3, axis=2)


def as_pixels(images):
    return [np.asarray(image).astype(int) for image in images]


# what goes in


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("conditioning", ["canny", "rgb", "canny+rgb"])
def test_the_recorded_control_picture_enters(conditioning, mirror):
    pipe = tiny_pipeline(conditioning, mirror=mirror, canny_low_threshold=60, canny_high_threshold=150)
    back = PIL.Image.fromarray(np.random.default_rng(0).integers(80, 140, (80, 50, 3), dtype=np.uint8))
    square, _ = letterboxed(back)
    square = square[:, ::-1] if mirror else square
    parts = {"canny": canny(square, 60, 150), "rgb": square}
    for thresholds in ((100, 150), (60, 200)):
        assert not np.array_equal(parts["canny"], canny(square, *thresholds))
    expected = np.concatenate([parts[part] for part in conditioning.split("+")], axis=2).transpose(2, 0, 1) / 255
    entered = entering(pipe, back)
    assert entered.shape == (1, *expected.shape) and entered.dtype == torch.float32
    np.testing.assert_allclose(entered[0].numpy(), expected, atol=1e-6)

    shown = pipe(back, num_inference_steps=1).control_images
    assert len(shown) == 1
    beside = np.concatenate([parts[part] for part in conditioning.split("+")], axis=1)
    np.testing.assert_array_equal(np.asarray(shown[0]), beside)


def latents_entering(pipe, *backs, mirror=True):
    """The control tensor of backs for a ControlNet that reads latents, written down a second time."""
    squares = np.stack([letterboxed(back)[0][:, ::-1] if mirror else letterboxed(back)[0] for back in backs])
    pixels = torch.from_numpy(squares).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    return torch.from_numpy(np.kron(latents.numpy(), np.ones((8, 8), np.float32)))


@pytest.mark.parametrize("mirror", [True, False])
def test_the_latents_of_the_back_enter(mirror):
    pipe = tiny_pipeline("latents", mirror=mirror)
    back = photo()
    expected = latents_entering(pipe, back, mirror=mirror)
    assert expected.std(dim=(2, 3)).min() > 0.01
    entered = entering(pipe, back)
    assert entered.shape == (1, 4, SIDE, SIDE) and entered.dtype == torch.float32
    torch.testing.assert_close(entered, expected, rtol=0, atol=1e-5)
    shown = pipe(back, num_inference_steps=1).control_images
    square, _ = letterboxed(back)
    assert len(shown) == 1
    np.testing.assert_array_equal(np.asarray(shown[0]), square[:, ::-1] if mirror else square)


def test_the_latents_of_several_backs_enter():
    pipe = tiny_pipeline("latents")
    backs = [photo(), photo(80, 50, 1)]
    one, other = latents_entering(pipe, *backs)
    several = {"num_images_per_prompt": 2, "guidance_scale": 3.0}
    for guess_mode, expected in ((False, [one, one, other, other] * 2), (True, [one, one, other, other])):
        entered = entering(pipe, backs, guess_mode=guess_mode, **several)
        torch.testing.assert_close(entered, torch.stack(expected), rtol=0, atol=1e-5)
    shown = pipe(backs, num_inference_steps=1, **several).control_images
    np.testing.assert_array_equal(np.asarray(shown[1]), letterboxed(backs[1])[0][:, ::-1])
    entered = entering(pipe, backs[0], prompt=["one", "two"])
    torch.testing.assert_close(entered, torch.stack([one, one]), rtol=0, atol=1e-5)
    assert entering(pipe, backs[0], height=128).shape == (1, 4, 128, 128)


def test_latents_enter_an_offloaded_and_a_half_precise_pipeline():
    pipe = tiny_pipeline("latents")
    expected = latents_entering(pipe, photo())
    pipe.enable_model_cpu_offload(device="cuda" if torch.cuda.is_available() else "cpu")
    for _ in range(2):
        torch.testing.assert_close(entering(pipe, photo()).cpu(), expected, rtol=0, atol=1e-4)
    pipe.remove_all_hooks()
    pipe.to("cpu", torch.bfloat16)
    entered = entering(pipe, photo())
    assert entered.dtype == torch.bfloat16
    torch.testing.assert_close(entered.float(), expected, rtol=0, atol=0.1)


def test_latents_are_made_where_an_offloaded_autoencoder_computes():
    pipe = tiny_pipeline("latents")
    cpu_offload_with_hook(pipe.vae, torch.device("meta"))  # a device beside the CPU that every machine has
    assert pipe._latents_as_control(torch.rand(1, 3, SIDE, SIDE)).device.type == "meta"
    assert pipe.vae.device.type == "meta"


def test_the_latents_of_a_tiny_autoencoder_enter():
    pipe = tiny_pipeline("latents")
    pipe.vae = tiny_autoencoder().eval()
    square, _ = letterboxed(photo())
    pixels = torch.from_numpy(square[:, ::-1].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(pixels).latents
    expected = torch.from_numpy(np.kron(latents.numpy(), np.ones((8, 8), np.float32)))
    torch.testing.assert_close(entering(pipe, photo()), expected, rtol=0, atol=1e-5)


def test_the_stock_pipeline_takes_latents_made_by_hand(tmp_path):
    pipe = tiny_pipeline("latents")
    pipe.save_pretrained(tmp_path)
    given = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    expected = pipe(photo(), generator=seeded(), **given).images
    stock = StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    control = latents_entering(pipe, photo())
    found = stock("Front side of the person", control, generator=seeded(), **given).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    blind = stock("Front side of the person", 0 * control, generator=seeded(), **given).images
    assert (blind - expected).abs().max() > 0.01
    assert BackToFrontPipeline.from_pretrained(tmp_path).controlnet.config.conditioning == "latents"


def test_an_argument_wins_over_what_is_recorded():
    pipe = tiny_pipeline("rgb", mirror=True)
    square, _ = letterboxed(photo())
    entered = entering(pipe, photo(), mirror=False)
    np.testing.assert_allclose(entered[0].numpy(), square.transpose(2, 0, 1) / 255, atol=1e-6)
    entered = entering(pipe, photo(), conditioning="canny")
    np.testing.assert_allclose(entered[0].numpy(), canny(square[:, ::-1]).transpose(2, 0, 1) / 255, atol=1e-6)


def test_every_kind_of_source(pipe, tmp_path):
    picture = photo()
    picture.save(tmp_path / "back.png")
    pixels = np.asarray(picture)
    expected = entering(pipe, picture)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for source in (tmp_path / "back.png", str(tmp_path / "back.png"), pixels, pixels / 255, tensor, tensor[None]):
        assert torch.equal(entering(pipe, source), expected)
        assert torch.equal(entering(pipe, [source]), expected)
    for batch in (pixels[None].repeat(2, 0), torch.stack([tensor, tensor]), [picture, pixels], (picture, tensor)):
        assert torch.equal(entering(pipe, batch), torch.cat([expected, expected]))


def test_a_large_photo_is_not_decoded_in_full(pipe, tmp_path):
    picture = photo(800, 1200)
    picture.save(tmp_path / "large.jpg", quality=95)
    result = pipe(tmp_path / "large.jpg", num_inference_steps=1)
    assert result.images[0].size == (43, 64)
    control = np.asarray(result.control_images[0])[:, ::-1]
    assert np.abs(control.astype(int) - letterboxed(picture)[0]).mean() < 3
    fraction = load_picture(tmp_path / "large.jpg", enough_pixels=4 * SIDE)
    assert fraction.size == (200, 300)
    np.testing.assert_array_equal(control, letterboxed(fraction)[0])
    assert not np.array_equal(control, letterboxed(load_picture(tmp_path / "large.jpg"))[0])
    assert pipe(tmp_path / "large.jpg", num_inference_steps=1, restore_size=True).images[0].size == (800, 1200)


# what comes out


@pytest.mark.parametrize("size", [(50, 80), (80, 50), (64, 64), (33, 97)])
def test_the_result_is_the_stock_pipelines_without_the_padding(pipe, size):
    back = photo(*size)
    square, (rows, columns) = letterboxed(back)
    control = torch.from_numpy(np.ascontiguousarray(square[:, ::-1])).permute(2, 0, 1)[None] / 255
    given = {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": "blurry"}
    stock = stock_of(pipe)
    stock.set_progress_bar_config(disable=True)
    for output_type in ("pil", "np", "pt", "latent"):
        expected = stock(
            "Front side of the person", control, output_type=output_type, generator=seeded(3), **given
        ).images
        found = pipe(back, output_type=output_type, generator=seeded(3), **given).images
        if output_type == "pil":
            assert isinstance(found, list) and found[0].mode == "RGB"
            expected, found = np.asarray(expected[0])[rows, columns], np.asarray(found[0])
        elif output_type == "np":
            assert isinstance(found, np.ndarray)
            expected = expected[:, rows, columns]
        elif output_type == "pt":
            expected, found = expected[:, :, rows, columns].numpy(), found.numpy()
        np.testing.assert_array_equal(found, expected)


def test_aspect_ratio_and_restored_size(pipe):
    back = photo(150, 100)
    assert pipe(back).images[0].size == (64, 43)
    plain = pipe(back, generator=seeded()).images[0]
    restored = pipe(back, generator=seeded(), restore_size=True).images[0]
    assert restored.size == (150, 100)
    expected = plain.resize((150, 100), PIL.Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(restored), np.asarray(expected))
    array = pipe(back, generator=seeded(), restore_size=True, output_type="np").images
    tensor = pipe(back, generator=seeded(), restore_size=True, output_type="pt").images
    assert array.shape == (1, 100, 150, 3) and tensor.shape == (1, 3, 100, 150)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert array.min() >= 0 and array.max() <= 1
    assert np.abs(array[0] * 255 - np.asarray(expected)).mean() < 4


def test_a_restored_size_that_is_smaller_is_antialiased(pipe):
    plain = pipe(photo(32, 20), generator=seeded()).images[0]
    restored = pipe(photo(32, 20), generator=seeded(), restore_size=True, output_type="np").images[0]
    assert plain.size == (64, 40) and restored.shape == (20, 32, 3)
    expected = np.asarray(plain.resize((32, 20), PIL.Image.Resampling.BICUBIC))
    assert np.abs(restored * 255 - expected).max() < 3
    assert np.abs(np.asarray(plain.resize((32, 20), PIL.Image.Resampling.NEAREST)) - expected.astype(int)).max() > 9


def test_mixed_sizes_in_one_batch(pipe):
    backs = [photo(50, 80, 0), photo(80, 50, 1), photo(50, 80, 2)]
    result = pipe(backs)
    assert [image.size for image in result.images] == [(40, 64), (64, 40), (40, 64)]
    for shown, back in zip(result.control_images, backs):
        np.testing.assert_array_equal(np.asarray(shown), letterboxed(back)[0][:, ::-1])
    arrays = pipe(backs, output_type="np").images
    assert isinstance(arrays, list) and [a.shape for a in arrays] == [(64, 40, 3), (40, 64, 3), (64, 40, 3)]
    tensors = pipe(backs, output_type="pt").images
    assert isinstance(tensors, list) and [tuple(t.shape) for t in tensors] == [(3, 64, 40), (3, 40, 64), (3, 64, 40)]
    assert pipe(backs[::2], output_type="np").images.shape == (2, 64, 40, 3)
    assert [image.size for image in pipe(backs, restore_size=True).images] == [back.size for back in backs]
    assert pipe(backs, output_type="latent").images.shape == (3, 4, 8, 8)


def test_same_seed_same_result(pipe):
    first, again, other = (pipe(photo(), generator=seeded(seed)).images[0] for seed in (1, 1, 2))
    assert np.array_equal(np.asarray(first), np.asarray(again)) and not np.array_equal(
        np.asarray(first), np.asarray(other)
    )


def test_the_back_matters(pipe):
    first, other = (pipe(photo(seed=seed), generator=seeded(), output_type="latent").images for seed in (1, 2))
    assert (first - other).abs().max() > 1e-4


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_batch_equals_its_items(pipe, guidance_scale):
    backs = [photo(50, 80, 0), photo(80, 50, 1), photo(64, 64, 2)]
    given = {"guidance_scale": guidance_scale, "output_type": "pt", "negative_prompt": "blurry"}
    together = pipe(backs, generator=[seeded(i) for i in range(3)], **given).images
    for i, back in enumerate(backs):
        alone = pipe(back, generator=seeded(i), **given).images[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=2e-5)


def test_several_images_for_each_back(pipe):
    backs = [photo(50, 80, 0), photo(80, 50, 1)]
    result = pipe(backs, num_images_per_prompt=2, generator=[seeded(i) for i in range(4)], guidance_scale=3.0)
    assert [image.size for image in result.images] == [(40, 64), (40, 64), (64, 40), (64, 40)]
    assert len(result.control_images) == 2
    for i, image in enumerate(result.images):
        alone = pipe(backs[i // 2], generator=seeded(i), guidance_scale=3.0).images[0]
        assert np.abs(np.asarray(image).astype(int) - np.asarray(alone)).max() <= 1


def test_results_are_processed_as_by_the_stock_pipeline(pipe):
    assert pipe.image_processor.config == stock_of(pipe).image_processor.config


def test_a_kept_prompt_serves_no_other_number_of_images(pipe):
    fresh, kept = tiny_pipeline(), {"num_images_per_prompt": 2, "guidance_scale": 3.0, "output_type": "latent"}
    for count in (1, 2):
        found = pipe(photo(), generator=seeded(), **kept | {"num_images_per_prompt": count}).images
    assert torch.equal(found, fresh(photo(), generator=seeded(), **kept).images)


def test_output_class_and_tuple(pipe):
    result = pipe(photo(), generator=seeded())
    assert isinstance(result, BackToFrontPipelineOutput) and isinstance(result, StableDiffusionPipelineOutput)
    assert result.nsfw_content_detected is None and result[0] is result.images
    images, nsfw = pipe(photo(), generator=seeded(), return_dict=False)
    assert nsfw is None and np.array_equal(np.asarray(images[0]), np.asarray(result.images[0]))


# prompts and defaults


def test_recorded_defaults_are_used_and_can_be_overridden():
    pipe = tiny_pipeline(
        default_prompt="seen from the front", default_guidance_scale=4.0, default_num_inference_steps=2
    )
    steps = []
    given = {
        "generator": seeded(),
        "callback_on_step_end": lambda pipe, i, t, state: steps.append(int(t)) or state,
        "output_type": "latent",
    }
    by_default = pipe(photo(), **given).images
    assert len(steps) == 2 and pipe.guidance_scale == 4.0
    pipe(photo(), guidance_scale=0.0)
    assert pipe.guidance_scale == 0.0
    explicit = {"prompt": "seen from the front", "guidance_scale": 4.0, "num_inference_steps": 2}
    for changed in ({}, {"prompt": "a cat"}, {"guidance_scale": 2.0}, {"num_inference_steps": 3}):
        given["generator"] = seeded()
        same = torch.equal(pipe(photo(), **given, **explicit | changed).images, by_default)
        assert same == (not changed), changed


def test_one_back_with_several_prompts_and_a_prompt_for_each_back(pipe):
    prompts = ["a red shirt", "a blue coat"]
    given = {"output_type": "latent", "guidance_scale": 2.0, "negative_prompt": ["dark", "bright"]}
    together = pipe(photo(), prompts, generator=[seeded(0), seeded(0)], **given)
    assert len(together.control_images) == 2
    pair = pipe([photo(), photo()], prompts, generator=[seeded(0), seeded(0)], **given).images
    for i, prompt in enumerate(prompts):
        alone = pipe(photo(), prompt, generator=seeded(0), **given | {"negative_prompt": given["negative_prompt"][i]})
        torch.testing.assert_close(together.images[i], alone.images[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(pair[i], alone.images[0], rtol=0, atol=1e-5)
    assert not torch.allclose(pair[0], pair[1], atol=1e-3)


def test_embeddings_in_place_of_prompts(pipe):
    embeds, negative = pipe.encode_prompt("a red shirt", "cpu", 1, True, "dark")
    backs = [photo(seed=0), photo(seed=1)]
    given = {"output_type": "latent", "guidance_scale": 2.0}
    expected = pipe(backs, "a red shirt", negative_prompt="dark", generator=seeded(), **given).images
    for times in (1, 2):
        found = pipe(
            backs,
            prompt_embeds=embeds.repeat(times, 1, 1),
            negative_prompt_embeds=negative.repeat(times, 1, 1),
            generator=seeded(),
            **given,
        ).images
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    one_back = pipe(photo(), prompt_embeds=embeds.repeat(3, 1, 1), negative_prompt="dark", **given).images
    assert len(one_back) == 3


class Passes:
    """Counts how often the text encoder runs."""

    def __init__(self, pipe):
        self.count = 0
        pipe.text_encoder.register_forward_hook(self)

    def __call__(self, *args):
        self.count += 1

    def during(self, call):
        before = self.count
        call()
        return self.count - before


def test_the_prompt_is_encoded_once(pipe):
    passes = Passes(pipe)
    assert passes.during(lambda: pipe(photo())) == 1
    assert passes.during(lambda: pipe(photo(seed=1))) == 0
    assert passes.during(lambda: pipe(photo(), guidance_scale=3.0)) == 2
    assert passes.during(lambda: pipe(photo(), guidance_scale=5.0)) == 0
    assert passes.during(lambda: pipe(photo(), "a cat", guidance_scale=5.0)) == 2
    assert passes.during(lambda: pipe(photo(), "a cat", guidance_scale=5.0, negative_prompt="dark")) == 2
    assert passes.during(lambda: pipe(photo(), "a cat", guidance_scale=5.0, negative_prompt="dark", clip_skip=0)) == 2


def test_a_kept_prompt_is_forgotten_when_the_text_encoder_changes():
    pipe = tiny_pipeline()
    given = {"output_type": "latent", "guidance_scale": 2.0}

    def fresh():
        pipe._encoded_prompt = None
        return pipe(photo(), generator=seeded(), **given).images

    def kept():
        return pipe(photo(), generator=seeded(), **given).images

    first = kept()
    assert torch.equal(kept(), first) and torch.equal(fresh(), first)
    weight = pipe.text_encoder.get_input_embeddings().weight
    weight.data.mul_(1.5)  # does not move the weight's version counter
    changed = kept()
    assert not torch.equal(changed, first) and torch.equal(changed, fresh())
    for dim in (0, 1):
        weight.data.copy_(weight.data.roll(1, dim))
        before, changed = changed, kept()
        assert not torch.equal(changed, before) and torch.equal(changed, fresh())
    bias = pipe.text_encoder.get_parameter(next(n for n, p in pipe.text_encoder.named_parameters() if p.ndim == 1))
    bias.data.copy_(torch.linspace(-1, 1, len(bias)))
    before, changed = changed, kept()
    bias.data.copy_(bias.data.roll(1))
    assert not torch.equal(kept(), changed) and torch.equal(kept(), fresh())
    changed = kept()
    pipe.text_encoder = tiny_pipeline(seed=5).text_encoder
    swapped = kept()
    assert not torch.equal(swapped, changed) and torch.equal(swapped, fresh())
    pipe.text_encoder.to(torch.bfloat16).float()
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer) + 1)
    rounded = kept()
    assert not torch.equal(rounded, swapped) and torch.equal(rounded, fresh())
    pipe.tokenizer.add_tokens(["person"])
    retokenized = kept()
    assert not torch.equal(retokenized, rounded) and torch.equal(retokenized, fresh())


def test_exchanges_that_cancel_each_other_in_a_plain_weighted_sum_are_noticed():
    pipe, states = tiny_pipeline(), []
    bias = pipe.text_encoder.get_parameter(next(n for n, p in pipe.text_encoder.named_parameters() if p.ndim == 1))
    series = (torch.arange(4, dtype=torch.int32) + 0x3F800000).view(torch.float32)  # a step of one bit each
    for order in ([0, 1, 3, 2], [1, 0, 2, 3]):  # 1, 3, 5 and 7 times these have the same sum
        bias.data[:4] = series[order]
        with torch.no_grad():
            states.append(pipe._text_encoder_state())
    assert states[0] != states[1]


def test_a_prompt_that_was_rounded_by_autocast_is_not_kept(pipe):
    passes = Passes(pipe)
    call = functools.partial(pipe, photo(), generator=seeded(), num_inference_steps=1)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert passes.during(call) == 1
    assert [passes.during(call), passes.during(call)] == [1, 0]


def test_a_kept_prompt_is_forgotten_when_words_get_other_tokens(pipe):
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer) + 2)
    passes = Passes(pipe)
    for number, name in enumerate(["prompt", "negative_prompt"]):
        call = functools.partial(pipe, photo(), guidance_scale=3.0, **{name: f"a <coat{number}>"})
        assert [passes.during(call), passes.during(call)] == [2, 0]
        pipe.tokenizer.add_tokens([f"<coat{number}>"])  # the weights stay as they are
        assert passes.during(call) == 2


def test_a_prompt_of_an_encoder_whose_values_are_not_its_bits_is_not_kept(pipe):
    class Quantised(torch.Tensor):  # as other packages make them
        pass

    with torch.no_grad():
        assert pipe._text_encoder_state() is not None
        norm = pipe.text_encoder.final_layer_norm
        norm.weight = torch.nn.Parameter(norm.weight.detach().as_subclass(Quantised))
        assert pipe._text_encoder_state() is None
        pipe.text_encoder = tiny_pipeline().text_encoder.to("meta")  # as a sequential offload leaves it
        assert pipe._text_encoder_state() is None


def test_embeddings_that_are_given_win_over_a_prompt(pipe):
    given = torch.ones(1, 77, 16)
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt("a cat", "cpu", 1, False, prompt_embeds=given)
    assert torch.equal(embeds, given)


def test_a_callback_cannot_write_into_the_kept_prompt(pipe):
    def spoil(pipe, i, t, state):
        state["prompt_embeds"].zero_()
        return state

    given = {"output_type": "latent", "generator": None}
    expected = pipe(photo(), **given | {"generator": seeded()}).images
    pipe(photo(), callback_on_step_end=spoil, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert torch.equal(pipe(photo(), **given | {"generator": seeded()}).images, expected)


def test_encoding_for_training_is_never_kept(pipe):
    with torch.no_grad():
        kept, _ = pipe.encode_prompt("a cat", "cpu", 1, False)
    for _ in range(2):
        embeds, _ = pipe.encode_prompt("a cat", "cpu", 1, False)
        assert torch.equal(embeds, kept)
        embeds.sum().backward()
    passes = Passes(pipe)
    pipe.text_encoder.train()
    assert passes.during(lambda: [pipe(photo()), pipe(photo())]) == 2


def test_a_prompt_of_500_words(pipe):
    words = " ".join(["shirt"] * 500)
    found = pipe(photo(), words, generator=seeded(), output_type="latent").images
    assert torch.equal(found, pipe(photo(), words + " coat", generator=seeded(), output_type="latent").images)
    assert torch.isfinite(found).all()


# everything a user of the stock pipeline does


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_any_scheduler(pipe, scheduler):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe.scheduler = scheduler(**config)
    first = pipe(photo(), num_inference_steps=4, generator=seeded(), output_type="latent").images
    again = pipe(photo(), num_inference_steps=4, generator=seeded(), output_type="latent").images
    assert torch.isfinite(first).all() and torch.equal(first, again)


def test_every_argument_of_the_parent_is_accepted():
    own = set(inspect.signature(BackToFrontPipeline.__call__).parameters)
    parents = set(inspect.signature(StableDiffusionControlNetPipeline.__call__).parameters) - {"image"}
    passed_on = {
        "timesteps", "sigmas", "eta", "generator", "latents", "ip_adapter_image", "ip_adapter_image_embeds",
        "cross_attention_kwargs", "controlnet_conditioning_scale", "guess_mode", "control_guidance_start",
        "control_guidance_end", "clip_skip", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
    }  # fmt: skip
    assert parents - own == passed_on
    pipe = tiny_pipeline()
    pipe.scheduler = EulerDiscreteScheduler()
    for given in (
        {"timesteps": [900, 500, 100], "eta": 0.5, "guess_mode": True, "guidance_scale": 2.0},
        {"sigmas": [10.0, 3.0, 1.0], "clip_skip": 0},
        {"control_guidance_start": 0.2, "control_guidance_end": 0.8, "controlnet_conditioning_scale": 0.5},
    ):
        assert pipe(photo(), **given).images[0].size == (40, 64)


@pytest.mark.parametrize(
    "changed",
    [
        {"controlnet_conditioning_scale": 0.3},
        {"control_guidance_end": 0.4},
        {"control_guidance_start": 0.6},
        {"guess_mode": True},
        {"negative_prompt": "blurry"},
        {"clip_skip": 0},
        {"eta": 0.5},
        {"timesteps": [900, 400, 10]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_arguments_reach_the_parent(pipe, changed):
    square, _ = letterboxed(photo())
    control = torch.from_numpy(np.ascontiguousarray(square[:, ::-1])).permute(2, 0, 1)[None] / 255
    given = {"guidance_scale": 3.0, "output_type": "latent", "num_inference_steps": 3} | changed
    if "timesteps" in changed:
        pipe.scheduler = EulerDiscreteScheduler()
    stock = stock_of(pipe)
    stock.set_progress_bar_config(disable=True)
    if "clip_skip" in changed:  # the stock pipeline cannot do it with transformers 5
        given["clip_skip"] = None
    expected = stock("Front side of the person", control, generator=seeded(), **given).images
    given |= changed
    assert torch.equal(pipe(photo(), generator=seeded(), **given).images, expected)


def test_clip_skip_takes_an_earlier_layer(pipe):
    encoder = pipe.text_encoder
    tokens = pipe.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        embeds = encoder.final_layer_norm(encoder(tokens, output_hidden_states=True).hidden_states[-2])
    expected = pipe(photo(), prompt_embeds=embeds, generator=seeded(), output_type="latent").images
    for skipping in (encoder.eval(), encoder.train()):  # kept and not kept
        pipe.text_encoder = skipping
        found = pipe(photo(), "a cat", clip_skip=1, generator=seeded(), output_type="latent").images
        assert torch.equal(found, expected)
    assert not torch.equal(pipe(photo(), "a cat", generator=seeded(), output_type="latent").images, expected)
    assert not hasattr(encoder, "text_model")


def test_an_encoding_that_fails_leaves_the_text_encoder_as_it_was(pipe):
    pipe.text_encoder.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe(photo())
    assert not hasattr(pipe.text_encoder, "text_model")


@pytest.mark.parametrize("layers", [-1, 2, 0.5])
def test_layers_that_cannot_be_skipped_are_refused(pipe, layers):
    with pytest.raises(ValueError, match=f"clip_skip is {layers}: give a number from 0 to 1, the text"):
        pipe(photo(), clip_skip=layers)


def test_latents_are_used(pipe):
    latents = torch.randn(1, 4, 8, 8, generator=seeded(7))
    first = pipe(photo(), latents=latents.clone(), output_type="latent", generator=seeded(1)).images
    again = pipe(photo(), latents=latents.clone(), output_type="latent", generator=seeded(2)).images
    drawn = pipe(photo(), output_type="latent", generator=seeded(7)).images
    assert torch.equal(first, again) and torch.equal(first, drawn)


def test_callback_sees_every_step_and_can_stop(pipe):
    seen = []

    def callback(pipeline, i, t, state):
        assert pipeline is pipe and set(state) == {"latents"}
        seen.append(i)
        pipeline._interrupt = i == 1
        return state

    pipe(photo(), num_inference_steps=4, callback_on_step_end=callback)
    assert seen == [0, 1]


def test_the_older_callback_is_still_called(pipe):
    seen = []
    with pytest.warns(FutureWarning, match="callback_on_step_end"):
        pipe(photo(), num_inference_steps=4, callback=lambda i, t, latents: seen.append(i), callback_steps=2)
    assert seen == [0, 2]


def test_progress_bar_is_that_of_diffusers(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    pipe(photo(), num_inference_steps=2)
    assert "2/2" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(photo(), num_inference_steps=2)
    assert capsys.readouterr().err == ""


def test_slicing_and_tiling(pipe):
    backs = [photo(), photo(seed=1)]
    expected = pipe(backs, generator=seeded(), output_type="np").images
    pipe.enable_attention_slicing()
    pipe.vae.enable_slicing()
    np.testing.assert_allclose(pipe(backs, generator=seeded(), output_type="np").images, expected, atol=1e-4)
    pipe.disable_attention_slicing()
    pipe.vae.disable_slicing()
    pipe.vae.enable_tiling()
    tiled = pipe(backs, generator=seeded(), output_type="np").images
    np.testing.assert_allclose(tiled, expected, atol=1e-4)  # one tile at this size
    pipe.vae.disable_tiling()


NEEDS_ACCELERATOR = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="accelerate's sequential offload to a CPU fails in the stock pipeline too"
)


@pytest.mark.parametrize(
    "offload",
    ["enable_model_cpu_offload", pytest.param("enable_sequential_cpu_offload", marks=NEEDS_ACCELERATOR)],
)
def test_offload(pipe, offload):
    expected = pipe(photo(), generator=seeded(), output_type="latent", guidance_scale=2.0).images
    device = "cuda" if torch.cuda.is_available() else "cpu"  # with a CPU the hooks are the same ones
    getattr(pipe, offload)(device=device)
    for _ in range(2):
        found = pipe(photo(), generator=seeded(), output_type="latent", guidance_scale=2.0).images
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def lora_weights(module, seed):
    """LoRA weights for every attention projection of a module, strong enough to be seen."""
    generator = seeded(seed)
    weights = {}
    for name, layer in module.named_modules():
        if name.endswith(("to_q", "to_v", "q_proj", "v_proj")):
            weights[f"{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator)
    assert weights
    return weights


def test_lora_changes_the_result_and_unloading_restores_it(pipe, tmp_path):
    pytest.importorskip("peft")
    given = {"output_type": "latent", "guidance_scale": 2.0}

    def run(**more):
        return pipe(photo(), generator=seeded(), **given, **more).images

    plain = run()
    BackToFrontPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=lora_weights(pipe.unet, 1),
        text_encoder_lora_layers=lora_weights(pipe.text_encoder, 2),
    )
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    pipe.load_lora_weights(tmp_path)
    loaded = run()
    half, none = run(cross_attention_kwargs={"scale": 0.5}), run(cross_attention_kwargs={"scale": 0.0})
    assert (loaded - plain).abs().max() > 1e-2 and (half - loaded).abs().max() > 1e-3
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(run(), loaded, rtol=0, atol=1e-5)
    pipe.set_adapters("default_0", 0.5)
    torch.testing.assert_close(run(), half, rtol=0, atol=1e-4)
    pipe.set_adapters("default_0", 1.0)
    pipe.fuse_lora()
    torch.testing.assert_close(run(), loaded, rtol=0, atol=1e-3)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(run(), plain, rtol=0, atol=1e-4)


def test_lora_on_the_text_encoder_alone(pipe, tmp_path):
    pytest.importorskip("peft")
    plain = pipe(photo(), generator=seeded(), output_type="latent").images
    BackToFrontPipeline.save_lora_weights(tmp_path, text_encoder_lora_layers=lora_weights(pipe.text_encoder, 2))
    pipe.load_lora_weights(tmp_path)
    assert not torch.equal(pipe(photo(), generator=seeded(), output_type="latent").images, plain)
    pipe.fuse_lora(components=["text_encoder"])
    pipe.unload_lora_weights()  # the fused weights stay
    fused = pipe(photo(), generator=seeded(), output_type="latent").images
    assert not torch.equal(fused, plain)


def test_textual_inversion(pipe):
    passes = Passes(pipe)
    before = pipe(photo(), "a <coat>", generator=seeded(), output_type="latent").images
    width = pipe.text_encoder.config.hidden_size
    pipe.load_textual_inversion({"<coat>": torch.randn(width, generator=seeded()) * 3})
    after = pipe(photo(), "a <coat>", generator=seeded(), output_type="latent").images
    assert passes.count == 2 and not torch.equal(before, after)


def test_ip_adapter(pipe):
    weights, encoder = tiny_ip_adapter(pipe)
    pipe.register_modules(
        image_encoder=encoder,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )
    plain = pipe(photo(), generator=seeded(), output_type="latent").images
    pipe.load_ip_adapter(weights, subfolder="", weight_name="")
    given = {"generator": None, "output_type": "latent", "guidance_scale": 2.0}
    first, other = (
        pipe([photo(), photo(seed=1)], ip_adapter_image=picture, **given | {"generator": seeded()}).images
        for picture in (photo(seed=3), photo(seed=4))
    )
    assert first.shape == (2, 4, 8, 8) and not torch.allclose(first, other, atol=1e-4)
    pipe.unload_ip_adapter()
    assert torch.equal(pipe(photo(), generator=seeded(), output_type="latent").images, plain)


def test_a_safety_checker_is_asked(pipe):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=vision | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    pipe.safety_checker = StableDiffusionSafetyChecker(config).eval()
    pipe.safety_checker.concept_embeds_weights.data.fill_(-2.0)  # thresholds that everything exceeds
    pipe.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    result = pipe([photo(), photo(80, 50)])
    assert result.nsfw_content_detected == [True, True]
    assert [image.size for image in result.images] == [(40, 64), (64, 40)]
    assert all((pixels == 0).all() for pixels in as_pixels(result.images))
    pipe.safety_checker.concept_embeds_weights.data.fill_(2.0)
    pipe.safety_checker.special_care_embeds_weights.data.fill_(2.0)
    assert pipe(photo()).nsfw_content_detected == [False]


# other ControlNets


def test_a_stock_controlnet_needs_a_conditioning(pipe):
    stock = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 8))
    pipe = BackToFrontPipeline(**pipe.components | {"controlnet": stock})
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="pass conditioning as canny, rgb, canny\\+rgb, latents\\.$"):
        pipe(photo())
    square, _ = letterboxed(photo())
    entered = entering(pipe, photo(), conditioning="canny", guidance_scale=1.0)
    np.testing.assert_allclose(entered[0].numpy(), canny(square).transpose(2, 0, 1) / 255, atol=1e-6)
    entered = entering(pipe, photo(), conditioning="rgb", mirror=True, guidance_scale=1.0)
    np.testing.assert_allclose(entered[0].numpy(), square[:, ::-1].transpose(2, 0, 1) / 255, atol=1e-6)
    with pytest.raises(ValueError, match="takes 3 channels but canny\\+rgb has 6"):
        pipe(photo(), conditioning="canny+rgb")
    with pytest.raises(ValueError, match="takes 3 channels but latents has 4: choose another conditioning.$"):
        pipe(photo(), conditioning="latents")
    steps = []
    pipe(photo(), conditioning="canny", callback_on_step_end=lambda pipe, i, t, state: steps.append(i) or state)
    assert len(steps) == 50 and pipe.guidance_scale == 7.5
    expected = pipe(photo(), "Front side of the person", "canny", num_inference_steps=2, generator=seeded()).images
    found = pipe(photo(), conditioning="canny", num_inference_steps=2, generator=seeded()).images
    assert np.array_equal(np.asarray(found[0]), np.asarray(expected[0]))


def test_a_controlnet_for_the_latents_of_another_vae_is_refused(pipe):
    for kind in (ControlNetModel, BackshanControlNetModel):
        for channels, factor in (((4, 4, 8), 4), ((4, 4, 4, 4, 8), 16)):
            other = kind.from_unet(pipe.unet, conditioning_embedding_out_channels=channels)
            mixed = BackToFrontPipeline(**pipe.components | {"controlnet": [pipe.controlnet, other]})
            told = f"reads pictures at 1/{factor} of their side and latents have 1/8: make it with .* of 4 numbers.$"
            with pytest.raises(ValueError, match=told):
                mixed(photo(), conditioning="rgb")


def test_a_stock_controlnet_of_their_width_takes_latents(pipe):
    stock = ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 8), conditioning_channels=4
    )
    pipe = BackToFrontPipeline(**pipe.components | {"controlnet": stock})
    pipe.set_progress_bar_config(disable=True)
    entered = entering(pipe, photo(), conditioning="latents", guidance_scale=1.0)
    torch.testing.assert_close(entered, latents_entering(pipe, photo(), mirror=False), rtol=0, atol=1e-5)


def test_latents_and_a_picture_enter_two_controlnets(pipe):
    several = BackToFrontPipeline(
        **pipe.components | {"controlnet": [tiny_pipeline("latents").controlnet, pipe.controlnet]}
    )
    several.set_progress_bar_config(disable=True)
    square, _ = letterboxed(photo())
    shown = several(photo(), guidance_scale=2.0, num_inference_steps=1).control_images[0]
    np.testing.assert_array_equal(np.asarray(shown), np.concatenate([square[:, ::-1]] * 2, axis=1))


def test_several_controlnets(pipe):
    other = tiny_pipeline("canny+rgb", mirror=False, seed=1).controlnet
    stock = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 8))
    several = BackToFrontPipeline(**pipe.components | {"controlnet": [pipe.controlnet, other]})
    several.set_progress_bar_config(disable=True)
    assert isinstance(several.controlnet, MultiControlNetModel)
    result = several([photo(), photo(80, 50)], guidance_scale=2.0)
    assert [image.size for image in result.images] == [(40, 64), (64, 40)]
    assert [image.size for image in result.control_images] == [(3 * SIDE, SIDE)] * 2
    alone = pipe([photo(), photo(80, 50)], guidance_scale=2.0).control_images
    assert np.array_equal(np.asarray(result.control_images[1])[:, :SIDE], np.asarray(alone[1]))

    mixed = BackToFrontPipeline(**pipe.components | {"controlnet": [pipe.controlnet, stock]})
    mixed.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="pass conditioning"):
        mixed(photo())
    first = mixed(photo(), conditioning=[None, "canny"], mirror=[None, True]).control_images[0]
    square, _ = letterboxed(photo())
    np.testing.assert_array_equal(np.asarray(first)[:, SIDE:], canny(square[:, ::-1]))
    with pytest.raises(ValueError, match="2 ControlNets"):
        mixed(photo(), conditioning=["rgb"])


def test_the_first_of_several_controlnets_says_what_a_call_does_not():
    pipe = tiny_pipeline(default_prompt="a dress")
    recorded = {"default_prompt": "a cat", "default_guidance_scale": 4.0, "default_num_inference_steps": 5}
    other = tiny_pipeline(seed=1, **recorded).controlnet
    other.register_to_config(image_size=32)
    several = BackToFrontPipeline(**pipe.components | {"controlnet": [pipe.controlnet, other]})
    named = {"prompt": "a dress", "guidance_scale": 1.0, "num_inference_steps": 3, "height": SIDE}
    found, expected = (
        several(photo(), generator=seeded(), output_type="latent", **given).images for given in ({}, named)
    )
    assert torch.equal(found, expected)


def test_a_list_of_one_controlnet(pipe):
    listed = BackToFrontPipeline(**pipe.components | {"controlnet": [pipe.controlnet]})
    listed.set_progress_bar_config(disable=True)
    expected, found = (each(photo(), generator=seeded(), output_type="latent").images for each in (pipe, listed))
    assert isinstance(listed.controlnet, MultiControlNetModel) and torch.equal(found, expected)


def test_compiled_controlnets(pipe):
    for controlnet in (pipe.controlnet, MultiControlNetModel([pipe.controlnet])):
        plain = BackToFrontPipeline(**pipe.components | {"controlnet": controlnet})
        expected = plain(photo(), generator=seeded(), output_type="latent").images
        plain.controlnet = torch.compile(controlnet, backend="eager")
        assert torch.equal(plain(photo(), generator=seeded(), output_type="latent").images, expected)


def test_another_size_than_the_recorded_one(pipe):
    for given in ({"height": 96}, {"width": 96}, {"height": 96, "width": 96}, {"height": np.int64(96)}):
        result = pipe(photo(), num_inference_steps=1, **given)
        assert result.images[0].size == (60, 96) and result.control_images[0].size == (96, 96)
    pipe.controlnet.register_to_config(image_size=32)
    assert entering(pipe, photo()).shape == (1, 3, 32, 32)
    for given in ({"height": 96, "width": 64}, {"height": 60}, {"width": 0}, {"height": -8}):
        with pytest.raises(ValueError, match="multiple of 8 px"):
            pipe(photo(), **given)


# bad input


def test_bad_arguments_are_refused_with_one_sentence(pipe):
    def refused(error, words, *args, **kwargs):
        with pytest.raises(error, match=words) as caught:
            pipe(*args, **kwargs)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")

    refused(ValueError, "at least one picture", [])
    refused(ValueError, "choose one of pil, np, pt, latent", photo(), output_type="jpg")
    refused(ValueError, "drop restore_size", photo(), output_type="latent", restore_size=True)
    refused(ValueError, "choose one of canny, rgb", photo(), conditioning="depth")
    refused(ValueError, "choose another conditioning", photo(), conditioning="canny+rgb")
    refused(ValueError, "2 prompt for 3 backs", [photo()] * 3, ["a", "b"])
    refused(ValueError, "2 negative_prompt for 1 backs", photo(), negative_prompt=["a", "b"])
    refused(ValueError, "2 prompt_embeds for 3 backs", [photo()] * 3, prompt_embeds=torch.zeros(2, 77, 16))
    refused(TypeError, "not as image", photo(), image=photo())
    refused(TypeError, "no argument guidence_scale, seed", photo(), guidence_scale=3.0, seed=1)
    for name in ("num_inference_steps", "num_images_per_prompt"):
        for value in (0, -1, 2.5, "2"):
            refused(ValueError, f"{name} is {value!r}: give a whole number of at least 1", photo(), **{name: value})
        assert len(pipe(photo(), **{name: np.int64(1)}).images) == 1
    refused(ValueError, "num_images_per_prompt is None", photo(), num_images_per_prompt=None)
    for value in (float("nan"), float("inf"), "7"):
        refused(ValueError, f"guidance_scale is {value!r}: give a finite number", photo(), guidance_scale=value)
    for value in ("no", 1):
        refused(ValueError, f"mirror is {value!r}: give True or False", photo(), mirror=value)
    assert len(pipe(photo(), mirror=np.bool_(True)).images) == 1
    for value in (3, [seeded(), 3]):
        refused(TypeError, r"generator is .*3.*: give torch.Generator\(\)", photo(), generator=value)
    fronts = [
        pipe([photo(), photo()], generator=kind(map(seeded, (1, 2))), num_inference_steps=1).images
        for kind in (list, tuple)
    ]
    assert all(one.tobytes() == other.tobytes() for one, other in zip(*fronts, strict=True))
    refused(TypeError, "latents are of the type ndarray: give a torch.Tensor", photo(), latents=np.zeros((1, 4, 8, 8)))
    for backs, shape in ((1, (1, 4, 4, 4)), (2, (1, 4, 8, 8)), (1, (1, 3, 8, 8))):
        told = rf"latents have the shape \({shape[0]}, .*: give \({backs}, 4, 8, 8\), one for each front of 64 px"
        refused(ValueError, told, [photo()] * backs, latents=torch.zeros(shape))
    for given in ({"height": "a"}, {"width": "a"}, {"height": 64.0}):
        refused(ValueError, "multiple of 8 px", photo(), **given)
    refused(PictureError, "too small", PIL.Image.new("RGB", (1, 1)))
    refused(PictureError, "missing.png is not a file", "missing.png")
    refused(PictureError, "NaN", np.full((32, 32, 3), np.nan))


@pytest.mark.parametrize("size", [None, 16, [8, 8], [8, 16]])
def test_the_side_is_what_the_controlnet_records_or_else_the_unets(pipe, size):
    pipe.unet.register_to_config(sample_size=size)
    assert pipe(photo()).images[0].height == pipe.controlnet.config.image_size == 64
    stock = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 8))
    stocked = BackToFrontPipeline(**pipe.components | {"controlnet": stock})
    stocked.set_progress_bar_config(disable=True)
    if size in (16, [8, 8]):
        assert stocked(photo(), conditioning="rgb").images[0].height == (128 if size == 16 else 64)
    else:
        with pytest.raises(ValueError, match="records one side of its pictures: give height.$"):
            stocked(photo(), conditioning="rgb")
    assert stocked(photo(), conditioning="rgb", height=64).images[0].height == 64


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_what_is_not_finite_is_no_result(pipe, output_type):
    given = {"output_type": output_type, "generator": seeded()}
    with pytest.raises(NotFiniteError, match="2 of 2 results hold NaN or infinite values: give a smaller guidance"):
        pipe([photo(), photo()], guidance_scale=1e38, **given)
    latents = torch.randn(2, 4, 8, 8, generator=seeded())
    latents[1, 0, 0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match="1 of 2 results"):
        pipe([photo(), photo()], latents=latents, **given)


def test_one_value_that_is_not_finite_spoils_a_result(pipe):
    latents = torch.zeros(2, 4, 8, 8)
    assert torch.equal(pipe.image_processor.postprocess(latents, output_type="latent"), latents)
    for value in (torch.nan, torch.inf, -torch.inf):
        latents[1, 3, 7, 7] = value
        with pytest.raises(NotFiniteError, match="1 of 2 results"):
            pipe.image_processor.postprocess(latents, output_type="latent")


def test_an_empty_list_of_prompts_is_refused(pipe):
    with pytest.raises(ValueError, match="0 prompt for 1 backs"):
        pipe(photo(), [])


# saving and loading


@pytest.fixture
def folder(tmp_path):
    tiny_pipeline("canny+rgb", default_prompt="seen from the front").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def latents_of(pipe, **given):
    pipe.set_progress_bar_config(disable=True)
    return pipe(photo(), generator=seeded(), output_type="latent", **given).images


def test_a_saved_folder_has_the_stock_form(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionControlNetPipeline"
    assert index["controlnet"] == ["diffusers", "ControlNetModel"]
    assert "_name_or_path" not in index
    assert json.loads((folder / "controlnet" / "config.json").read_text())["_class_name"] == "BackshanControlNetModel"
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes and not suffixes & {".bin", ".pt", ".pkl", ".ckpt"}


def test_round_trip(folder, tmp_path):
    expected = latents_of(tiny_pipeline("canny+rgb", default_prompt="seen from the front"))
    for source in (folder, str(folder)):
        pipe = BackToFrontPipeline.from_pretrained(source)
        assert type(pipe) is BackToFrontPipeline and type(pipe.controlnet) is BackshanControlNetModel
        assert pipe.controlnet.config.default_prompt == "seen from the front"
        assert torch.equal(latents_of(pipe), expected)
    pipe.save_pretrained(tmp_path / "again")
    names = ["model_index.json", "controlnet/diffusion_pytorch_model.safetensors"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert torch.equal(latents_of(BackToFrontPipeline.from_pretrained(tmp_path / "again")), expected)


def test_normal_use_warns_of_nothing(folder, caplog, capsys):
    from diffusers.utils import logging

    logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe = BackToFrontPipeline.from_pretrained(folder)
            latents_of(pipe)
    finally:
        logging.disable_propagation()
    assert [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


def test_stock_classes_open_the_folder(folder):
    square, _ = letterboxed(photo())
    pipe = BackToFrontPipeline.from_pretrained(folder)
    control = torch.cat([torch.from_numpy(part.copy()) for part in (canny(square[:, ::-1]), square[:, ::-1])], dim=2)
    control = control.permute(2, 0, 1)[None] / 255
    expected = latents_of(pipe)
    for cls in (StableDiffusionControlNetPipeline, DiffusionPipeline):
        stock = cls.from_pretrained(folder, dtype=torch.float32)
        assert type(stock) is StableDiffusionControlNetPipeline
        stock.set_progress_bar_config(disable=True)
        found = stock(
            "seen from the front", control, num_inference_steps=3, guidance_scale=1.0, generator=seeded(),
            output_type="latent",
        ).images  # fmt: skip
        assert torch.equal(found, expected)


def test_a_repository_id(folder, tmp_path):
    """As the Hub's cache holds it; nothing is asked of the network."""
    snapshot = tmp_path / "cache" / "models--someone--backshan" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    pipe = BackToFrontPipeline.from_pretrained("someone/backshan", cache_dir=tmp_path / "cache", local_files_only=True)
    assert type(pipe.controlnet) is BackshanControlNetModel and pipe.controlnet.config.conditioning == "canny+rgb"
    assert pipe.name_or_path == "someone/backshan"


def test_half_precision_files_load_as_float32_everywhere(tmp_path):
    pipe = tiny_pipeline()
    for name in ("vae", "text_encoder", "unet", "controlnet"):
        getattr(pipe, name).half()
    pipe.save_pretrained(tmp_path / "half")
    pipe.save_pretrained(tmp_path / "variant", variant="fp16")

    def dtypes(folder, **given):
        loaded = BackToFrontPipeline.from_pretrained(folder, **given)
        components = [part for part in loaded.components.values() if isinstance(part, torch.nn.Module)]
        assert len(components) == 4
        return {parameter.dtype for part in components for parameter in part.parameters()}

    assert dtypes(tmp_path / "half") == {torch.float32}
    for name in ("dtype", "torch_dtype"):  # the second is what diffusers called it before
        assert dtypes(tmp_path / "half", **{name: torch.bfloat16}) == {torch.bfloat16}
    assert dtypes(tmp_path / "variant", variant="fp16") == {torch.float32}
    with pytest.raises(ValueError, match="no such modeling files"):
        BackToFrontPipeline.from_pretrained(tmp_path / "half", variant="fp16")
    with pytest.raises(OSError, match="variant holds its weights only in the variant fp16: give variant='fp16'.$"):
        BackToFrontPipeline.from_pretrained(tmp_path / "variant")


def test_bfloat16_generates(pipe):
    for name in ("vae", "text_encoder", "unet", "controlnet"):
        getattr(pipe, name).to(torch.bfloat16)
    assert pipe(photo(), guidance_scale=2.0, output_type="np").images.shape == (1, 64, 40, 3)
    plain, restored = (pipe(photo(), output_type="pt", restore_size=restore).images for restore in (False, True))
    assert restored.shape == (1, 3, 80, 50) and restored.dtype == plain.dtype == torch.bfloat16


def test_sharded_weights(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    loaded = BackToFrontPipeline.from_pretrained(tmp_path)
    for name in ("vae", "text_encoder", "unet", "controlnet"):
        expected, found = (getattr(each, name).state_dict() for each in (pipe, loaded))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def test_components_can_be_passed(folder):
    given = tiny_pipeline("canny+rgb", seed=3)
    pipe = BackToFrontPipeline.from_pretrained(folder, controlnet=given.controlnet, vae=given.vae)
    assert pipe.controlnet is given.controlnet and pipe.vae is given.vae
    stock = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 8))
    pipe = BackToFrontPipeline.from_pretrained(folder, controlnet=stock)
    assert pipe.controlnet is stock
    assert latents_of(pipe, conditioning="canny", num_inference_steps=1).shape == (1, 4, 8, 8)


def test_a_stock_folder_opens_with_its_stock_controlnet(pipe, tmp_path):
    stock = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4, 4, 8))
    StableDiffusionControlNetPipeline(
        **pipe.components | {"controlnet": stock}, requires_safety_checker=False
    ).save_pretrained(tmp_path)
    loaded = BackToFrontPipeline.from_pretrained(tmp_path)
    assert type(loaded) is BackToFrontPipeline and type(loaded.controlnet) is ControlNetModel


def test_a_record_survives_the_stock_pipeline(folder, tmp_path):
    StableDiffusionControlNetPipeline.from_pretrained(folder, dtype=torch.float32).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "controlnet" / "config.json").read_text())
    assert config["_class_name"] == "ControlNetModel"
    first, again = (BackToFrontPipeline.from_pretrained(path).controlnet for path in (folder, tmp_path / "again"))
    assert type(again) is BackshanControlNetModel
    assert (again.config.conditioning, again.config.default_prompt) == ("canny+rgb", "seen from the front")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_several_controlnets_are_saved_in_the_stock_form(pipe, tmp_path):
    other = tiny_pipeline("rgb", seed=1).controlnet
    BackToFrontPipeline(**pipe.components | {"controlnet": [pipe.controlnet, other]}).save_pretrained(tmp_path)
    loaded = BackToFrontPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.controlnet, MultiControlNetModel) and len(loaded.controlnet.nets) == 2


def test_a_folder_without_a_controlnet_takes_one(pipe, tmp_path):
    parts = {name: part for name, part in pipe.components.items() if name != "controlnet"}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    loaded = BackToFrontPipeline.from_pretrained(tmp_path, controlnet=pipe.controlnet)
    assert loaded.controlnet is pipe.controlnet and torch.equal(latents_of(loaded), latents_of(pipe))
    pipe.controlnet.save_pretrained(tmp_path / "controlnet")  # which the index does not name
    assert BackToFrontPipeline.from_pretrained(tmp_path, controlnet=pipe.controlnet).controlnet is pipe.controlnet


def test_from_pipe(pipe):
    stock = StableDiffusionPipeline(
        **{name: part for name, part in pipe.components.items() if name != "controlnet"}, requires_safety_checker=False
    )
    ours = BackToFrontPipeline.from_pipe(stock, controlnet=pipe.controlnet)
    assert type(ours) is BackToFrontPipeline and ours.unet is pipe.unet
    assert torch.equal(latents_of(ours), latents_of(pipe))
    again = BackToFrontPipeline.from_pipe(pipe)
    assert again.controlnet is pipe.controlnet and torch.equal(latents_of(again), latents_of(pipe))


def test_a_folder_without_weights_is_refused(folder):
    def refused(*words):
        with pytest.raises(OSError, match=".") as caught:
            BackToFrontPipeline.from_pretrained(folder)
        message = str(caught.value)
        assert "\n" not in message and message.endswith(".") and all(word in message for word in words), message

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(AutoencoderKL.from_pretrained(folder / "vae").state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    refused("unet", "only as a pickle", "safetensors")
    weights.with_suffix(".bin").unlink()
    refused("unet", "has no weights")
    for path in (folder / "unet").iterdir():
        path.unlink()
    (folder / "unet").rmdir()
    refused("folder", "unet", "is missing")
    (folder / "model_index.json").unlink()
    refused("has no model_index.json")


def test_a_passed_component_needs_no_weights_in_the_folder(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet = tiny_pipeline().unet
    assert BackToFrontPipeline.from_pretrained(folder, unet=unet).unet is unet


def test_weights_are_saved_as_safetensors_only(pipe, tmp_path):
    with pytest.raises(ValueError, match="safetensors only"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
