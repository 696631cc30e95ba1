"""Folders that are no whole pipeline: what is missing or damaged is named, in one sentence, before it is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline

from backshan_diffusers import MINI, BackToFrontPipeline
from backshan_diffusers.folder_check import (
    ADAPTERS,
    check_controlnet,
    check_folder,
    find_damage,
    lone_variant,
    refuse_random_encoders,
    stored_variant,
    without_origin,
)

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "controlnet", "scheduler")
CONFIGS = [
    "controlnet/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
]
WEIGHTS = [
    "controlnet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(file: Path, **changed) -> None:
    """Change entries of a JSON file; `None` drops one."""
    content = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def refused(folder: Path, *words, given: tuple[str, ...] = ()) -> bool:
    with pytest.raises(OSError, match=".") as caught:
        check_folder(folder, given)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert str(word) in message
    return True


def test_adapters_are_called_as_diffusers_does():
    assert ADAPTERS == LORA_WEIGHT_NAME_SAFE


@pytest.mark.parametrize("make", [str, Path])
def test_whole_folders_pass(folder, make):
    for whole in (folder, MINI):
        check_folder(Path(whole), ())
        assert BackToFrontPipeline.from_pretrained(make(whole)).unet is not None


def test_the_list_of_files_is_that_of_a_saved_pipeline(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*CONFIGS, *WEIGHTS, "model_index.json"}


def test_what_the_index_says_of_itself_is_no_component(folder):
    edit(folder / "model_index.json", _ignore_files=["a.bin", "b.bin"])
    check_folder(folder, ())


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(folder, part):
    index = json.loads((folder / "model_index.json").read_text())
    shutil.rmtree(folder / part)
    assert refused(folder, f"the folder {folder / part} is missing", "copy or download")
    check_folder(folder, (part,))  # what is given is not needed
    for entry in (None, [None, None], "a text"):
        edit(folder / "model_index.json", **{part: entry})
        assert refused(folder, f"{folder / 'model_index.json'} names no {part}")
    (folder / "model_index.json").write_text(json.dumps(index | {part: [None, None]}))
    check_folder(folder, (part,))


@pytest.mark.parametrize("file", CONFIGS)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    assert refused(folder, f"{folder / file} is missing", "copy or download")


@pytest.mark.parametrize("file", WEIGHTS)
def test_missing_weights_are_named(folder, file):
    (folder / file).unlink()
    assert refused(folder, f"{(folder / file).parent} has no weights", "copy or download")
    for suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        pickled = (folder / file).with_suffix(suffix)
        pickled.touch()
        assert refused(folder, f"{pickled.parent} has its weights only as a pickle", "convert them")
        pickled.unlink()


@pytest.mark.parametrize("part", ["safety_checker", "image_encoder"])
def test_parts_that_a_pipeline_may_have_need_weights_too(folder, part):
    edit(folder / "model_index.json", **{part: ["transformers", "CLIPVisionModelWithProjection"]})
    (folder / part).mkdir()
    assert refused(folder, f"{folder / part} has no weights", "copy or download")
    check_folder(folder, (part,))


@pytest.mark.parametrize("ending", ["index.json", "index.fp16.json"])
def test_a_missing_shard_is_named(folder, ending):
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shards = [whole.with_name(f"diffusion_pytorch_model-0000{number}-of-00003.safetensors") for number in (1, 2, 3)]
    for shard in shards:
        shutil.copy(whole, shard)
    index = {"weight_map": {f"layer.{number}": shard.name for number, shard in enumerate(shards)}}
    (folder / "unet" / f"diffusion_pytorch_model.safetensors.{ending}").write_text(json.dumps(index))
    check_folder(folder, ())
    shards[1].unlink()
    assert refused(folder, f"{shards[1]} is missing", "copy or download")
    for shard in (shards[0], shards[2]):
        shard.unlink()
    check_folder(folder, ())  # of an index without a file diffusers speaks itself, if it is the one to be read


def test_of_a_controlnet_alone_pickles_are_refused_too(folder):
    check_controlnet(folder / "controlnet")
    weights = folder / "controlnet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(OSError, match="controlnet has its weights only as a pickle"):
        check_controlnet(folder / "controlnet")


@pytest.mark.parametrize("file", [*CONFIGS, *WEIGHTS, "model_index.json"])
def test_a_damaged_file_is_named(folder, file):
    whole = (folder / file).read_bytes()
    for content in (whole[: len(whole) // 2], whole[: len(whole) - 8], b"", bytes(2000), b"\xff" * 2000):
        (folder / file).write_bytes(content)
        assert refused(folder, f"{folder / file} is damaged (", "copy or download")


@pytest.mark.parametrize("file", [*CONFIGS, "model_index.json"])
def test_json_of_another_kind_is_named(folder, file):
    (folder / file).write_text("[" * 200_000)
    assert refused(folder, f"{folder / file} is damaged (it is nested too deeply)")
    (folder / file).write_text("[]")
    assert refused(folder, f"{folder / file} is damaged (it holds no JSON object)")


def test_a_vocabulary_may_have_the_older_form(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    assert refused(folder, "tokenizer.json is missing")
    (folder / "tokenizer" / "merges.txt").touch()
    check_folder(folder, ())


def test_a_tokenizer_has_to_say_how_long_a_prompt_is(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    assert refused(folder, "tokenizer_config.json is damaged (it has no model_max_length)")
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=1_000_000)
    check_folder(folder, ())
    for length in (10**30, 1_000_001, 0, "long"):  # the first is what transformers writes where nobody has said it
        edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=length)
        assert refused(folder, f"tokenizer_config.json is damaged (its model_max_length is {length!r})")


def test_a_scheduler_has_to_know_what_the_unet_predicts(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    for name in ("epsilon", "v_prediction", "sample", "flow_prediction"):
        edit(file, prediction_type=name)
        check_folder(folder, ())
    edit(file, prediction_type="noise")
    assert refused(folder, "scheduler_config.json is damaged (its prediction_type is 'noise')")


def test_a_config_is_told_without_where_it_came_from(folder):
    text = (folder / "unet" / "config.json").read_text()
    elsewhere = json.dumps(json.loads(text) | {"_name_or_path": "/models/someone"})
    assert without_origin(elsewhere) == without_origin(text) == text


def test_a_component_that_does_not_fit_together_is_found(folder):
    assert find_damage(folder) is None
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensors[name] for name in tensors if name != "decoder.conv_in.bias"}, weights, {"format": "pt"})
    check_folder(folder, ())
    assert find_damage(folder).startswith(f"{folder / 'vae'} has no weight decoder.conv_in.bias: copy or download")
    edit(folder / "unet" / "config.json", block_out_channels=[8])
    found = find_damage(folder)  # components come in the order of the index
    assert found.startswith(f"{folder / 'unet'} cannot be loaded (")
    assert "\n" not in found


@pytest.mark.parametrize("library", ["no_such_library", "no_such_library.part", ".", ""])
def test_a_library_that_is_not_installed_is_named(folder, library):
    edit(folder / "model_index.json", feature_extractor=[library, "Something"])
    (folder / "feature_extractor").mkdir()
    told = f"model_index.json names the library {library} for feature_extractor, which is not installed: install it"
    assert refused(folder, told)
    check_folder(folder, ("feature_extractor",))


@pytest.mark.parametrize("library", ["os", "os.path"])
def test_a_library_that_can_hold_no_component_is_named(folder, library):
    edit(folder / "model_index.json", scheduler=[library, "path"])
    assert refused(
        folder, f"model_index.json is damaged (its scheduler is of the library {library}): copy or download"
    )


def test_libraries_that_are_at_hand(folder):
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "mine.py").touch()
    for library in ("stable_diffusion", "mine", "backshan_diffusers.pipelines", "transformers"):
        edit(folder / "model_index.json", feature_extractor=[library, "Something"])
        check_folder(folder, ())


def test_weights_in_a_variant_alone(folder):
    assert lone_variant(folder) is None
    names = [f"model{middle}.safetensors" for middle in (".fp16", ".fp16-00001-of-00002", "-00001-of-00002.fp16")]
    for part in ("text_encoder", "unet"):
        (weights,) = (folder / part).glob("*.safetensors")
        for name in names:
            weights = weights.rename(weights.with_name(name))
            assert stored_variant(folder / part) == lone_variant(folder) == "fp16"
            assert lone_variant(folder, (part,)) is None
        shutil.copy(weights, weights.with_name("model-00001-of-00002.safetensors"))
        assert stored_variant(folder / part) is lone_variant(folder) is None


def test_damage_is_found_in_a_variant_too(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path, variant="fp16")
    assert find_damage(tmp_path) is None
    refuse_random_encoders(tmp_path)
    weights = tmp_path / "text_encoder" / "model.fp16.safetensors"
    tensors = load_file(weights)
    del tensors["final_layer_norm.bias"], tensors["final_layer_norm.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(OSError, match="text_encoder has no weight final_layer_norm.bias: copy or download"):
        refuse_random_encoders(tmp_path)


@pytest.mark.parametrize(
    ("part", "safe", "pickle"),
    [
        ("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ],
)
def test_no_pickle_is_opened(folder, part, safe, pickle):
    torch.save(load_file(folder / part / safe), folder / part / pickle)
    (folder / part / safe).unlink()
    assert find_damage(folder).startswith(f"{folder / part} cannot be loaded (")
    if part == "text_encoder":
        with pytest.raises(OSError, match="safetensors"):
            refuse_random_encoders(folder)
