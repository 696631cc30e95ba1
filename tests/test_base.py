"""A run from a folder laid out like the public Stable Diffusion 1.5, with a ControlNet from a folder of its own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, FlowMatchEulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from tiny import TINY, tiny_autoencoder, tiny_config, tiny_pipeline
from transformers import CLIPConfig, CLIPImageProcessor

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
from backshan_diffusers.training.base import open_base
from backshan_diffusers.training.config import ConfigError, ModelSize
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.scratch import build_pipeline


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> Path:
    """The components of the public base model, tiny: it predicts noise and brings a safety checker."""
    parts, folder = tiny_pipeline(seed=3).components, tmp_path_factory.mktemp("public")
    del parts["controlnet"], parts["image_encoder"]
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = tower | {"image_size": 32, "patch_size": 16}
    parts["safety_checker"] = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8)
    )
    # so far from every picture that it objects to none
    parts["safety_checker"].concept_embeds_weights.data.fill_(2)
    parts["safety_checker"].special_care_embeds_weights.data.fill_(2)
    parts["feature_extractor"] = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    parts["scheduler"] = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


def stock_controlnet(folder: Path, seed: int = 5, **changes) -> ControlNetModel:
    """A stock ControlNet for the tiny U-Net, saved in a folder."""
    unet = build_pipeline(replace(TINY, **changes), seed).unet
    stock = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4, 8))
    stock.save_pretrained(folder)
    return stock


def test_a_stock_controlnet_joins_the_public_base(public, tmp_path):
    stock = stock_controlnet(tmp_path)
    opened = open_base(str(public), 0, str(tmp_path))
    assert isinstance(opened, BackToFrontPipeline) and isinstance(opened.controlnet, BackshanControlNetModel)
    assert (opened.controlnet.config.conditioning, opened.controlnet.config.image_size) == ("canny", 64)
    for name, tensor in opened.controlnet.state_dict().items():
        assert torch.equal(tensor, stock.state_dict()[name]), name
    unet = StableDiffusionPipeline.from_pretrained(public, safety_checker=None).unet
    assert torch.equal(opened.unet.conv_in.weight, unet.conv_in.weight)
    assert not torch.equal(opened.unet.conv_in.weight, opened.controlnet.conv_in.weight)
    assert opened.scheduler.config.prediction_type == "epsilon"


def test_one_of_ours_keeps_what_it_records_and_replaces_the_bases_own(tmp_path):
    tiny_pipeline(seed=1).save_pretrained(tmp_path / "base")
    ours = tiny_pipeline("canny+rgb", seed=2, mirror=False, default_prompt="seen from ahead").controlnet
    ours.register_to_config(image_size=128)
    ours.save_pretrained(tmp_path / "controlnet")
    opened = open_base(str(tmp_path / "base"), 0, str(tmp_path / "controlnet"), default_prompt="ahead").controlnet
    assert (opened.config.conditioning, opened.config.mirror) == ("canny+rgb", False)
    assert (opened.config.default_prompt, opened.config.image_size) == ("ahead", 128)
    assert torch.equal(opened.conv_in.weight, ours.conv_in.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet_channels": (8, 8)}, r"the ControlNet has block_out_channels \[8, 8\] and the U-Net \[8, 16\]"),
        ({"text_width": 8}, "the ControlNet has cross_attention_dim 8 and the U-Net 16"),
        ({"latent_channels": 8}, "the ControlNet has in_channels 8 and the U-Net 4"),
    ],
)
def test_a_controlnet_of_another_base_is_refused(public, tmp_path, changes, message):
    stock_controlnet(tmp_path, **changes)
    with pytest.raises(ConfigError, match=f"with the controlnet .* cannot be used: {message}"):
        open_base(str(public), 0, str(tmp_path))


def test_a_controlnet_of_other_latents_is_refused(public, tmp_path):
    pipeline = tiny_pipeline()
    ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 4, 8)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="reads pictures at 1/4 of their side and latents have 1/8"):
        open_base(str(public), 0, str(tmp_path))


@pytest.mark.parametrize("field", ["base_model", "controlnet"])
@pytest.mark.parametrize(
    "name",
    [
        "runs/sd15-stage1/controlnet/pipeline",
        "./pipeline",
        "../pipeline",
        "~/pipeline",
        "/pipeline",
        "here/pipeline",
        "a--b/pipeline",
        "pipeline",
    ],
)
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(public, tmp_path, monkeypatch, field, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"base_model": str(public), field: name}
    with pytest.raises(ConfigError) as refused:
        open_base(places["base_model"], 0, places.get("controlnet"))
    assert str(refused.value) == (
        f"the {field} {name} is no folder: run the config that writes it first, or give another {field}."
    )


@pytest.mark.parametrize(("base", "controlnet"), [("nobody/nothing", None), (None, "nobody/nothing")])
def test_what_may_be_a_repo_id_is_looked_for_on_the_hub(public, tmp_path, monkeypatch, base, controlnet):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="^the base_model .*nothing cannot be used: ") as refused:
        open_base(base or str(public), 0, controlnet)
    assert "\n" not in str(refused.value)


def edit(file: Path, **changed) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def without(file: Path, part: str) -> None:
    """Take the first weight with `part` in its name out of a file."""
    tensors = load_file(file)
    del tensors[next(name for name in tensors if part in name)]
    save_file(tensors, file, {"format": "pt"})


def other_part(folder: Path, name: str, **changes) -> None:
    """Replace a component by that of a pipeline of another shape."""
    getattr(build_pipeline(replace(TINY, **changes), 0), name).save_pretrained(folder / name)


NO_STABLE_DIFFUSION = {
    "its text_encoder has no weight .*layers.0.*: copy": lambda base: without(
        base / "text_encoder" / "model.safetensors", "layers.0"
    ),
    "its unet has no weight conv_in.weight: copy": lambda base: without(
        base / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.weight"
    ),
    "its vae has no weight decoder.conv_in.weight: copy": lambda base: without(
        base / "vae" / "diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"
    ),
    "its scheduler_config.json names no beta_schedule": lambda base: (
        base / "scheduler" / "scheduler_config.json"
    ).write_text("{}"),
    "the U-Net predicts noise and its schedule ends in noise alone, .*: set rescale": lambda base: edit(
        base / "scheduler" / "scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=True
    ),
    "the U-Net predicts sample: begin from one that predicts epsilon or velocity": lambda base: edit(
        base / "scheduler" / "scheduler_config.json", prediction_type="sample"
    ),
    ".*text_encoder/model.safetensors is damaged .*: copy": lambda base: (
        base / "text_encoder" / "model.safetensors"
    ).write_bytes(b"nonsense"),
    "its U-Net records no sample_size: write": lambda base: edit(base / "unet" / "config.json", sample_size=None),
    "its U-Net has in_channels 4 and its vae latent_channels 8": lambda base: other_part(
        base, "vae", latent_channels=8
    ),
    "its U-Net has cross_attention_dim 16 and its text_encoder hidden_size 32": lambda base: other_part(
        base, "text_encoder", text_width=32
    ),
}


@pytest.mark.parametrize("message", NO_STABLE_DIFFUSION)
@pytest.mark.parametrize("with_controlnet", [False, True])
def test_what_is_no_whole_stable_diffusion_is_refused(public, tiny_folder, tmp_path, with_controlnet, message):
    base = shutil.copytree(tiny_folder if with_controlnet else public, tmp_path / "base")
    NO_STABLE_DIFFUSION[message](base)
    with pytest.raises(ConfigError, match=f"the base_model {base} cannot be used: {message}") as refused:
        open_base(str(base), 0)
    assert "\n" not in str(refused.value)


def test_a_scheduler_without_betas_is_refused(public, tmp_path):
    base = shutil.copytree(public, tmp_path / "base")
    FlowMatchEulerDiscreteScheduler().save_pretrained(base / "scheduler")
    edit(base / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(ConfigError, match="names no beta_schedule"):
        open_base(str(base), 0)


def test_a_unet_that_needs_more_than_a_text_is_refused(public, tmp_path):
    base = shutil.copytree(public, tmp_path / "base")
    conditional = build_pipeline(TINY, 0).unet
    conditional = type(conditional).from_config(
        {**conditional.config, "_use_default_values": [], "class_embed_type": "timestep"}
    )
    conditional.save_pretrained(base / "unet")
    with pytest.raises(ConfigError, match="its U-Net has the class_embed_type timestep: give one"):
        open_base(str(base), 0)


def test_a_recorded_size_that_leaves_a_part_of_a_latent_is_refused(tiny_folder, tmp_path):
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    edit(base / "controlnet" / "config.json", image_size=100)
    with pytest.raises(ConfigError, match="image_size is 100: give a multiple of 8"):
        open_base(str(base), 0)


def test_a_base_with_a_tiny_autoencoder_trains_all_but_that(tmp_path):
    base = tiny_pipeline("latents")
    base.vae = tiny_autoencoder()
    base.save_pretrained(tmp_path / "base")
    shared = {"base_model": str(tmp_path / "base"), "model": ModelSize(), "max_steps": 2, "crop_sizes": (32,)}
    config = tiny_config(tmp_path / "run", **shared, stages={"controlnet": {}})
    trained = BackToFrontPipeline.from_pretrained(TrainingRun(config).run())
    assert not torch.equal(trained.controlnet.conv_in.weight, base.controlnet.conv_in.weight)
    assert torch.equal(trained.vae.encoder.layers[0].weight, base.vae.encoder.layers[0].weight)
    config = tiny_config(tmp_path / "refused", **shared, stages={"vae": {}})
    with pytest.raises(ConfigError, match="is of the class AutoencoderTiny: leave vae out of stages.$"):
        TrainingRun(config).run()


def test_held_out_fronts_are_scored_as_they_are_and_the_safety_checker_stays_with_the_model(public, tmp_path):
    base = Path(shutil.copytree(public, tmp_path / "base"))
    checker = StableDiffusionSafetyChecker.from_pretrained(base / "safety_checker")
    checker.concept_embeds_weights.data.fill_(-1)  # it objects to every picture
    checker.save_pretrained(base / "safety_checker")
    scores = []
    for name in (public, base):
        run = tmp_path / f"of-{name.name}"
        settings = {"model": ModelSize(), "stages": {"controlnet": {}}, "max_steps": 2, "validate_every": 2}
        finished = TrainingRun(tiny_config(run, base_model=str(name), **settings)).run()
        scores.append((run / "controlnet" / "validation.csv").read_text())
        assert (finished / "safety_checker").is_dir()
    assert scores[0] == scores[1]


def test_the_two_stages_of_the_method_run_one_after_the_other(public, tmp_path):
    """As sd15-stage1.yaml and sd15-stage2.yaml say it."""
    stock = stock_controlnet(tmp_path / "controlnet")
    shared = {"model": ModelSize(), "max_steps": 2, "learning_rate": 1e-3, "validate_every": 2}
    first = TrainingRun(
        tiny_config(
            tmp_path / "one",
            base_model=str(public),
            controlnet=str(tmp_path / "controlnet"),
            stages={"controlnet": {}},
            **shared,
        )
    ).run()
    frozen = BackToFrontPipeline.from_pretrained(first)
    original = StableDiffusionPipeline.from_pretrained(public, safety_checker=None).unet
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in frozen.unet.state_dict().items())
    assert not torch.equal(frozen.controlnet.conv_in.weight, stock.conv_in.weight)
    second = TrainingRun(
        tiny_config(
            tmp_path / "two",
            base_model=str(first),
            stages={"joint": {"unlock_unet": "decoder", "unet_learning_rate": 1e-4}},
            **shared,
        )
    ).run()
    unlocked = BackToFrontPipeline.from_pretrained(second)
    assert unlocked.controlnet.config.conditioning == "canny"
    assert torch.equal(unlocked.unet.conv_in.weight, original.conv_in.weight)
    assert not torch.equal(unlocked.unet.conv_out.weight, original.conv_out.weight)
