"""What users depend on. A change here is a decision: say so in the commit, and change this file with it."""

import importlib.util
import inspect
import os
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest

import backshan_diffusers
from backshan_diffusers import (
    BackshanControlNetModel,
    BackToFrontPipeline,
    BackToFrontPipelineOutput,
    cli,
    data,
    evaluation,
    export,
    hub,
    models,
    pipelines,
)
from backshan_diffusers.objective import PRESETS, Objective
from backshan_diffusers.training.config import STAGES, TrainingConfig

ROOT = Path(__file__).parents[1]


def options_of(parser):
    """Every option string of a parser."""
    return {string for action in parser._actions for string in action.option_strings}


def commands():
    """Names and parsers of the subcommands."""
    return cli.build_parser()._subparsers._group_actions[0].choices


def test_exports():
    names = ["MINI", "__version__", "BackToFrontPipeline", "BackToFrontPipelineOutput"]
    names += ["BackshanControlNetModel", "BackshanControlNetOutput"]
    assert sorted(backshan_diffusers.__all__) == sorted(names)
    assert dir(backshan_diffusers) == sorted(names)
    for name in names:
        assert getattr(backshan_diffusers, name) is not None
    with pytest.raises(AttributeError, match="Nonsense"):
        backshan_diffusers.Nonsense  # noqa: B018


def test_commands():
    assert list(commands()) == ["generate", "export", "push"]
    assert options_of(cli.build_parser()) == {"-h", "--help", "--version"}


def test_options_of_generate_and_their_defaults():
    options = vars(cli.build_parser().parse_args(["generate", "back.png"]))
    del options["run"]
    assert options == {
        "backs": ["back.png"],
        "out": "fronts",
        "model": "mini",
        "num_images": 1,
        "seed": 0,
        "steps": None,
        "guidance": None,
        "prompt": None,
        "negative_prompt": None,
        "device": None,
        "dtype": "float32",
        "batch_size": 1,
        "original_size": False,
        "sheet": False,
    }
    long = {f"--{name.replace('_', '-')}" for name in options if name != "backs"}
    assert options_of(commands()["generate"]) == {"-h", "--help", "-o", *long}


def test_options_of_export():
    options = vars(cli.build_parser().parse_args(["export", "mini", "-o", "x", "--format", "onnx"]))
    del options["run"]
    assert options == {"model": "mini", "out": "x", "format": "onnx"}
    assert options_of(commands()["export"]) == {"-h", "--help", "-o", "--out", "--format"}
    for arguments in (["mini", "-o", "x"], ["mini", "--format", "onnx"], ["mini", "-o", "x", "--format", "coreml"]):
        with pytest.raises(SystemExit, match="2"):
            cli.build_parser().parse_args(["export", *arguments])


def test_exports_of_export():
    names = ["ExportError", "export_controlnet", "export_onnx", "load_stored_controlnet", "origin_of"]
    assert sorted(export.__all__) == names
    assert list(inspect.signature(export.export_controlnet).parameters) == ["controlnet", "target", "origin"]
    assert list(inspect.signature(export.export_onnx).parameters) == ["pipeline", "target", "origin"]
    assert list(inspect.signature(export.load_stored_controlnet).parameters) == ["folder"]
    assert list(inspect.signature(export.origin_of).parameters) == ["folder", "repo_id"]


def test_exports_of_models_and_pipelines():
    assert sorted(models.__all__) == ["BackshanControlNetModel", "BackshanControlNetOutput"]
    assert sorted(pipelines.__all__) == ["BackToFrontPipeline", "BackToFrontPipelineOutput", "NotFiniteError"]


def test_exports_of_evaluation():
    arguments = {
        "GeneratedFront": "pipeline seed num_inference_steps blank prompt_of",
        "Interval": "mean low high items groups",
        "METRICS": None,
        "Metric": "label function mask lower_is_better digits",
        "MirroredBack": "",
        "NearestTrainingFront": "training_rows processes",
        "colour_difference": "generated front mask",
        "edge_error": "generated front mask",
        "l1": "generated front mask",
        "mean_intervals": "values groups seed",
        "measure": "rows systems batch_size other_sides fronts_without",
        "presence": "generated front without",
        "share_interval": "values groups",
        "side_correct": "generated front other_side",
        "ssim": "generated front mask",
        "summarise": "records ours seed",
        "summarise_presences": "records things seed",
        "summarise_sides": "records things",
    }
    assert sorted(evaluation.__all__) == sorted(arguments)
    for name, expected in arguments.items():
        if expected is not None:
            assert list(inspect.signature(getattr(evaluation, name)).parameters) == expected.split(), name
    pixels = ["person_l1", "person_ssim", "garment_colour_difference", "head_l1"]
    assert list(evaluation.METRICS) == [*pixels, "person_edge_error"]


def test_options_of_push_and_their_defaults():
    options = vars(cli.build_parser().parse_args(["push", "model", "owner/name"]))
    del options["run"]
    expected = {"folder": "model", "repo": "owner/name", "private": False, "revision": None, "license": None}
    assert options == expected
    assert options_of(commands()["push"]) == {"-h", "--help", "--private", "--revision", "--license"}


def test_the_hub():
    keywords = {
        hub.push: ["private", "revision", "license", "token", "message", "create_pr", "subfolder"],
        hub.push_pairs: ["size", "splits", "license", "path", "private", "revision", "token"],
    }
    for function, names in keywords.items():
        parameters = inspect.signature(function).parameters.values()
        assert [each.name for each in parameters if each.kind == inspect.Parameter.KEYWORD_ONLY] == names
    assert list(inspect.signature(hub.push).parameters)[:2] == ["folder", "repo_id"]
    assert list(inspect.signature(hub.push_pairs).parameters)[:2] == ["repo_id", "source"]
    for function in (hub.pull, hub.pull_pairs):
        assert list(inspect.signature(function).parameters) == ["repo_id", "revision", "token"]
    for name in ("MissingRepoError", "MissingRevisionError", "MissingFileError", "UnreachableHubError"):
        assert issubclass(getattr(hub, name), hub.HubError)
    assert issubclass(hub.HubError, OSError)


def test_options_of_the_training_script():
    spec = importlib.util.spec_from_file_location("train_backshan", ROOT / "examples" / "train_backshan.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    of_run = {
        *("output_dir", "base_model", "controlnet", "layers_per_block", "source", "source_path", "train_pairs"),
        *("validation_pairs", "conditioning", "mirror", "prompt", "seed", "mask_face", "cache_dir", "report_to"),
        *("accept_changes", "captions", "block_out_channels"),
    }
    of_stage = {
        *("condition_dropout", "prompt_dropout", "crop_sizes", "kl_weight", "edge_weight", "colour_weight"),
        *("unlock_unet", "max_steps", "batch_size", "learning_rate", "unet_learning_rate", "warmup_steps"),
        *("weight_decay", "max_grad_norm", "ema_decay", "log_every", "checkpoint_every", "validate_every"),
        *("adam_beta1", "discriminator_learning_rate"),
        *("flip", "colour_jitter", "affine", "affine_shared", "hard_negatives", "hard_group_size"),
        *("person_weight", "head_weight", "unseen_weight", "cached_contrast", "gradient_accumulation_steps"),
        *("checkpoints_total_limit", "probe_every", "latents_stay"),
        *("gradient_checkpointing", "channels_last", "compile", "optimizer", "unet_lora_rank"),
    }
    model = {
        *("image_size", "latent_channels", "vae_channels", "unet_channels", "unet_attention", "condition_channels"),
        *("text_width", "text_layers", "attention_head_dim", "norm_num_groups"),
    }
    assert {entry.name for entry in fields(TrainingConfig)} == of_run | of_stage | {"model", "objective", "stages"}
    objective = {f"objective.{name}" for name in ("preset", *(entry.name for entry in fields(Objective)))}
    staged = {f"stages.{stage}.{name}" for stage in STAGES for name in of_stage | objective}
    names = of_run | of_stage | {f"model.{name}" for name in model} | objective | staged
    own = {"-h", "--help", "--config", "--dry_run", "--push_to_hub", "--hub_private", "--push_every"}
    assert options_of(script.build_parser()) == own | {f"--{n}" for n in names}


def test_presets_of_the_objective():
    """Results are told by a preset's name, so that its values must not move under it."""
    plain = {
        "contrastive_weight": 0.0,
        "contrastive_warmup_steps": 0,
        "contrastive_anneal_steps": 0,
        "contrast": "pairs",
        "temperature": 1.0,
        "learned_temperature": False,
        "both_directions": False,
        "features": "all",
        "pooled": False,
        "mirror_features": False,
        "before_zero_convolutions": False,
        "projection_width": 0,
        "front_latents": "shared",
        "front_gradient": True,
        "timesteps": "item",
        "timestep_shift": 1.0,
        "same_group_negatives": False,
        "min_snr_gamma": 0.0,
        "noise_offset": 0.0,
        "adversarial_weight": 0.0,
        "adversarial_pull": 1.0,
        "adversarial_head_start_steps": 0,
        "adversarial_warmup_steps": 0,
        "coarse_weight": 0.0,
        "rollout_share": 0.0,
    }
    middle = {"features": "mid", "pooled": True, "before_zero_convolutions": True}
    negatives = {"contrastive_weight": 0.5, "contrast": "negatives", "temperature": 0.5}
    pairs = {"contrastive_weight": 0.05, "contrastive_warmup_steps": 500, "temperature": 0.1, "both_directions": True}
    assert {name: asdict(preset) for name, preset in PRESETS.items()} == {
        "mse": plain,
        "paper": plain | {"contrastive_weight": 1.0},
        "dispersive": plain | middle | negatives,
        "backshan": plain | middle | pairs | {"front_latents": "independent"},
    }


def test_load_pairs():
    parameters = inspect.signature(data.load_pairs).parameters
    assert list(parameters) == ["source", "split", "size", "count", "path"]
    for name, default in (("split", ...), ("size", ...), ("count", None), ("path", None)):
        assert parameters[name].kind == inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is (inspect.Parameter.empty if default is ... else default)
    assert list(data.SOURCES) == ["wardrobe", "folder", "lpc", "valid"]
    names = ["COLUMNS", "SOURCES", "PairCheck", "Pairs", "PairsError", "check_pairs", "load_pairs"]
    assert sorted(data.__all__) == sorted(names)
    assert list(inspect.signature(data.check_pairs).parameters) == ["rows", "processes"]
    assert data.COLUMNS == (
        "item_id",
        "group_id",
        "back",
        "front",
        "back_person",
        "front_person",
        "back_garments",
        "front_garments",
        "front_head",
        "front_face",
        "attributes",
    )


def test_fields_of_the_controlnets_config():
    from diffusers import ControlNetModel

    own = inspect.signature(BackshanControlNetModel).parameters
    stock = inspect.signature(ControlNetModel).parameters
    assert {name: own[name].default for name in own if name not in stock} == {
        "conditioning": "rgb",
        "mirror": True,
        "image_size": 512,
        "canny_low_threshold": 100,
        "canny_high_threshold": 200,
        "default_prompt": "Front side of the person",
        "default_guidance_scale": 7.5,
        "default_num_inference_steps": 50,
    }
    assert set(stock) <= set(own)
    for name in ("from_unet", "from_controlnet", "control_features"):
        assert callable(getattr(BackshanControlNetModel, name))


def test_arguments_of_the_pipeline():
    parameters = inspect.signature(BackToFrontPipeline.__call__).parameters
    assert {name: parameters[name].default for name in parameters if name not in ("self", "kwargs")} == {
        "back_image": inspect.Parameter.empty,
        "prompt": None,
        "conditioning": None,
        "mirror": None,
        "height": None,
        "width": None,
        "num_inference_steps": None,
        "guidance_scale": None,
        "negative_prompt": None,
        "num_images_per_prompt": 1,
        "prompt_embeds": None,
        "negative_prompt_embeds": None,
        "restore_size": False,
        "output_type": "pil",
        "return_dict": True,
    }
    assert list(inspect.signature(BackToFrontPipelineOutput).parameters) == [
        "images",
        "nsfw_content_detected",
        "control_images",
    ]


def test_no_library_tells_anybody_that_it_runs():
    """In a process of its own: the libraries read the variables when they are imported."""
    names = ("HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY")
    code = f"import backshan_diffusers, os; print([os.environ[name] for name in {names}])"
    kept = {name: value for name, value in os.environ.items() if name not in names}
    for given in ({}, dict.fromkeys(names, "0")):
        told = subprocess.check_output([sys.executable, "-c", code], env=kept | given, text=True)
        assert told == f"{['0', '0'] if given else ['1', '1']}\n"
