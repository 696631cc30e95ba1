"""The training config: its checks, files and options, the shipped files, and the script that reads them."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from tiny import TINY, pair_arrays, tiny_config

from backshan_diffusers.data import load_pairs
from backshan_diffusers.objective import PRESETS
from backshan_diffusers.training.config import STAGES, ConfigError, ModelSize, TrainingConfig
from backshan_diffusers.training.options import (
    _in_words,
    known_options,
    load_config,
    new_parser,
    read_options,
)
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.scratch import build_pipeline

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "examples" / "configs"
SMOKE = CONFIGS / "smoke.yaml"


def read(folder: Path, text: str, *words: str) -> TrainingConfig:
    """The config of a file with that text and those words of a command line."""
    path = folder / "c.yaml"
    path.write_text(text)
    return load_config(path, **{"output_dir": "out", **read_options(new_parser(""), words)})


# --- what wins -------------------------------------------------------------------------------------------------------


def test_an_option_wins_over_the_file_and_its_stages(tmp_path):
    text = "max_steps: 5\nseed: 3\nstages:\n  joint: {max_steps: 7, batch_size: 2}\n  vae:\n  prior: {}\n"
    plain = read(tmp_path, text)
    assert plain.stage("joint").max_steps == 7 and plain.stage("vae").max_steps == 5
    assert plain.stage_names() == ["vae", "prior", "joint"]
    changed = read(tmp_path, text, "--max_steps", "1")
    assert [changed.stage(name).max_steps for name in ("vae", "joint")] == [1, 1]
    assert changed.stage("joint").batch_size == 2 and changed.seed == 3


def test_the_later_option_wins(tmp_path):
    stage, plain = ("--stages.joint.max_steps", "5"), ("--max_steps=2",)
    assert read(tmp_path, "", *plain, *stage).stage("joint").max_steps == 5
    assert read(tmp_path, "", *plain, *stage).stage("vae").max_steps == 2
    assert read(tmp_path, "", *stage, *plain).stage("joint").max_steps == 2
    assert read(tmp_path, "", *stage, *plain, "--stages.joint.max_steps", "6").stage("joint").max_steps == 6


def test_an_option_of_one_stage_leaves_the_others_as_they_run(tmp_path):
    config = read(tmp_path, "", "--stages.joint.max_steps", "5")
    assert config.stage_names() == list(STAGES) and config.stage("joint").max_steps == 5
    config = read(tmp_path, "base_model: x", "--stages.joint.max_steps", "5")
    assert config.stage_names() == ["controlnet", "joint"]
    config = read(tmp_path, "", "--stages.joint.max_steps", "5", "--base_model", "x")
    assert config.stage_names() == ["controlnet", "joint"]


def test_options_reach_every_depth(tmp_path):
    words = ("--model.image_size", "64", "--model.unet_channels", "[16,32]", "--model.unet_attention=[false, true]")
    words += ("--captions", '["glasses=true: glasses", "beard: {beard} beard"]')
    words += ("--crop_sizes", "[32, 64]", "--mirror", "false", "--prompt", "null", "--learning_rate", "5e-4")
    words += ("--stages.joint.objective.temperature", "0.2")
    config = read(tmp_path, "{prompt: x, model: {image_size: 128, latent_channels: 4}}", *words)
    assert config.model == ModelSize(64, 4, unet_channels=(16, 32), unet_attention=(False, True))
    assert config.captions == ("glasses=true: glasses", "beard: {beard} beard")
    assert (config.crop_sizes, config.mirror, config.prompt, config.learning_rate) == ((32, 64), False, None, 5e-4)
    assert config.stage("joint").resolve_objective().temperature == 0.2
    assert config.stage("controlnet").resolve_objective().temperature == PRESETS["backshan"].temperature


def test_numbers_are_read_as_the_fields_mean_them(tmp_path):
    config = read(tmp_path, "learning_rate: 5e-4\nkl_weight: 1\ncrop_sizes: [64]\nmirror: false\nstages:\n  vae:\n")
    assert (config.learning_rate, config.kl_weight) == (0.0005, 1.0) and isinstance(config.kl_weight, float)
    assert config.crop_sizes == (64,) and config.mirror is False and config.conditioning is None
    assert config.stages == {"vae": {}}
    assert read(tmp_path, f"seed: {2**53 + 1}").seed == 2**53 + 1


def test_every_field_is_an_option_with_a_help_and_a_known_kind():
    options = known_options()
    for name, option in options.items():
        assert _in_words(option.kind) and option.help, name
    values = {name: value for name, value in asdict(TrainingConfig("out")).items() if name != "stages"}
    flat = {
        f"{name}.{inner}" if isinstance(value, dict) else name
        for name, value in values.items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    assert {name for name in options if not name.startswith("stages.")} == flat
    assert "stages.joint.objective.preset" in options and "stages.joint.seed" not in options


def test_a_trained_base_begins_at_controlnet():
    assert TrainingConfig(output_dir="out", base_model="folder").stage_names() == ["controlnet", "joint"]


# --- the objective ---------------------------------------------------------------------------------------------------


def test_an_objective_is_a_preset_with_changes(tmp_path):
    config = read(tmp_path, "objective: {preset: mse, temperature: 0.1}")
    assert config.resolve_objective() == replace(PRESETS["mse"], temperature=0.1)
    assert config.objective == {"preset": "mse", **asdict(replace(PRESETS["mse"], temperature=0.1))}
    assert read(tmp_path, "").resolve_objective() == PRESETS["backshan"]
    assert read(tmp_path, "objective: {temperature: 0.2}").resolve_objective() == replace(
        PRESETS["backshan"], temperature=0.2
    )


OPEN_POINTS = {
    "conditioning": ("canny", "rgb", "canny+rgb", "latents"),
    "objective.front_latents": ("shared", "own", "pure"),
    "objective.timesteps": ("batch",),
    "objective.features": ("all", "last_down"),
    "objective.pooled": (False,),
    "objective.before_zero_convolutions": (False,),
    "objective.projection_width": (16,),
    "objective.temperature": (1.0,),
    "objective.learned_temperature": (True,),
    "objective.contrastive_weight": (1.0,),
    "objective.contrastive_warmup_steps": (7,),
    "objective.contrastive_anneal_steps": (9,),
    "objective.both_directions": (False,),
    "mirror": (True, False),
    "objective.same_group_negatives": (True,),
    "objective.contrast": ("negatives",),
    "hard_negatives": ("attributes", "look"),
}
"""What the method leaves open, and what may be chosen beside the default."""


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OPEN_POINTS.items() for value in values]
)
def test_every_open_point_is_chosen_by_file_or_option_and_recorded(tmp_path, name, value):
    group, _, inner = name.rpartition(".")
    by_file = read(tmp_path, yaml.safe_dump({group: {inner: value}} if group else {name: value}))
    by_option = read(tmp_path, "", f"--{name}", str(value))
    assert by_file == by_option != TrainingConfig(output_dir="out")
    recorded = asdict(by_file.stage("joint"))
    assert (recorded[group][inner] if group else recorded[name]) == value


def test_unpooled_features_may_be_compared_mirrored(tmp_path):
    words = ("--objective.pooled", "false", "--objective.mirror_features", "true")
    assert read(tmp_path, "", *words).resolve_objective() == replace(
        PRESETS["backshan"], pooled=False, mirror_features=True
    )


def test_a_preset_begins_the_objective_anew(tmp_path):
    text = "objective: {preset: paper, contrastive_weight: 0.5}\nstages:\n  vae: {}\n  prior: {}\n"
    text += "  controlnet: {objective: {preset: mse}}\n  joint: {objective: {temperature: 0.1}}\n"
    config = read(tmp_path, text)
    assert config.stage("controlnet").resolve_objective() == PRESETS["mse"]
    assert config.stage("joint").resolve_objective() == replace(
        PRESETS["paper"], contrastive_weight=0.5, temperature=0.1
    )
    plain = read(tmp_path, text, "--objective.temperature", "0.3", "--objective.preset", "paper")
    for name in STAGES:
        assert plain.stage(name).resolve_objective() == replace(PRESETS["paper"], temperature=0.3)
    warmer = read(tmp_path, text, "--objective.temperature", "0.3")
    assert warmer.stage("controlnet").resolve_objective() == replace(PRESETS["mse"], temperature=0.3)
    one = read(tmp_path, text, "--stages.joint.objective.preset", "mse", "--stages.joint.objective.temperature", "2")
    assert one.stage("joint").resolve_objective() == replace(PRESETS["mse"], temperature=2)
    assert one.stage("controlnet").resolve_objective() == PRESETS["mse"]


def test_what_is_shown_can_be_read_again(tmp_path):
    config = read(tmp_path, SMOKE.read_text(), "--stages.joint.objective.temperature", "0.2", "--prompt", "a: b")
    assert read(tmp_path, yaml.safe_dump(asdict(config))) == config


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_step: 5", "c.yaml has the unknown field 'max_step': choose from output_dir, base_model"),
        ("stages: {joint: {lr: 1}}", "stages.joint has the unknown field 'lr': choose from objective"),
        ("stages: {late: {}}", "stages has the unknown field 'late': choose from vae, prior, controlnet, joint"),
        ("stages: [vae]", r"stages is \['vae'\]: write lines of the form `vae: value`"),
        ("stages: {vae: 3}", "stages.vae is 3: write lines of the form `objective: value`"),
        ("stages: {joint: {}}", "begins with vae and prior"),
        ("stages: {vae: {}, joint: {}}", "begins with vae and prior"),
        ("stages: {vae: {seed: 3}}", "stages.vae has the unknown field 'seed'"),
        ("stages: {vae: {batch_size: 0}}", "batch_size is 0"),
        ("stages: {vae: {}, prior: {unlock_unet: all}}", "unlock_unet under the stage prior: only joint unlocks"),
        ("{base_model: x, stages: {prior: {}}}", "prior is no stage of a run from a base_model"),
        ("{base_model: x, model: {image_size: 256}}", "leave model out"),
        ("base_model: ' '", "base_model is ' ': give a folder"),
        ("source_path: ''", "source_path is '': give a folder"),
        ("cache_dir: ' '", "cache_dir is ' ': give a folder"),
        ("controlnet: x", "controlnet is given without base_model"),
        (
            "{base_model: x, block_out_channels: [64], stages: {controlnet: {}}}",
            "without the stage joint the wider U-Net does not learn",
        ),
        ("block_out_channels: [64]", "widths of a model from nothing are model.unet_channels, so give them there"),
        (
            "{base_model: x, block_out_channels: [64], unet_lora_rank: 4}",
            "the wider U-Net does not learn to use what is",
        ),
        (
            "{base_model: x, block_out_channels: [64], stages: {joint: {unlock_unet: decoder}}}",
            "the wider U-Net does not learn to use what is new",
        ),
        ("layers_per_block: 2", "layers_per_block is given without base_model: .*, so leave it out, or name one"),
        ("{base_model: x, layers_per_block: 2, unet_lora_rank: 4}", "no convolution of the U-Net learns: new layers"),
        (
            "{base_model: x, layers_per_block: 2, stages: {joint: {unlock_unet: attention}}}",
            "no convolution of the U-Net learns: new layers",
        ),
        ("latents_stay: false", "latents_stay is false without base_model: .*, so leave it out"),
        ("{base_model: x, layers_per_block: 0}", "layers_per_block is 0: give a number of at least 1, or null"),
        ("{base_model: x, layers_per_block: 1.5}", "layers_per_block is 1.5: give a whole number or null"),
        ("output_dir: 5", "output_dir is 5: give a text"),
        ("objective: mse", "objective is 'mse': write lines of the form `preset: value`"),
        ("objective: {preset: best}", "objective.preset 'best' does not exist: choose from mse, paper"),
        ("objective: {temprature: 1}", "objective has the unknown field 'temprature': choose from preset"),
        ("objective: {temperature: warm}", "objective.temperature is 'warm': give a number"),
        ("objective: {temperature: .inf}", "objective.temperature is inf: give a finite number"),
        ("unlock_unet: encoder", "unlock_unet 'encoder' does not exist: choose from decoder, attention, all"),
        ("unet_learning_rate: 0", "unet_learning_rate is 0.0: give a positive"),
        ("discriminator_learning_rate: 0", "discriminator_learning_rate is 0.0: give a positive"),
        (
            "stages: {vae: {discriminator_learning_rate: 1e-4}, prior: {}}",
            "_rate under the stage vae: there is no adv",
        ),
        (
            "{base_model: x, stages: {joint: {discriminator_learning_rate: 1e-4}}}",
            "discriminator_learning_rate under the stage joint: there is no adversary",
        ),
        ("unet_learning_rate: fast", "unet_learning_rate is 'fast': give a number or null"),
        ("conditioning: depth", "conditioning 'depth' does not exist"),
        ("conditioning: [rgb]", "conditioning is .'rgb'.: give a text or null"),
        ("mirror: 1", "mirror is 1: give true or false or null"),
        ("batch_size: 0", "batch_size is 0"),
        ("batch_size: 2.5", "batch_size is 2.5: give a whole number"),
        ("batch_size: true", "batch_size is True: give a whole number"),
        ("batch_size:", "batch_size is None: give a whole number"),
        (f"batch_size: {'9' * 400}.5", "give a whole number"),
        ("seed: -1", "seed is -1: give a number from 0"),
        (f"seed: {2**63}", "give a number from 0"),
        ("batch_size: many", "batch_size is 'many': give a whole number"),
        ("learning_rate: .nan", "learning_rate is nan: give a positive number"),
        ("learning_rate: .inf", "learning_rate is inf: give a positive number"),
        ("learning_rate: 0", "learning_rate is 0.0: give a positive"),
        ("adam_beta1: 1", "adam_beta1 is 1.0: give a share from 0 to below 1"),
        ("adam_beta1: .nan", "adam_beta1 is nan: give a share from 0 to below 1"),
        ("log_every: 0", "log_every is 0"),
        ("validate_every: 0", "validate_every is 0"),
        ("{log_every: 3, checkpoint_every: 10}", "give a multiple of it"),
        ("condition_dropout: 1.5", "give a share from 0 to 1"),
        ("condition_dropout: .nan", "give a share from 0 to 1"),
        ("kl_weight: -1", "kl_weight is -1.0: give a number that is not negative"),
        ("kl_weight: .nan", "kl_weight is nan: give a number that is not negative"),
        ("kl_weight: .inf", "kl_weight is inf: give a number that is not negative"),
        ("captions: glasses", r'give a list, in which each is a text, as \["one", "two"\]'),
        ("captions: [glasses: glasses]", r'give a list, in which each is a text, as \["one", "two"\]'),
        ("crop_sizes: 32", "crop_sizes is 32: give a list, in which each is a whole number"),
        ("crop_sizes: [32, x]", "give a list, in which each is a whole number"),
        ("crop_sizes: [30]", "give multiples of 4 up to image_size, 128"),
        ("crop_sizes: []", "give multiples of 4 up to image_size, 128"),
        ("crop_sizes: [256]", "give multiples of 4 up to image_size, 128"),
        ("model: [64]", r"model is \[64\]: write lines of the form `image_size: value`"),
        ("model: {image_size: 60}", "model.image_size is 60: give a multiple of 32"),
        ("model: {image_size: 0}", "model.image_size is 0: give a number of at least 1"),
        (
            "model: {image_size: 8, vae_channels: [4], condition_channels: [4]}",
            "model.image_size is 8: give at least 16",
        ),
        ("model: {depth: 3}", "model has the unknown field 'depth'"),
        ("model: {latent_channels: 0}", "model.latent_channels is 0"),
        ("model: {text_layers: -1}", "model.text_layers is -1"),
        ("model: {text_width: 63}", "model.text_width is 63: give a multiple of 2"),
        ("model: {norm_num_groups: 0}", "model.norm_num_groups is 0"),
        ("model: {attention_head_dim: 0}", "model.attention_head_dim is 0"),
        ("model: {vae_channels: []}", r"model.vae_channels is \[\]: give a width of at least 1 per level"),
        ("model: {unet_channels: []}", r"model.unet_channels is \[\]"),
        ("model: {condition_channels: [8, 0, 8]}", r"model.condition_channels is \[8, 0, 8\]"),
        ("model: {condition_channels: [8, 8]}", "condition_channels has 2 levels and vae_channels 3"),
        ("model: {unet_attention: [true]}", "unet_attention has 1 levels and unet_channels 4"),
        ("model: {vae_channels: [6, 8, 8]}", "norm_num_groups is 4, which does not divide the width 6"),
        ("model: {unet_channels: [8, 8, 6, 8]}", "norm_num_groups is 4, which does not divide the width 6"),
        ("model: {unet_channels: [4, 4, 12, 8], attention_head_dim: 8}", "does not divide the width 12"),
        ("model: {unet_channels: [4, 4, 8, 12], attention_head_dim: 8}", "does not divide the width 12"),
        ("just words", "c.yaml is 'just words': write lines of the form `output_dir: value`"),
        ("{", "not a readable YAML file"),
    ],
)
def test_bad_configs_are_one_sentence(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as refused:
        if text.startswith("output_dir"):
            (tmp_path / "c.yaml").write_text(text)
            load_config(tmp_path / "c.yaml")
        else:
            read(tmp_path, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "many"], "max_steps is 'many': give a whole number"),
        (["--max_steps"], "max_steps is '': give a whole number"),
        (["--max_steps", "3", "4"], "max_steps is '3 4': give a whole number, as one word or in quotes.$"),
        (["--output_dir", "my", "run"], "output_dir is 'my run': give a text, as one word or in quotes.$"),
        (["--crop_sizes", "32"], r"'32': give a list, in which each is a whole number, as \[32, 64\].$"),
        (["--crop_sizes", "32", "64"], r"'32 64': give a list, .*, as \[32, 64\], as one word or in quotes.$"),
        (["--affine", "x"], r"affine is 'x': give a list, in which each is a number, as \[0.1, 0.2\].$"),
        (["--learning_rate", "null"], "learning_rate is 'null': give a number"),
        (["--stages.joint.mirror", "true"], "'--stages.joint.mirror true' cannot be read: --help lists every option"),
        (["--stages.joint.objective.norm", "3"], "--help lists every option.$"),
        (["--max_step", "3"], "'--max_step 3' cannot be read: give --max_steps.$"),
        (["--output-dir", "x"], "'--output-dir x' cannot be read: give --output_dir.$"),
        (["--output-dir=x"], "'--output-dir=x' cannot be read: give --output_dir.$"),
        (["--resume"], "'--resume' cannot be read: to go on with a run, give the same command again.$"),
        (["--resume_from_checkpoint", "latest"], "cannot be read: to go on with a run, give the same command again.$"),
        (["--objective", "paper"], "'--objective paper' cannot be read: give --objective.preset NAME"),
        (["--stages", "joint"], "'--stages joint' cannot be read: give --stages.STAGE.FIELD VALUE"),
        (["--model", "x"], "'--model x' cannot be read: give --model.FIELD VALUE.$"),
        (["3", "--seed", "4"], "'3' cannot be read"),
        (["--output_dir", ""], "output_dir is '': give the name of a folder"),
    ],
)
def test_bad_options_are_one_sentence(tmp_path, words, message):
    with pytest.raises(ConfigError, match=message) as refused:
        read(tmp_path, "", *words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "'--config' cannot be read: --help says what --config takes."),
        (["--dry-run"], "'--dry-run' cannot be read: give --dry_run."),
    ],
)
def test_options_of_a_scripts_own_are_known_too(words, message):
    parser = new_parser("")
    parser.add_argument("--config")
    parser.add_argument("--dry_run", action="store_true")
    with pytest.raises(ConfigError) as refused:
        read_options(parser, words)
    assert str(refused.value) == message


def test_a_file_that_is_not_there_is_named_once(tmp_path):
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "c.yaml")
    assert str(refused.value) == f"{tmp_path / 'c.yaml'} is not a readable YAML file: No such file or directory."


def test_a_run_needs_a_folder():
    with pytest.raises(ConfigError, match="smoke.yaml names no output_dir: give --output_dir FOLDER"):
        load_config(SMOKE)


def test_a_stage_in_code_is_checked_like_one_in_a_file():
    with pytest.raises(ConfigError, match="the stage vae has the unknown field 'seed'"):
        TrainingConfig("out", stages={"vae": {"seed": 3}})
    with pytest.raises(ConfigError, match="stages 'late' does not exist"):
        TrainingConfig("out", stages={"late": {}})
    with pytest.raises(ConfigError, match="objective is 'mse': give a dict with `preset`"):
        TrainingConfig("out", objective="mse")


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"vae_channels": (4,), "condition_channels": (1,), "image_size": 16},
        {"unet_channels": (4,), "unet_attention": (False,), "attention_head_dim": 4, "image_size": 16},
        {"unet_channels": (12, 8), "attention_head_dim": 8},
        {"latent_channels": 1, "text_width": 2, "norm_num_groups": 1, "attention_head_dim": 1},
    ],
)
def test_what_the_checks_let_through_can_be_built(changes):
    """What lies at the edges of the checks, and a width that no head has to divide."""
    size = replace(TINY, **{"unet_attention": (False, False), **changes})
    pipeline = build_pipeline(size, 0)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.zeros(1, 3, size.image_size, size.image_size)
    assert pipeline(picture, num_inference_steps=1, output_type="pt").images.shape == picture.shape


def test_reading_a_config_needs_no_model_code():
    code = "import sys, backshan_diffusers.training.options; print({'diffusers', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- the shipped files -----------------------------------------------------------------------------------------------

RUNS = {
    "lpc": list(STAGES),
    "mini": list(STAGES),
    "mini-close": ["joint"],
    "mini-crisp": ["joint"],
    "mini-decide": ["joint"],
    "mini-finish": ["vae", "joint"],
    "mini-focus": ["vae", "joint"],
    "mini-grow": ["joint"],
    "mini-more": ["joint"],
    "mini-polish": ["joint"],
    "mini-refine": ["joint"],
    "mini-reframe": ["joint"],
    "mini-retouch": ["joint"],
    "mini-settle": ["joint"],
    "mini-sharpen": ["joint"],
    "sd15-stage1": ["controlnet"],
    "sd15-stage2": ["joint"],
    "smoke": list(STAGES),
    "valid": list(STAGES),
}


ADVERSARIAL = ("mini-crisp", "mini-decide", "mini-refine", "mini-retouch", "mini-sharpen")
SHIFTED = ("mini-close", "mini-grow", "mini-polish")


def test_every_shipped_file_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_every_shipped_config_resolves(name):
    config = load_config(CONFIGS / f"{name}.yaml", output_dir="out")
    assert config.stage_names() == RUNS[name]
    for stage in RUNS[name]:
        objective = config.stage(stage).resolve_objective()
        assert config.stage(stage).max_steps >= 1
        assert (objective in PRESETS.values()) == (name not in ADVERSARIAL + SHIFTED)


@pytest.mark.parametrize("name", SHIFTED)
def test_the_shipped_configs_that_prefer_high_timesteps_change_nothing_else(name):
    objective = load_config(CONFIGS / f"{name}.yaml", output_dir="out").stage("joint").resolve_objective()
    assert objective.timestep_shift > 1 and replace(objective, timestep_shift=1.0) == PRESETS["mse"]


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_shipped_configs_with_an_adversary_change_nothing_else(name):
    objective = load_config(CONFIGS / f"{name}.yaml", output_dir="out").stage("joint").resolve_objective()
    assert objective.adversarial_head_start_steps > 0 and objective.adversarial_weight > 0
    names = {"timestep_shift", "coarse_weight", "rollout_share"}
    names |= {name for name in asdict(objective) if name.startswith("adversarial_")}
    defaults = {name: getattr(PRESETS["mse"], name) for name in names}
    assert replace(objective, **defaults) == PRESETS["mse"]


def test_the_method_on_stable_diffusion_is_two_stages():
    first, second = (load_config(CONFIGS / f"sd15-stage{number}.yaml", output_dir="out") for number in (1, 2))
    assert first.stage("controlnet").max_steps >= 50_000
    assert first.stage("controlnet").resolve_objective() == PRESETS["paper"]
    assert first.conditioning == "canny"
    assert second.base_model == "runs/sd15-stage1/controlnet/pipeline"
    assert (second.stage("joint").unlock_unet, second.stage("joint").unet_learning_rate) == ("decoder", 2e-6)


# --- the run's door and the script -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "nowhere"}, "there is no source 'nowhere'"),
        ({"train_pairs": 10**9}, "train_pairs is 1000000000 and there are [0-9]+ such pairs: give at most so many"),
        ({"validation_pairs": 10**9}, "validation_pairs is 1000000000 and there are [0-9]+ such pairs"),
        ({"model": replace(TINY, image_size=32), "crop_sizes": (32,)}, "size must be a whole number from 64"),
    ],
)
def test_pairs_that_the_source_does_not_have_are_refused_before_anything_is_written(tmp_path, changes, message):
    config = TrainingConfig(str(tmp_path / "run"), **{"model": TINY, "crop_sizes": (32,), **changes})
    with pytest.raises(ConfigError, match=message):
        TrainingRun(config).run()
    assert not (tmp_path / "run").exists()


ALONE = "joint compares the pairs of a step with each other, but a step has one: give more pairs"


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1},
        {"train_pairs": 1},
        {"batch_size": 1, "gradient_accumulation_steps": 4},
        {"batch_size": 1, "objective": {"preset": "dispersive"}},
        {"batch_size": 1, "cached_contrast": True},
    ],
)
def test_one_pair_alone_is_refused_where_pairs_are_compared(tmp_path, changes):
    values = {"stages": {"controlnet": {"objective": {"preset": "mse"}}, "joint": {}}, "base_model": "base", **changes}
    config = TrainingConfig(str(tmp_path / "run"), **values)
    with pytest.raises(ConfigError, match=ALONE):
        TrainingRun(config)
    TrainingRun(replace(config, objective={"preset": "mse"}))
    for enough in ({"train_pairs": 2, "batch_size": 2}, {"train_pairs": 2, "cached_contrast": True}):
        more = {"gradient_accumulation_steps": 2} if "batch_size" not in enough else {}
        TrainingRun(replace(config, **enough, **more))


def test_pairs_of_one_outfit_are_refused_where_outfits_are_compared(tmp_path):
    source = tmp_path / "pairs"
    for split, rows in (("train", 4), ("validation", 1)):
        (source / split).mkdir(parents=True)
        for row in load_pairs("wardrobe", split=split, size=64, count=rows):
            for view in ("back", "front"):
                row[view].save(source / split / f"{row['item_id']}_{view}.png")
    metadata = source / "train" / "metadata.csv"
    items = sorted({path.stem.removesuffix("_back").removesuffix("_front") for path in metadata.parent.iterdir()})
    metadata.write_text("item_id,group_id\n" + "".join(f"{item},coat\n" for item in items))
    pairs = {"source": "folder", "source_path": str(source), "train_pairs": 4, "validation_pairs": 1}
    config = tiny_config(tmp_path / "run", stages={"vae": {}, "prior": {}, "controlnet": {}}, **pairs)
    with pytest.raises(ConfigError, match="controlnet compares outfits, but all pairs have one group_id: give more"):
        TrainingRun(config).run()
    assert not (tmp_path / "run" / "vae").exists()  # though the stage that compares would come much later
    for objective in ({"preset": "mse"}, {"preset": "paper", "same_group_negatives": True}):
        run = TrainingRun(replace(config, objective=objective))
        run._check_outfits(pair_arrays(2))  # two pairs of one outfit


@pytest.mark.parametrize("inside", [".", "unet", "run", "controlnet/more/runs/run"])
def test_no_run_writes_into_a_pipeline(tiny_folder, inside):
    config = tiny_config(tiny_folder / inside)
    with pytest.raises(ConfigError, match=f"^output_dir .* lies in {tiny_folder}(/unet|/controlnet)?, which holds a"):
        TrainingRun(config)


def test_no_run_writes_into_a_model_that_lies_alone(tmp_path):
    model = tmp_path / "model"
    build_pipeline(TINY, 0).controlnet.save_pretrained(model)
    with pytest.raises(ConfigError, match=f"lies in {model}, which holds a model: give another one"):
        TrainingRun(tiny_config(model / "run"))
    (tmp_path / "config.json").write_text("{}")  # which many a program has
    TrainingRun(tiny_config(tmp_path / "run"))


def script(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "examples" / "train_backshan.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_script_shows_what_it_would_train(tmp_path):
    folder = tmp_path / "run"
    done = script("--config", str(SMOKE), "--output_dir", str(folder), "--dry_run", "--stages.joint.batch_size", "3")
    assert done.returncode == 0, done.stderr
    shown, _, table = done.stdout.partition("weights, those that learn")
    values = yaml.safe_load(shown)
    assert values["stages"]["joint"] == {"batch_size": 3} and values["objective"]["temperature"] == 1
    for word in ("controlnet", "gradients", "GFLOP"):
        assert word in table
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--objective.preset", "best"],
            "objective.preset 'best' does not exist: choose from mse, paper, dispersive,",
        ),
        (["--dry_run", "--source", "nowhere"], "there is no source 'nowhere'"),
    ],
)
def test_the_script_refuses_with_one_sentence_and_exit_code_two(tmp_path, words, message):
    done = script("--config", str(SMOKE), "--output_dir", str(tmp_path / "run"), *words)
    assert done.returncode == 2 and message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1 and not done.stdout
    assert not (tmp_path / "run").exists()


def test_the_script_asks_for_a_config():
    done = script("--output_dir", "nowhere")
    assert done.returncode == 2 and "there is no config: give --config FILE" in done.stderr
