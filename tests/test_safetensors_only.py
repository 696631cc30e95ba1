"""Weights are read from safetensors alone, by every door."""

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from tiny import tiny_controlnet, tiny_ip_adapter, tiny_pipeline

from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline

pytest.importorskip("peft")


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture(autouse=True)
def no_pickle_is_opened(monkeypatch):
    def load(*args, **kwargs):
        pytest.fail("a pickle was opened")

    monkeypatch.setattr(torch, "load", load)


def lora_of(pipe):
    name, layer = next((name, layer) for name, layer in pipe.unet.named_modules() if name.endswith("to_q"))
    return {
        f"unet.{name}.lora_A.weight": torch.ones(2, layer.in_features),
        f"unet.{name}.lora_B.weight": torch.ones(layer.out_features, 2),
    }


@pytest.mark.parametrize("kind", [BackshanControlNetModel, BackToFrontPipeline])
def test_use_safetensors_cannot_be_switched_off(kind, pipe, tmp_path):
    (pipe.controlnet if kind is BackshanControlNetModel else pipe).save_pretrained(tmp_path)
    for given in ({}, {"use_safetensors": None}, {"use_safetensors": True}):
        kind.from_pretrained(tmp_path, **given)
    with pytest.raises(ValueError, match="safetensors alone: leave use_safetensors out"):
        kind.from_pretrained(tmp_path, use_safetensors=False)


def test_download_reads_safetensors_alone():
    with pytest.raises(ValueError, match="safetensors alone"):
        BackToFrontPipeline.download("owner/name", use_safetensors=False)


@pytest.mark.parametrize("load", [BackshanControlNetModel.from_pretrained, BackshanControlNetModel.from_controlnet])
def test_a_controlnet_of_ours_in_a_pickle_is_refused(load, tmp_path):
    tiny_controlnet().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model.safetensors"):
        load(tmp_path)


def test_a_stock_controlnet_in_a_pickle_is_refused(pipe, tmp_path):
    ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8)).save_pretrained(
        tmp_path, safe_serialization=False
    )
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model.safetensors"):
        BackshanControlNetModel.from_controlnet(tmp_path)
    with pytest.raises(ValueError, match="leave use_safetensors out"):
        BackshanControlNetModel.from_controlnet(tmp_path, load_kwargs={"use_safetensors": False})


@pytest.mark.parametrize("kind", [BackshanControlNetModel, BackToFrontPipeline])
@pytest.mark.parametrize("name", ["model.ckpt", "model.pth", "https://host/model.ckpt?download=true"])
def test_a_single_file_that_is_no_safetensors_is_refused(kind, name):
    with pytest.raises(ValueError, match=r"model\.\w+ is not in safetensors.*convert it"):
        kind.from_single_file(name)


def test_a_lora_is_read_from_safetensors(pipe, tmp_path):
    save_file(lora_of(pipe), tmp_path / "lora.safetensors")
    for given in ((tmp_path,), (tmp_path / "lora.safetensors",), (str(tmp_path), "second", "lora.safetensors")):
        named = dict(zip(("adapter_name", "weight_name"), given[1:], strict=False))
        pipe.load_lora_weights(given[0], **named)
    pipe.load_lora_weights(lora_of(pipe), weight_name="any.bin")  # a name means nothing beside the weights themselves
    assert pipe.get_active_adapters() and len(pipe.get_list_adapters()["unet"]) == 4


def test_a_lora_in_a_pickle_is_refused(pipe, tmp_path):
    torch.save(lora_of(pipe), tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(OSError, match="no file named pytorch_lora_weights.safetensors"):
        pipe.load_lora_weights(tmp_path)
    for given in ({"weight_name": "pytorch_lora_weights.bin"}, {"use_safetensors": False}):
        with pytest.raises(ValueError, match="safetensors"):
            pipe.load_lora_weights(str(tmp_path), **given)
    with pytest.raises(ValueError, match="not in safetensors"):
        pipe.load_lora_weights(tmp_path / "pytorch_lora_weights.bin")


def test_an_embedding_is_read_from_safetensors_alone(pipe, tmp_path):
    embedding = {"<coat>": torch.ones(pipe.text_encoder.config.hidden_size)}
    save_file(embedding, tmp_path / "learned_embeds.safetensors")
    torch.save(embedding, tmp_path / "learned_embeds.bin")
    for source, given in (
        (tmp_path / "learned_embeds.bin", {}),
        (str(tmp_path), {"weight_name": "learned_embeds.bin"}),
        ([str(tmp_path), str(tmp_path / "learned_embeds.bin")], {}),
        (str(tmp_path), {"use_safetensors": False}),
    ):
        with pytest.raises(ValueError, match="safetensors"):
            pipe.load_textual_inversion(source, **given)
    pipe.load_textual_inversion(str(tmp_path))
    assert pipe.tokenizer.convert_tokens_to_ids("<coat>") == len(pipe.tokenizer) - 1
    (tmp_path / "learned_embeds.safetensors").unlink()
    with pytest.raises(OSError, match=r"learned_embeds\.safetensors"):
        pipe.load_textual_inversion(str(tmp_path))


@pytest.mark.parametrize(
    ("saved_in", "image_encoder_folder"), [("models/encoder", "encoder"), ("other/encoder", "other/encoder")]
)
def test_an_ip_adapter_is_read_from_safetensors_alone(pipe, tmp_path, saved_in, image_encoder_folder):
    weights, encoder = tiny_ip_adapter(pipe)
    (tmp_path / "models").mkdir()
    flat = {f"{part}.{name}": value for part, values in weights.items() for name, value in values.items()}
    save_file(flat, tmp_path / "models" / "ip.safetensors")
    torch.save(weights, tmp_path / "models" / "ip.bin")
    encoder.save_pretrained(tmp_path / saved_in)
    given = {"subfolder": "models", "image_encoder_folder": image_encoder_folder}
    with pytest.raises(ValueError, match="ip.bin is not in safetensors"):
        pipe.load_ip_adapter(str(tmp_path), weight_name=["ip.safetensors", "ip.bin"], **given)
    assert pipe.image_encoder is None
    pipe.load_ip_adapter(str(tmp_path), weight_name="ip.safetensors", **given)
    found = pipe.image_encoder.state_dict()
    assert all(torch.equal(found[name], value) for name, value in encoder.state_dict().items())

    again = tiny_pipeline()
    torch.save(encoder.state_dict(), tmp_path / saved_in / "pytorch_model.bin")
    (tmp_path / saved_in / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        again.load_ip_adapter(str(tmp_path), weight_name="ip.safetensors", **given)
    again.load_ip_adapter(
        [str(tmp_path)], weight_name=["ip.safetensors"], subfolder=["models"], image_encoder_folder=None
    )
    assert again.image_encoder is None and again.unet.encoder_hid_proj is not None
