"""The original ControlNet layout: names, shapes, values, and what is refused because other tools could not use it."""

import errno
import itertools
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_controlnet, tiny_pipeline

from backshan_diffusers import MINI, BackshanControlNetModel, __version__, cli
from backshan_diffusers.export import (
    ExportError,
    export_controlnet,
    load_stored_controlnet,
    onnx_folder,
    origin_of,
    original_layout,
)

ORIGIN = {"software": "backshan", "version": "1", "model": "tiny", "license": "mit"}


@pytest.fixture
def tiny_is_loadable(monkeypatch):
    """As if other tools took the tiny shape: the full one has 361 million weights."""
    monkeypatch.setattr(
        original_layout, "SHAPE", {name: tiny_controlnet().config[name] for name in original_layout.SHAPE}
    )


def full_size(**config) -> BackshanControlNetModel:
    """The shape of Stable Diffusion 1.5 without values."""
    with torch.device("meta"):
        return BackshanControlNetModel(**{"cross_attention_dim": 768} | config)


def published_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes as the published network makes them: 320 channels times (1, 2, 4, 4), two blocks at each level,
    attention at all levels but the last, and a stack of convolutions for the hint."""
    shapes = {}

    def layer(name, *weight):
        shapes[f"control_model.{name}.weight"] = weight
        shapes[f"control_model.{name}.bias"] = weight[:1]

    def residual_block(name, before, after):
        layer(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", after, 1280)
        layer(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def transformer(name, width):
        layer(f"{name}.norm", width)
        layer(f"{name}.proj_in", width, width, 1, 1)
        layer(f"{name}.proj_out", width, width, 1, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, context in (("attn1", width), ("attn2", 768)):
            for projection, entering in (("to_q", width), ("to_k", context), ("to_v", context)):
                shapes[f"control_model.{block}.{attention}.{projection}.weight"] = (width, entering)
            layer(f"{block}.{attention}.to_out.0", width, width)
        for number in (1, 2, 3):
            layer(f"{block}.norm{number}", width)
        layer(f"{block}.ff.net.0.proj", 8 * width, width)
        layer(f"{block}.ff.net.2", width, 4 * width)

    layer("time_embed.0", 1280, 320)
    layer("time_embed.2", 1280, 1280)
    hint = [3, 16, 16, 32, 32, 96, 96, 256, 320]
    for number, (before, after) in enumerate(itertools.pairwise(hint)):
        layer(f"input_hint_block.{2 * number}", after, before, 3, 3)
    layer("input_blocks.0.0", 320, 4, 3, 3)
    layer("zero_convs.0.0", 320, 320, 1, 1)
    number, width = 1, 320
    for level, multiple in enumerate((1, 2, 4, 4)):
        for _ in range(2):
            residual_block(f"input_blocks.{number}.0", width, 320 * multiple)
            width = 320 * multiple
            if level < 3:
                transformer(f"input_blocks.{number}.1", width)
            layer(f"zero_convs.{number}.0", width, width, 1, 1)
            number += 1
        if level < 3:
            layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            layer(f"zero_convs.{number}.0", width, width, 1, 1)
            number += 1
    residual_block("middle_block.0", 1280, 1280)
    transformer("middle_block.1", 1280)
    residual_block("middle_block.2", 1280, 1280)
    layer("middle_block_out.0", 1280, 1280, 1, 1)
    return shapes


def test_names_and_shapes_at_full_size_are_those_of_the_published_layout():
    model = full_size()
    names, weights = original_layout.original_names(model), model.state_dict()
    assert len(names) == 340
    assert {new: tuple(weights[name].shape) for name, new in names.items()} == published_layout()
    original_layout.check_loadable(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reader", [ControlNetModel, BackshanControlNetModel])
def test_round_trip_through_diffusers_is_bit_equal(dtype, reader, tiny_is_loadable, tmp_path):
    model = tiny_controlnet(conditioning="canny", mirror=False).to(dtype)
    model.save_pretrained(tmp_path / "tiny")
    export_controlnet(model, tmp_path / "tiny.safetensors", ORIGIN)
    config = str(tmp_path / "tiny")  # else diffusers would ask the Hub for one
    again = reader.from_single_file(str(tmp_path / "tiny.safetensors"), config=config, dtype=dtype)
    assert list(again.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].dtype == dtype
        assert torch.equal(again.state_dict()[name], value), name


def test_header_says_what_the_model_reads_and_where_it_comes_from(tiny_is_loadable, tmp_path):
    export_controlnet(tiny_controlnet(conditioning="canny", mirror=False), tmp_path / "new" / "x.safetensors", ORIGIN)
    with safe_open(tmp_path / "new" / "x.safetensors", "pt") as file:
        assert file.metadata() == ORIGIN | {
            "format": "pt",
            "conditioning": "canny",
            "mirror": "False",
            "image_size": "64",
            "canny_low_threshold": "100",
            "canny_high_threshold": "200",
            "default_prompt": "Front side of the person",
            "default_guidance_scale": "1.0",
            "default_num_inference_steps": "3",
        }


def test_command_writes_the_values_of_the_file_in_their_type(tiny_is_loadable, tmp_path, capsys):
    pipeline = tiny_pipeline()
    pipeline.controlnet.half()
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: openrail\n---\n# Model\n")
    target = tmp_path / "out" / "tiny.safetensors"
    stored = load_file(tmp_path / "model" / "controlnet" / "diffusion_pytorch_model.safetensors")
    for folder, name in ((tmp_path / "model", "model"), (tmp_path / "model" / "controlnet", "controlnet")):
        assert cli.main(["export", str(folder), "-o", str(target), "--format", "controlnet"]) == 0
        assert capsys.readouterr().out == f"the model was written to {target}\n"
        exported = load_file(target)
        for diffusers_name, new in original_layout.original_names(pipeline.controlnet).items():
            assert exported[new].dtype == torch.float16
            assert torch.equal(exported[new], stored[diffusers_name])
        with safe_open(target, "pt") as file:
            assert file.metadata()["model"] == name
            assert file.metadata()["license"] == ("openrail" if name == "model" else "not recorded")
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_origin_of_a_folder(tiny_folder, monkeypatch):
    assert origin_of(tiny_folder) == {
        "software": "backshan",
        "version": __version__,
        "model": "tiny",
        "license": "not recorded",
    }
    assert origin_of(Path(MINI))["license"] == "apache-2.0"
    assert origin_of(tiny_folder, "org/tiny")["model"] == "org/tiny"
    monkeypatch.chdir(tiny_folder)
    assert origin_of(Path("."))["model"] == tiny_folder.name


@pytest.mark.parametrize(("conditioning", "channels"), [("canny+rgb", 6), ("latents", 4)])
def test_a_condition_that_is_no_picture_is_refused(conditioning, channels):
    message = f"3 channels, and {re.escape(conditioning)} has {channels}: export a model that reads canny or rgb"
    with pytest.raises(ExportError, match=message):
        original_layout.check_loadable(full_size(conditioning=conditioning))


@pytest.mark.parametrize(
    "config",
    [
        {"cross_attention_dim": 1024},
        {"block_out_channels": (320, 640, 1280)},
        {"controlnet_conditioning_channel_order": "bgr"},
        {"global_pool_conditions": True},
    ],
)
def test_another_shape_is_refused_by_the_name_of_what_differs(config):
    config |= {"down_block_types": ("CrossAttnDownBlock2D",) * 3} if "block_out_channels" in config else {}
    with pytest.raises(ExportError, match=rf"another {'.*, '.join(sorted(config, reverse=True))}: export it as onnx"):
        original_layout.check_loadable(full_size(**config))


def test_command_refuses_mini_in_one_sentence(tmp_path, capsys):
    code = cli.main(["export", "mini", "-o", str(tmp_path / "mini.safetensors"), "--format", "controlnet"])
    assert code == 2
    said, line = (line for line in capsys.readouterr().err.splitlines() if line.startswith("backshan:"))
    assert said == "backshan: the model is the embedded mini."
    assert "of the shape of Stable Diffusion 1.5" in line and "cross_attention_dim" in line
    assert not list(tmp_path.iterdir())


def test_names_that_other_tools_would_misread_are_refused(tmp_path):
    for name, reason in (("x.bin", "does not end with .safetensors"), ("my_Shuffle_2.safetensors", "has shuffle in")):
        with pytest.raises(ExportError, match=reason):
            original_layout.check_target(tmp_path / name)


def test_only_what_was_exported_before_is_replaced(tiny_is_loadable, tmp_path):
    model, target = tiny_controlnet(), tmp_path / "x.safetensors"
    for content in (b"", b"no weights", None):
        if content is None:
            save_file({"a": torch.zeros(1)}, target)
        else:
            target.write_bytes(content)
        before = target.read_bytes()
        with pytest.raises(ExportError, match="was not written by backshan: give another name"):
            export_controlnet(model, target, ORIGIN)
        assert target.read_bytes() == before
        target.unlink()
    export_controlnet(model, target, ORIGIN)
    export_controlnet(model, target, ORIGIN | {"model": "later"})
    with safe_open(target, "pt") as file:
        assert file.metadata()["model"] == "later"


def test_what_a_killed_export_left_unfinished_is_cleared_by_the_next(tiny_is_loadable, tmp_path):
    target, left = tmp_path / "x.safetensors", tmp_path / ".unfinished-00ff00ff"
    left.touch()
    export_controlnet(tiny_controlnet(), target, ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_full_disk_leaves_what_was_there(tiny_is_loadable, tiny_folder, tmp_path, monkeypatch, capsys):
    target = tmp_path / "x.safetensors"
    export_controlnet(tiny_controlnet(), target, ORIGIN)
    before = target.read_bytes()

    def fill(weights, file, metadata):
        file.write_bytes(b"half")
        raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(original_layout, "save_file", fill)
    assert cli.main(["export", str(tiny_folder), "-o", str(target), "--format", "controlnet"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def damage_weights(folder):
    (folder / "controlnet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")


def stock(folder):
    ControlNetModel.from_pretrained(folder / "controlnet").save_pretrained(folder / "controlnet")
    config = folder / "controlnet" / "config.json"
    config.write_text(config.read_text().replace('"conditioning"', '"unknown"'))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shutil.rmtree, "does not exist: give the folder of a saved pipeline, a Hub repo id, or mini."),
        (lambda folder: shutil.rmtree(folder / "controlnet"), "is missing"),
        (
            lambda folder: (folder / "controlnet" / "config.json").unlink(),
            "has no model_index.json and no config.json",
        ),
        (lambda folder: (folder / "controlnet" / "config.json").write_text("["), "is damaged"),
        (damage_weights, "is damaged"),
        (stock, "cannot be loaded: the config does not say what the ControlNet reads"),
    ],
)
def test_command_refuses_an_unusable_folder_in_one_sentence(change, reason, tiny_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    change(folder)
    assert cli.main(["export", str(folder), "-o", str(tmp_path / "x.safetensors"), "--format", "controlnet"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("backshan:")]
    assert reason in line
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("out", "layout", "reason"),
    [
        ("", "controlnet", "--out is empty"),
        ("file.safetensors/x.safetensors", "controlnet", "nothing can be written to the folder file.safetensors"),
        ("file.safetensors/x", "onnx", "nothing can be written to the folder file.safetensors"),
        ("x", "controlnet", "x does not end with .safetensors"),
        ("file.safetensors", "controlnet", "file.safetensors exists and was not written by backshan"),
        ("file.safetensors", "onnx", "file.safetensors exists and was not written by backshan"),
    ],
)
def test_the_target_is_judged_before_a_model_is_sought(out, layout, reason, tmp_path, monkeypatch, capsys):
    """There is none; what is wrong with the target is told all the same, and not after a download."""
    if layout == "onnx":
        for name in onnx_folder.PACKAGES:
            pytest.importorskip(name, reason="the extra `export` is not installed")
    monkeypatch.chdir(tmp_path)
    Path("file.safetensors").write_text("")
    assert cli.main(["export", "./nowhere", "-o", out, "--format", layout]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"backshan: {reason}")
    assert os.listdir() == ["file.safetensors"]


def test_a_controlnet_saved_alone_is_loaded_whatever_its_folder_is_called(tmp_path):
    tiny_controlnet(mirror=False).save_pretrained(tmp_path / "mine")
    assert load_stored_controlnet(tmp_path / "mine").config.mirror is False


def test_a_controlnet_in_a_variant_alone_is_loaded(tmp_path):
    controlnet = tiny_controlnet().half()
    controlnet.save_pretrained(tmp_path, variant="fp16")
    loaded = load_stored_controlnet(tmp_path)
    assert loaded.dtype is torch.float16
    assert torch.equal(loaded.controlnet_mid_block.weight, controlnet.controlnet_mid_block.weight)
