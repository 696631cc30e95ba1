"""A run that was stopped goes on as if it had not been; what cannot be gone on from is refused or left out."""

import importlib.util
import json
import logging
import pickle
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DDIMScheduler
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from test_stages import control_batch, control_stage
from tiny import TINY, tiny_config, tiny_pipeline, tiny_prior

from backshan_diffusers.cards import model_card
from backshan_diffusers.data import load_pairs
from backshan_diffusers.files import DiskFullError, full_disk_in_words
from backshan_diffusers.objective import PRESETS
from backshan_diffusers.training.checkpoints import (
    checkpoint_path,
    checkpoint_steps,
    find_damage,
    load_checkpoint,
    newest_sound_step,
    save_checkpoint,
)
from backshan_diffusers.training.config import STAGES, ConfigError, ModelSize
from backshan_diffusers.training.records import check_record, write_record
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.scratch import build_pipeline
from backshan_diffusers.training.stages import PriorStage
from backshan_diffusers.training.trainer import StageTrainer, learning_rate_factor

ROOT = Path(__file__).parents[1]
MEASURED = ("images_per_second", "peak_memory_mib")
"""What no two runs have in common."""


def train(folder: Path, **changes) -> Path:
    return TrainingRun(tiny_config(folder, **changes)).run()


def trainer_of(folder: Path, stage=None, make_batch=None, **changes) -> StageTrainer:
    folder.mkdir(exist_ok=True)
    stage, make_batch = (stage, make_batch or tiny_prior()[1]) if stage else tiny_prior()
    return StageTrainer(Accelerator(), stage, make_batch, tiny_config(folder, **changes), "prior", folder)


def train_prior(folder: Path, stage=None, **changes) -> StageTrainer:
    trainer = trainer_of(folder, stage, **changes)
    trainer.train(lambda step: None)
    return trainer


def log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def tensors_of(folder: Path) -> dict[Path, dict]:
    return {path.relative_to(folder): load_file(path) for path in folder.rglob("*.safetensors")}


def assert_equal_files(folder: Path, other: Path) -> None:
    """The same tensors, bit for bit, under the same names."""
    ours, theirs = tensors_of(folder), tensors_of(other)
    assert ours.keys() == theirs.keys() and ours
    for path, tensors in theirs.items():
        assert tensors.keys() == ours[path].keys()
        assert all(torch.equal(ours[path][name], tensor) for name, tensor in tensors.items()), path


# --- killed runs -----------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_again_and_again_ends_as_if_never_stopped(tmp_path):
    settings = asdict(tiny_config(tmp_path, max_steps=6, validate_every=6, validation_pairs=1))
    del settings["output_dir"]
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(path), str(tmp_path), "20", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["kills"]) == 20 and sum(kill["saving"] for kill in report["kills"]) >= 3
    assert len({kill["lines"] for kill in report["kills"]}) >= 5
    assert report["second_run"] == 2 and "another run trains in" in (tmp_path / "0.log").read_text()
    for run in range(report["runs"]):
        assert not list((tmp_path / str(run)).glob("*/*.tmp"))
        for stage in STAGES:
            resumed, whole = tmp_path / str(run) / stage, tmp_path / "whole" / stage
            assert len(log(whole)) == 6 and log(resumed) == log(whole)
            assert (resumed / "validation.csv").read_text() == (whole / "validation.csv").read_text()
            assert_equal_files(resumed, whole)


def test_resume_is_bit_identical(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "joint" / "pipeline")
    shutil.rmtree(run / "joint" / "checkpoint-4")
    with open(run / "joint" / "metrics.jsonl", "a") as file:
        file.write('{"stage": "joi')  # as a killed run leaves it
    train(run)
    assert log(run / "joint") == log(finished / "joint")
    assert (run / "joint" / "validation.csv").read_text() == (finished / "joint" / "validation.csv").read_text()
    assert_equal_files(run / "joint", finished / "joint")


def test_dropout_is_resumed_too(tmp_path):
    def noisy_stage():
        stage, _ = tiny_prior()
        for module in stage.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        return stage

    torch.manual_seed(1)
    train_prior(tmp_path / "whole", noisy_stage())
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    torch.manual_seed(2)
    train_prior(tmp_path / "run", noisy_stage())
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert_equal_files(tmp_path / "run", tmp_path / "whole")
    train_prior(tmp_path / "still")
    assert log(tmp_path / "still") != log(tmp_path / "whole")  # dropout was at work


def test_a_pair_has_the_same_dropout_in_both_passes_of_a_cached_comparison(tmp_path):
    stage, seen = control_stage(PRESETS["paper"]), []
    for module in stage.trained["controlnet"].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    stage.trained["controlnet"].mid_block.register_forward_hook(lambda *call: seen.append(call[2].detach()))
    settings = {"gradient_accumulation_steps": 2, "cached_contrast": True}
    trainer_of(tmp_path, stage, lambda *_: control_batch(), **settings).advance()
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.allclose(seen[0], seen[1])


def test_a_finished_run_does_nothing_more(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    train(finished, validate_every=3)
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_a_finished_stage_that_is_damaged_is_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    vae = tmp_path / "run" / "vae" / "pipeline"
    weights = vae / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"x" * 20)
    words = re.escape(f"a finished stage is damaged ({weights} is damaged (") + "[^()]+" + re.escape("))")
    with pytest.raises(ConfigError, match=f"^{words}: remove {re.escape(str(vae))} to write it again.$"):
        train(tmp_path / "run")


def test_two_runs_cannot_share_a_folder(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="another run trains in"):
        train(tmp_path)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_states_come_back_as_they_were(tmp_path):
    """Types, keys and the order in memory included, by which sums are rounded."""
    before = train_prior(tmp_path)
    fresh = trainer_of(tmp_path)
    for name, state in before.states.items():
        assert_same(state.state_dict(), fresh.states[name].state_dict())
    groups = fresh.optimizer.state_dict()["param_groups"]
    assert groups[0]["betas"] == (0.9, 0.99)
    moments = [state["exp_avg"] for state in fresh.optimizer.state.values()]
    assert any(moment.ndim == 4 and not moment.is_contiguous() for moment in moments)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        for parts in zip(one, other, strict=True):
            assert_same(*parts)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other) and one.stride() == other.stride() and one.dtype == other.dtype
    else:
        assert one == other


@pytest.mark.parametrize("last", [True, False])
def test_moments_come_back_lying_as_the_weights_do_now(tmp_path, last):
    """A fused optimizer takes it for granted."""
    before = train_prior(tmp_path, channels_last=not last).optimizer.state_dict()["state"]
    trainer = trainer_of(tmp_path, channels_last=last)
    for old, (weight, new) in zip(before.values(), trainer.optimizer.state.items(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(new[name], old[name]) and new[name].stride() == weight.stride()
    assert any(weight.ndim == 4 and weight.is_contiguous() != last for weight in trainer.optimizer.state)


class Twice:
    """Holds one tensor in two places, as the moments of 8 bits do their tables."""

    def __init__(self, table: torch.Tensor | None = None):
        self.table, self.loaded = table, None

    def state_dict(self) -> dict:
        return {"first": self.table, "others": [self.table]}

    def load_state_dict(self, state: dict) -> None:
        self.loaded = state


def test_a_tensor_in_two_places_is_one_again(tmp_path):
    save_checkpoint(tmp_path, 1, {"optimizer": Twice(torch.arange(3.0))}, keep=1)
    fresh = Twice()
    load_checkpoint(checkpoint_path(tmp_path, 1), {"optimizer": fresh})
    assert fresh.loaded["first"].tolist() == [0, 1, 2] and fresh.loaded["others"][0] is fresh.loaded["first"]


def test_a_loss_scaler_is_resumed_too(tmp_path):
    def scaled(scale: float) -> StageTrainer:
        engine = Accelerator()
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # accelerate makes one on a GPU alone
        return StageTrainer(engine, *tiny_prior(), tiny_config(tmp_path), "prior", tmp_path)

    before = scaled(8.0)
    save_checkpoint(tmp_path, 1, before.states, keep=1)
    after = scaled(2.0)
    assert after.step == 1 and after.accelerator.scaler.state_dict() == before.accelerator.scaler.state_dict()


def test_a_step_that_overflows_moves_the_schedule_alone_and_endless_ones_stop_the_run(tmp_path):
    engine = Accelerator()
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    stage, make_batch = tiny_prior()
    weight = stage.trained["unet"].conv_in.weight
    hook = weight.register_hook(lambda gradient: gradient * torch.inf)
    trainer = StageTrainer(engine, stage, make_batch, tiny_config(tmp_path), "prior", tmp_path)
    before = weight.detach().clone()
    average = trainer.averages["unet"].shadow_params[0].clone()
    trainer.advance()
    assert torch.equal(weight, before) and engine.scaler.get_scale() == 2
    assert torch.equal(trainer.averages["unet"].shadow_params[0], average)
    assert trainer.averages["unet"].optimization_step == 0 and trainer.step == trainer.schedule.last_epoch == 1
    hook.remove()
    trainer.advance()
    assert not torch.equal(weight, before) and trainer.averages["unet"].optimization_step == 1
    weight.register_hook(lambda gradient: gradient * torch.inf)
    trainer.advance()
    with pytest.raises(FloatingPointError, match="gradient norm of every scale is nan at step 3 of prior"):
        trainer.advance()


def test_a_line_of_the_log_is_json_where_a_norm_is_not_finite(tmp_path):
    stage, make_batch = tiny_prior()
    trainer = StageTrainer(Accelerator(), stage, make_batch, tiny_config(tmp_path), "prior", tmp_path)
    trainer._log({"loss": 1.0, "grad_norm_unet": float("inf")}, 1.0)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["grad_norm_unet"] is None


def test_nothing_in_a_checkpoint_is_unpickled(tmp_path, monkeypatch):
    train_prior(tmp_path)
    assert {path.suffix for path in (tmp_path / "checkpoint-4").iterdir()} == {".safetensors", ".json"}

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert trainer_of(tmp_path).step == 4


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_text("{}")


def become_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a note")
    path.with_name(f"{path.name}.tmp").write_text("another one")


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("optimizer.safetensors", cut, "optimizer.safetensors has [0-9,]+ bytes instead of [0-9,]+"),
        ("model.safetensors", flip, "model.safetensors holds other bytes than were written"),
        ("values.json", flip, "values.json holds other bytes than were written"),
        ("average_unet.safetensors", Path.unlink, "average_unet.safetensors is missing"),
        ("manifest.json", cut, "manifest.json cannot be read"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", empty, "manifest.json lists no values.json"),
        (".", become_a_file, "manifest.json cannot be read [(]Not a directory[)]"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, name, damage, words):
    train_prior(tmp_path / "whole")
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    damage(run / "checkpoint-4" / name)
    trainer = trainer_of(run)
    assert trainer.step == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.fullmatch(f"{run}/checkpoint-4 is damaged and left out: {words}[.]", warning)
    trainer.train(lambda step: None)
    assert log(run) == log(tmp_path / "whole")
    assert_equal_files(run, tmp_path / "whole")
    assert find_damage(run / "checkpoint-4") is None


def test_a_stage_without_a_usable_checkpoint_begins_anew_and_says_so(tmp_path, caplog):
    train_prior(tmp_path / "whole")
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    for step in (2, 4):
        cut(run / f"checkpoint-{step}" / "model.safetensors")
    trainer = trainer_of(run)
    assert trainer.step == 0 and log(run) == []
    assert f"No checkpoint in {run} can be used: the stage begins anew." in caplog.messages
    trainer.train(lambda step: None)
    assert_equal_files(run, tmp_path / "whole")


def test_a_new_stage_has_nothing_to_warn_of(tmp_path, caplog):
    assert trainer_of(tmp_path).step == 0 and not caplog.messages


def test_a_damaged_checkpoint_takes_no_place_among_those_that_are_kept(tmp_path):
    train_prior(tmp_path)
    cut(tmp_path / "checkpoint-4" / "model.safetensors")
    trainer = trainer_of(tmp_path, log_every=1, checkpoint_every=1)
    kept = []
    trainer._save, save = lambda: (save(), kept.append(checkpoint_steps(tmp_path))), trainer._save
    trainer.train(lambda step: None)
    assert kept == [[2, 3], [3, 4]]


@pytest.mark.parametrize("limit", [1, 3])
def test_as_many_checkpoints_are_kept_as_were_asked_for(tmp_path, limit):
    train_prior(tmp_path, checkpoint_every=1, checkpoints_total_limit=limit)
    assert checkpoint_steps(tmp_path) == [1, 2, 3, 4][-limit:]


def test_checkpoints_come_in_the_order_of_their_numbers(tmp_path):
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, {"model": torch.nn.Linear(1, 1)}, keep=2)
    assert checkpoint_steps(tmp_path) == [10, 100] and newest_sound_step(tmp_path) == 100


def test_leftovers_of_killed_saves_are_removed_and_never_found(tmp_path):
    train_prior(tmp_path)
    for name in ("checkpoint-9.tmp", "checkpoint-4.removed.tmp"):
        shutil.copytree(tmp_path / "checkpoint-4", tmp_path / name)
    assert checkpoint_steps(tmp_path) == [2, 4]
    assert trainer_of(tmp_path).step == 4
    assert not list(tmp_path.glob("*.tmp"))


def test_a_save_that_fails_leaves_the_checkpoints_as_they_were(tmp_path):
    states = dict(train_prior(tmp_path).states)

    class Broken:
        def state_dict(self):
            raise RuntimeError("no")

    for step in (4, 6):
        with pytest.raises(RuntimeError):
            save_checkpoint(tmp_path, step, {**states, "broken": Broken()}, keep=1)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert find_damage(tmp_path / "checkpoint-4") is None


def test_a_checkpoint_never_waits_for_its_validation(tmp_path):
    """What belongs to a step is written before the checkpoint that says the step is done."""
    seen = []
    trainer_of(tmp_path, validate_every=2).train(lambda step: seen.append((step, checkpoint_steps(tmp_path))))
    assert seen == [(2, []), (4, [2])]


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.MEGATRON_LM])
def test_engines_whose_states_are_never_whole_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(ConfigError, match=f"{kind.value} keeps models and optimizers in a way .*fsdp.yaml"):
        train(tmp_path)


# --- a full disk -----------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, kilobytes: int):
    """A file system of its own at `folder`; gives a function that makes it large."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # pictures in use do not keep it


@pytest.mark.skipif(not shutil.which("mount"), reason="there is no mount command here")
def test_a_full_disk_stops_a_run_which_then_goes_on(finished, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("train_backshan", ROOT / "examples" / "train_backshan.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    disk = tmp_path / "disk"
    settings = {**asdict(tiny_config(disk)), "stages": {"vae": {}, "prior": {}}}
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    monkeypatch.setattr(sys, "argv", ["train_backshan.py", "--config", str(tmp_path / "config.yaml")])
    with small_disk(disk, 1200) as make_large:  # room for pictures and one checkpoint
        assert script.main() == 1
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert sentence == (
            f"{disk} cannot be written (No space left on device): make room and run the same command again; what was"
            " complete is kept."
        )
        assert checkpoint_steps(disk / "vae") == [2] and find_damage(disk / "vae" / "checkpoint-2") is None
        assert not list((disk / "vae").glob("*.tmp"))
        make_large()
        assert script.main() == 0
        for stage in ("vae", "prior"):
            assert log(disk / stage) == log(finished / stage)
            assert_equal_files(disk / stage, finished / stage)


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path):
    train_prior(tmp_path)
    cut(tmp_path / "checkpoint-4" / "model.safetensors")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = trainer_of(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DiskFullError, match=r"written \(File too large\): make"), full_disk_in_words(tmp_path):
            trainer.train(lambda step: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert trainer_of(tmp_path).step == 2


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), full_disk_in_words(tmp_path):
        (tmp_path / "nothing").read_bytes()


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 1e-3}, {"max_steps": 6}, {"seed": 1}, {"batch_size": 4}, {"channels_last": False}],
)
def test_a_folder_is_not_trained_on_with_other_values(finished, changes):
    before = (finished / "vae" / "training_config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=f"was trained with {next(iter(changes))} .*: give another output_dir"):
        train(finished, **changes)
    assert (finished / "vae" / "training_config.yaml").read_bytes() == before


def test_an_unfinished_stage_is_not_trained_on_with_other_values(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "joint" / "pipeline")
    shutil.rmtree(run / "joint" / "checkpoint-4")
    with pytest.raises(ConfigError, match="joint was trained with batch_size 2, not 4"):
        train(run, stages={"vae": {}, "prior": {}, "controlnet": {}, "joint": {"batch_size": 4}})
    assert checkpoint_steps(run / "joint") == [2]


def test_every_value_that_differs_is_named_and_the_run_goes_on_if_it_is_told_to(tmp_path, caplog):
    few = {"stages": {"vae": {}}, "validate_every": 9}
    train(tmp_path, max_steps=2, **few)
    shutil.rmtree(tmp_path / "vae" / "pipeline")
    changes = {"learning_rate": 1e-3, "objective": {"preset": "paper", "temperature": 0.5}, "max_steps": 4}
    words = (
        "was trained with learning_rate 0.0005, not 0.001, and max_steps 2, not 4, and objective.temperature 1.0, not"
        " 0.5: give another output_dir"
    )
    with pytest.raises(ConfigError, match=words):
        train(tmp_path, **changes, **few)
    train(tmp_path, **changes, **few, accept_changes=True)
    assert [line["step"] for line in log(tmp_path / "vae")] == [1, 2, 3, 4]
    warmup = record_of(tmp_path / "vae")["warmup_steps"]
    rates = [5e-4 * learning_rate_factor(step, warmup, 2) for step in (0, 1)]
    rates += [1e-3 * learning_rate_factor(step, warmup, 4) for step in (2, 3)]
    assert [line["learning_rate"] for line in log(tmp_path / "vae")] == pytest.approx(rates)
    assert "not 0.5: it goes on all the same, as accept_changes says." in caplog.text
    train(tmp_path, **changes, **few)  # these are its values now
    before = {"learning_rate": 5e-4, "max_steps": 2, "objective.temperature": 1.0}
    assert record_of(tmp_path / "vae")["accepted"] == [{"step": 2, "before": before}]


def test_what_the_config_says_of_the_optimizer_holds_over_what_a_checkpoint_says(tmp_path):
    train_prior(tmp_path, adam_beta1=0.9, weight_decay=0.01, ema_decay=0.999)
    trainer = trainer_of(tmp_path, adam_beta1=0.5, weight_decay=0.2, ema_decay=0.9, learning_rate=3e-4, max_steps=9)
    assert trainer.step == 4
    (group,) = trainer.optimizer.param_groups
    assert (tuple(group["betas"]), group["weight_decay"], group["lr"]) == ((0.5, 0.99), 0.2, 3e-4)
    assert {average.decay for average in trainer.averages.values()} == {0.9}


def test_a_run_of_an_older_version_goes_on_as_it_did(tmp_path):
    """A field that its record lacks came later; at its default it changes nothing."""
    older = {"seed": 0, "objective": {"temperature": 0.5}, "accept_changes": False}
    newer = older | {"adam_beta1": 0.9, "affine": [], "objective": {"temperature": 0.5, "timestep_shift": 1.0}}
    write_record(tmp_path, older)
    assert check_record(tmp_path, newer, 2) == []
    newer["objective"]["timestep_shift"] = 3.0
    with pytest.raises(ConfigError, match="was trained with objective.timestep_shift 1.0, not 3.0: give"):
        check_record(tmp_path, newer, 2)


def record_of(stage: Path) -> dict:
    return yaml.safe_load((stage / "training_config.yaml").read_text())


def test_a_record_keeps_every_change_that_was_accepted(tmp_path):
    values = {"seed": 0, "model": {"width": 8}, "accept_changes": True}
    write_record(tmp_path, values)
    (first,) = check_record(tmp_path, values | {"seed": 1}, 2)
    assert first == {"step": 2, "before": {"seed": 0}}
    write_record(tmp_path, values | {"seed": 1, "accepted": [first]})
    assert check_record(tmp_path, values | {"seed": 1}, 3) == [first]
    wider = {"seed": 2, "model": {"width": 16}}
    second = {"step": 4, "before": {"seed": 1, "model.width": 8}}
    assert check_record(tmp_path, values | wider, 4) == [first, second]
    for change in ({"seed": 1}, wider):  # no step is left that had other values
        assert check_record(tmp_path, values | change, 0) == []


def test_a_run_does_not_go_on_with_other_pairs(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "pairs" / split).mkdir(parents=True)
        for row in load_pairs("wardrobe", split=split, size=64, count=2):
            for view in ("back", "front"):
                row[view].save(tmp_path / "pairs" / split / f"{row['item_id']}_{view}.png")
    run, pairs = tmp_path / "run", {"source": "folder", "source_path": str(tmp_path / "pairs"), "train_pairs": 2}
    values = {**pairs, "validation_pairs": 1, "max_steps": 2, "stages": {"vae": {}}}
    train(run, **values)
    shutil.rmtree(run / "vae" / "pipeline")
    train(run, **values)  # the same ones
    shutil.rmtree(run / "vae" / "pipeline")
    before = record_of(run / "vae")["pairs_key"]
    shutil.move(tmp_path / "pairs", tmp_path / "moved")
    values["source_path"] = str(tmp_path / "moved")
    train(run, **values)  # the same ones elsewhere
    shutil.rmtree(run / "vae" / "pipeline")
    front = next((tmp_path / "moved" / "train").glob("*_front.png"))
    Image.new("RGB", (64, 64)).save(front)
    with pytest.raises(ConfigError, match=f"vae was trained with pairs_key '{before}', not '[0-9a-f]+': give another"):
        train(run, **values)
    train(run, **values, accept_changes=True)
    assert record_of(run / "vae")["accepted"] == [{"step": 2, "before": {"pairs_key": before}}]
    front.write_bytes(front.read_bytes() + b" ")
    with pytest.raises(ConfigError, match="vae was trained with pairs_key"):  # it is finished
        train(run, **values)


def test_a_run_does_not_go_on_from_other_weights(tmp_path):
    """A base model, or the pipeline of the stage before, that was trained again meanwhile."""
    run, base = tmp_path / "run", tmp_path / "base"
    values = {"base_model": str(base), "model": ModelSize(), "max_steps": 2, "stages": {"controlnet": {}, "joint": {}}}
    tiny_pipeline().save_pretrained(base)
    train(run, **values)
    keys = [record_of(run / stage)["base_key"] for stage in ("controlnet", "joint")]
    assert None not in keys and keys[0] != keys[1]

    shutil.rmtree(run / "joint" / "pipeline")
    train(run, **values)  # the same ones
    shutil.rmtree(run / "joint" / "pipeline")
    tiny_pipeline(seed=7).vae.save_pretrained(run / "controlnet" / "pipeline" / "vae")
    with pytest.raises(
        ConfigError, match=f"joint was trained with base_key '{keys[1]}', not '[0-9a-f]+': give another"
    ):
        train(run, **values)

    shutil.rmtree(run / "controlnet" / "pipeline")
    for seed, part in ((7, "vae"), (7, "text_encoder"), (7, "unet"), (7, "controlnet"), (0, "scheduler"), (0, "vae")):
        shutil.rmtree(base)
        tiny_pipeline().save_pretrained(base)
        other = tiny_pipeline(seed=seed)
        other.vae.register_to_config(scaling_factor=0.5)
        other.register_modules(scheduler=DDIMScheduler.from_config(other.scheduler.config, beta_end=0.01))
        getattr(other, part).save_pretrained(base / part)
        with pytest.raises(ConfigError, match=f"controlnet was trained with base_key '{keys[0]}', not"):
            train(run, **values)


def test_a_record_tells_a_folder_from_a_repository(tmp_path, monkeypatch):
    """Also where the folder is not there, as on the machine that pushes the model; and older records still do."""
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("models/base")
    tiny_pipeline(seed=7).controlnet.save_pretrained("models/net")
    stage = tmp_path / "run" / "controlnet"
    values = {"base_model": "models/base", "controlnet": "models/net", "model": ModelSize(), "max_steps": 2}
    train(tmp_path / "run", **values, stages={"controlnet": {}})
    record = record_of(stage)
    assert (record["base_model"], record["controlnet"]) == ("./models/base", "./models/net")

    (stage / "training_config.yaml").write_text(yaml.safe_dump(record | {"base_model": "models/base"}))
    train(tmp_path / "run", **values, stages={"controlnet": {}})
    tiny_pipeline().save_pretrained("models/other")
    with pytest.raises(ConfigError, match="was trained with base_model 'models/base', not './models/other'"):
        train(tmp_path / "run", **values | {"base_model": "models/other"}, stages={"controlnet": {}})

    (stage / "training_config.yaml").write_text(yaml.safe_dump(record))
    shutil.rmtree("models")
    card = model_card(stage / "pipeline", "org/own")
    assert "models/" not in card and "which lay in a folder" in card


def test_a_run_from_nothing_has_no_base(finished):
    stages = ("vae", "prior", "controlnet", "joint")
    keys = [record_of(finished / stage)["base_key"] for stage in stages]
    assert keys[0] is None and len(set(keys)) == len(stages)


def test_a_checkpoint_of_another_shape_is_refused_even_if_changes_are_accepted(tmp_path):
    train_prior(tmp_path)
    other = build_pipeline(replace(TINY, unet_channels=(8, 8)), 0)
    with pytest.raises(ConfigError, match=r"checkpoint-4 does not fit what is trained now \(size mismatch .*\): give"):
        trainer_of(tmp_path, PriorStage(other.unet, other.scheduler))


@pytest.mark.parametrize("change", [(4, 8), (8, 4)])
@pytest.mark.parametrize(("done", "refused"), [(2, False), (3, True)])
def test_a_run_may_be_made_longer_or_shorter_until_its_rate_falls(tmp_path, change, done, refused):
    before, after = change
    write_record(tmp_path, {"max_steps": before})
    assert learning_rate_factor(2, 1, 4) == 1 > learning_rate_factor(3, 1, 4)
    with pytest.raises(ConfigError) if refused else nullcontext():
        check_record(tmp_path, {"max_steps": after, "accept_changes": False}, done)


def test_checkpoints_without_a_record_are_not_gone_on_from(tmp_path):
    check_record(tmp_path, {"max_steps": 4}, 0)
    with pytest.raises(ConfigError, match="was trained without training_config.yaml"):
        check_record(tmp_path, {"max_steps": 4}, 2)


def test_the_record_says_what_trained(finished):
    record = record_of(finished / "joint")
    assert (record["processes"], record["mixed_precision"], record["device"]) == (1, "no", "cpu")
    assert record["packages"]["torch"] == version("torch")


def test_a_run_may_not_go_on_with_another_number_of_processes(tmp_path):
    write_record(tmp_path, {"processes": 2})
    check_record(tmp_path, {"processes": 1}, None)
    with pytest.raises(ConfigError, match="was trained with processes 2, not 1"):
        check_record(tmp_path, {"processes": 1, "accept_changes": False}, 10)


# --- values that are not finite --------------------------------------------------------------------------------------


def breaking_at(step: int):
    """Batches that are not finite from a step on."""
    good = tiny_prior()[1](0, None)

    def make_batch(now, sampler):
        return {**good, "latents": good["latents"] * (float("nan") if now >= step else 1)}

    return make_batch


def test_a_loss_that_is_not_finite_names_the_step_the_pairs_and_the_good_checkpoint(tmp_path):
    trainer = trainer_of(tmp_path, tiny_prior()[0], breaking_at(3))
    with pytest.raises(FloatingPointError) as stopped:
        trainer.train(lambda step: None)
    assert str(stopped.value) == (
        f"the loss is nan at step 3 of prior, with the training pairs 5, 3: look at them, lower learning_rate, or use"
        f" full precision; {tmp_path}/checkpoint-2 is good."
    )
    assert find_damage(tmp_path / "checkpoint-2") is None and checkpoint_steps(tmp_path) == [2]
    resumed = trainer_of(tmp_path, tiny_prior()[0], breaking_at(2))
    with pytest.raises(FloatingPointError, match="at step 2 .*checkpoint-2 is good"):
        resumed.train(lambda step: None)


def test_a_run_names_the_pairs_as_their_source_does(tmp_path):
    with pytest.raises(FloatingPointError) as stopped:
        train(tmp_path, learning_rate=1e30, batch_size=8, stages={"vae": {}, "prior": {}}, crop_sizes=(64,))
    ids = [row["item_id"] for row in load_pairs("wardrobe", split="train", size=64, count=8)]
    named = str(stopped.value).partition("the training pairs ")[2].partition(":")[0]
    assert sorted(named.split(", ")) == sorted(ids)


def bad_at(bad: int):
    """Batches of two pairs each, named after their number; one of them is not finite."""
    good = tiny_prior()[1](0, None)

    def make_batch(number, sampler):
        latents = good["latents"] * (float("nan") if number == bad else 1)
        return {**good, "latents": latents, "items": torch.tensor([10 * number, 10 * number + 1])}

    return make_batch


def test_a_loss_names_the_pairs_of_its_micro_batch_and_a_gradient_those_of_the_step(tmp_path):
    parts = {"gradient_accumulation_steps": 3}
    with pytest.raises(FloatingPointError, match="loss is nan at step 1 of prior, with the training pairs 40, 41: "):
        trainer_of(tmp_path, tiny_prior()[0], bad_at(4), **parts).train(lambda step: None)
    stage, _ = tiny_prior()
    stage.trained["unet"].conv_in.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="at step 0 of prior, with the training pairs 0, 1, 10, 11, 20, 21: "):
        trainer_of(tmp_path, stage, bad_at(-1), **parts).train(lambda step: None)


def test_what_is_compared_over_a_whole_step_names_all_of_its_pairs(tmp_path):
    """Any of them may be what broke it."""

    def make_batch(number, sampler):
        batch = control_batch()
        broken = batch["latents"] * (float("nan") if number == 4 else 1)
        return {**batch, "latents": broken, "items": torch.tensor([10 * number])}

    settings = {"gradient_accumulation_steps": 3, "cached_contrast": True}
    expected = "contrastive term is nan at step 1 of prior, with the training pairs 30, 40, 50: "
    with pytest.raises(FloatingPointError, match=expected):
        trainer_of(tmp_path, control_stage(PRESETS["paper"]), make_batch, **settings).train(lambda step: None)


def test_no_checkpoint_is_claimed_where_there_is_none(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 1 of .*; nothing is saved yet.$"):
        trainer_of(tmp_path, tiny_prior()[0], breaking_at(1)).train(lambda step: None)


def test_a_broken_gradient_never_reaches_the_weights(tmp_path):
    stage, make_batch = tiny_prior()
    weight = stage.trained["unet"].conv_in.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient norm of the unet is .* with the training pairs 5, 3"):
        trainer_of(tmp_path, stage, make_batch).train(lambda step: None)
    assert torch.equal(weight, before)
    assert checkpoint_steps(tmp_path) == []
