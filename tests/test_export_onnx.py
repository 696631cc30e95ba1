"""Exported ONNX files run on this CPU: each part, and a whole picture, against PyTorch."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline

from backshan_diffusers import BackToFrontPipeline, __version__, cli
from backshan_diffusers.conditioning import control_image
from backshan_diffusers.export import ExportError, export_onnx, onnx_folder

ORIGIN = {"software": "backshan", "version": "1", "model": "tiny", "license": "mit"}
ROOT = Path(__file__).parents[1]


class Exported:
    """The parts of a folder, as somebody runs them who has only its description."""

    def __init__(self, folder: Path):
        from onnxruntime import InferenceSession

        self.folder = folder
        self.description = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.sessions = {name: InferenceSession(folder / f"{name}.onnx") for name in self.description["parts"]}

    def run(self, part: str, **values: np.ndarray) -> dict[str, np.ndarray]:
        outputs = list(self.description["parts"][part]["outputs"])
        return dict(zip(outputs, self.sessions[part].run(outputs, values), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny pipeline that reads latents, which has every part there is; `docs/export.md`, which is run too, has one
    that reads pictures."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline("latents").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, folder) -> Exported:
    """The same, exported by the command."""
    for name in onnx_folder.PACKAGES:
        pytest.importorskip(name, reason="the extra `export` is not installed")
    target = tmp_path_factory.mktemp("exported") / "new" / "tiny"
    assert cli.main(["export", str(folder), "-o", str(target), "--format", "onnx"]) == 0
    return Exported(target)


@pytest.fixture(scope="module")
def pipe(folder) -> BackToFrontPipeline:
    pipeline = BackToFrontPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def close(result: np.ndarray, wanted: torch.Tensor) -> bool:
    return np.abs(result - wanted.numpy()).max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("items", [1, 4])
@torch.no_grad()
def test_each_part_computes_what_pytorch_does(items, exported, pipe):
    random = torch.Generator().manual_seed(0)
    input_ids = torch.randint(500, (items, 77), generator=random)
    latents = torch.randn((items, 4, 8, 8), generator=random)
    timestep = torch.full((items,), 700)
    control = torch.rand((items, 4, 64, 64), generator=random)
    embeds = pipe.text_encoder(input_ids).last_hidden_state
    residuals = pipe.controlnet(latents, 700, embeds, control)
    prediction = pipe.unet(
        *(latents, 700, embeds),
        down_block_additional_residuals=residuals.down_block_res_samples,
        mid_block_additional_residual=residuals.mid_block_res_sample,
    ).sample
    pictures = pipe.image_processor.denormalize(pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample)

    assert close(exported.run("text_encoder", input_ids=input_ids.numpy())["prompt_embeds"], embeds)
    step = {"latents": latents.numpy(), "timestep": timestep.numpy(), "prompt_embeds": embeds.numpy()}
    results = exported.run("controlnet", control=control.numpy(), **step)
    downs = {f"down_residual_{number}": each for number, each in enumerate(residuals.down_block_res_samples)}
    wanted = downs | {"mid_residual": residuals.mid_block_res_sample}
    assert list(results) == list(wanted)
    assert all(close(results[name], wanted[name]) for name in wanted)
    given = {name: value.numpy() for name, value in wanted.items()}
    assert close(exported.run("unet", **step, **given)["prediction"], prediction)
    assert close(exported.run("vae_decoder", latents=latents.numpy())["pictures"], pictures)


def test_a_whole_picture_is_that_of_the_pipeline(exported, pipe, drawn_backs):
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    back = drawn_backs[0]
    wanted = pipe(back, generator=torch.Generator().manual_seed(5), output_type="np").images[0]

    recorded, parts = exported.description["recorded"], exported.description["parts"]
    tokenizer = CLIPTokenizer.from_pretrained(exported.folder / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(exported.folder / "scheduler")
    length = parts["text_encoder"]["inputs"]["input_ids"]["shape"][1]
    tokens = tokenizer(recorded["default_prompt"], padding="max_length", max_length=length, return_tensors="np")
    embeds = exported.run("text_encoder", input_ids=tokens.input_ids)
    control = exported.run("vae_encoder", back=control_image(back, "rgb", recorded["mirror"])[None].numpy())
    shape = (1, *parts["unet"]["inputs"]["latents"]["shape"][1:])
    noise = torch.Generator().manual_seed(5)
    latents = torch.randn(shape, generator=noise) * scheduler.init_noise_sigma
    scheduler.set_timesteps(recorded["default_num_inference_steps"])
    for timestep in scheduler.timesteps:
        step = {"latents": latents.numpy(), "timestep": timestep[None].numpy(), **embeds}
        residuals = exported.run("controlnet", **control, **step)
        prediction = torch.from_numpy(exported.run("unet", **step, **residuals)["prediction"])
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    picture = exported.run("vae_decoder", latents=latents.numpy())["pictures"][0].transpose(1, 2, 0)
    assert np.abs(picture - wanted).max() < 1e-4
    assert wanted.std() > 0.05


def test_the_description_says_all_that_is_needed(exported):
    description, readme = exported.description, (exported.folder / "README.md").read_text(encoding="utf-8")
    assert {name: description[name] for name in ("software", "version", "model", "license")} == {
        "software": "backshan",
        "version": __version__,
        "model": "tiny",
        "license": "not recorded",
    }
    assert description["recorded"]["conditioning"] == "latents" and description["recorded"]["mirror"] is True
    assert description["parts"]["controlnet"]["inputs"]["control"] == {
        "type": "float",
        "shape": ["batch", 4, 64, 64],
    }
    for name, part in description["parts"].items():
        session = exported.sessions[name]
        for kind, arguments in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert list(part[kind]) == [argument.name for argument in arguments]
            for argument, facts in zip(arguments, part[kind].values(), strict=True):
                assert facts["shape"] == argument.shape and argument.shape[0] == "batch"
                assert f"| `{argument.name}` | {facts['type']} | {' x '.join(map(str, argument.shape))} |" in readme
    told = "`back` is that square,\n   flipped left-right, with values from 0 to 1; `vae_encoder` makes `control`"
    assert told in readme and "Front side of the person" in readme


def test_for_latents_the_encoder_is_a_part_too(exported, pipe, drawn_backs):
    entered = []
    handle = pipe.controlnet.register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(kwargs["controlnet_cond"]), with_kwargs=True
    )
    pipe(drawn_backs[0], num_inference_steps=1)
    handle.remove()
    back = control_image(drawn_backs[0], "rgb", mirror=True)[None].numpy()
    assert close(exported.run("vae_encoder", back=back)["control"], entered[0])


def test_for_pictures_it_is_not_and_the_readme_says_how_they_enter(exported):
    parts = [part.name for part in onnx_folder._parts(tiny_pipeline())]
    assert parts == ["text_encoder", "controlnet", "unet", "vae_decoder"]
    recorded = exported.description["recorded"] | {"conditioning": "rgb"}
    readme = onnx_folder._readme(exported.description | {"recorded": recorded})
    assert "`control` is that square,\n   flipped left-right, as `rgb`, with values from 0 to 1." in readme


def test_no_file_holds_a_path_of_this_machine(exported):
    paths = [str(place).encode() for place in (ROOT, Path(torch.__file__).parents[1], exported.folder.parent)]
    for file in exported.folder.rglob("*"):
        assert not file.is_file() or not any(path in file.read_bytes() for path in paths), file
    names = {f"{part}.onnx" for part in ("vae_encoder", "text_encoder", "controlnet", "unet", "vae_decoder")}
    others = {"export.json", "README.md", "tokenizer", "scheduler"}
    assert {path.name for path in exported.folder.iterdir()} == names | others
    assert [path.name for path in exported.folder.parent.iterdir()] == ["tiny"]


def test_only_what_was_exported_before_is_replaced(exported, tiny_folder, tmp_path, capsys):
    shutil.copytree(exported.folder, tmp_path / "ours")
    assert onnx_folder._is_ours(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "export.json").write_text('["software"]')
    for name in ("theirs", "file", "other"):
        assert cli.main(["export", str(tiny_folder), "-o", str(tmp_path / name), "--format", "onnx"]) == 2
        assert f"{name} exists and was not written by backshan: give another name." in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "" and not list((tmp_path / "theirs").iterdir())


def test_the_folder_that_the_command_runs_in_is_not_replaced(exported, tiny_folder, tmp_path, monkeypatch, capsys):
    ours = shutil.copytree(exported.folder, tmp_path / "ours")
    (ours / "deeper").mkdir()
    for here, out in ((ours, "."), (ours / "deeper", "..")):
        monkeypatch.chdir(here)
        assert cli.main(["export", str(tiny_folder), "-o", out, "--format", "onnx"]) == 2
        told = f"backshan: {out} would be replaced while the command runs in it: run it from another folder.\n"
        assert capsys.readouterr().err.endswith(told)
    assert Exported(ours).description == exported.description


def test_a_file_that_computes_something_else_is_not_kept(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_folder, "TOLERANCE", -1.0)
    pipeline = tiny_pipeline("latents")
    shutil.copytree(exported.folder, tmp_path / "ours")
    with pytest.raises(ExportError, match="the exported vae_encoder is off by .* so it is not kept"):
        export_onnx(pipeline, tmp_path / "ours", ORIGIN)
    assert Exported(tmp_path / "ours").description == exported.description
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_without_the_extra_one_sentence_names_it(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert cli.main(["export", str(tiny_folder), "-o", str(tmp_path / "x"), "--format", "onnx"]) == 2
    assert (
        "need onnxscript: install the package with its extra, backshan_diffusers[export]." in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())
