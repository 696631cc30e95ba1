"""What a run tells of itself: lines, rows, probes, scores of held-out pairs, and trackers."""

import csv
import json
import logging
import math
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from test_stages import MID, control_batch, control_stage
from tiny import pair_arrays, tiny_config, tiny_pipeline, tiny_prior

from backshan_diffusers.data import COLUMNS, Pairs, load_pairs
from backshan_diffusers.data.pairs import UnreadablePairError
from backshan_diffusers.evaluation import colour_difference, ssim
from backshan_diffusers.objective import PRESETS
from backshan_diffusers.sheets import picture_sheet
from backshan_diffusers.training import trackers, trainer
from backshan_diffusers.training.config import ConfigError
from backshan_diffusers.training.logs import append_row, csv_step, drop_later_lines, json_step, peak_memory
from backshan_diffusers.training.probes import doubt, probe_stage
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.trainer import StageTrainer, _means, learning_rate_factor
from backshan_diffusers.training.validation import front_masks, generate, rebuild, score

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "examples" / "configs" / "smoke.yaml"
MIB = 2**20


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(folder: Path, stage, batch: dict, **changes) -> StageTrainer:
    folder.mkdir(exist_ok=True)
    settings = tiny_config(folder, **changes)
    trainer = StageTrainer(Accelerator(), stage, lambda number, sampler: batch, settings, "joint", folder)
    trainer.train(lambda step: None)
    return trainer


# --- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_unet", [None, "all"])
def test_the_pull_of_a_term_is_the_norm_of_its_own_gradient(train_unet):
    stage, batch, norms = control_stage(MID, train_unet), control_batch(), {}
    found = probe_stage(stage, batch)
    assert all(parameter.grad is None for parameter in stage.parameters())
    for name, weight in (("mse", 1.0), ("contrastive", 0.5)):
        stage.zero_grad()
        loss = stage({**batch, "contrastive_weight": torch.tensor(weight if name == "contrastive" else 0.0)})["loss"]
        (loss - (0 if name == "mse" else stage(batch)["mse"])).backward()
        gradients = [weight.grad for weight in stage.trained["controlnet"].parameters() if weight.grad is not None]
        norms[name] = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
    assert norms["mse"] != pytest.approx(norms["contrastive"], rel=0.1)
    assert float(found["grad_norm_mse"]) == pytest.approx(norms["mse"], rel=1e-4)
    assert float(found["grad_norm_contrast"]) == pytest.approx(norms["contrastive"], rel=1e-3)
    assert float(found["grad_norm_ratio"]) == pytest.approx(norms["contrastive"] / norms["mse"], rel=1e-3)
    assert stage.probe(batch).items() <= found.items()


def test_a_loss_of_one_term_has_no_ratio():
    assert probe_stage(control_stage(PRESETS["mse"]), control_batch()) == {}
    stage, make_batch = tiny_prior()
    stage.forward = None  # no pass is made for nothing
    assert probe_stage(stage, make_batch(0, None)) == {}


def noisy_stage():
    """With dropout, which is drawn anew in each step."""
    stage = control_stage(MID)
    for module in stage.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return stage


def test_probing_changes_nothing(tmp_path):
    every = {
        count: train(tmp_path / str(count), noisy_stage(), control_batch(), probe_every=count) for count in (1, 9)
    }
    ours, theirs = (trainer.states["model"].state_dict() for trainer in every.values())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "grad_norm_ratio" in lines_of(tmp_path / "1")[0] and "grad_norm_ratio" not in lines_of(tmp_path / "9")[0]


def test_the_probe_sees_the_same_dropout_after_a_resume(tmp_path):
    norms = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        stage = noisy_stage()
        train(tmp_path / str(seed), stage, control_batch(), probe_every=1, max_steps=1, checkpoint_every=1)
        norms.append(lines_of(tmp_path / str(seed))[0]["grad_norm_mse"])
    assert norms[0] == norms[1]


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_blank_back_that_does_as_well_is_put_in_words(tmp_path, caplog):
    """A ControlNet that hears nothing of its picture finds each front by the latents that both branches see."""
    deaf = control_stage(PRESETS["paper"])
    embedding = deaf.component("controlnet").controlnet_cond_embedding
    torch.nn.init.zeros_(embedding.conv_out.weight)
    settings = {"probe_every": 2, "max_steps": 3, "learning_rate": 1e-9}
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "deaf", deaf, control_batch(8), **settings)
    first, second, third = lines_of(tmp_path / "deaf")
    assert second["doubt"].startswith(
        "a blank back finds its front as well as the real one does (pair accuracy 1.00 and 1.00), so the cross entropy"
        " teaches nothing of the backs"
    )
    assert "doubt" not in first and "doubt" not in third
    assert [record.getMessage() for record in caplog.records] == [f"step 2 of joint: {second['doubt']}"]
    caplog.clear()
    listening = control_stage(replace(MID, before_zero_convolutions=False))
    batch = control_batch(8)
    batch["front_control"] = batch["back_control"]
    for name in ("noise", "latents", "prompts"):
        batch[name] = torch.zeros_like(batch[name])
    batch["timesteps"][:] = 500
    train(tmp_path / "listening", listening, batch, **settings)
    line = lines_of(tmp_path / "listening")[1]
    assert (line["pair_accuracy_real_back"], line["pair_accuracy_shuffled_back"]) == (1, 0)
    assert line["pair_accuracy_blank_back"] < 0.2 and "doubt" not in line and not caplog.records


def test_what_is_not_compared_is_not_doubted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "alone", control_stage(PRESETS["paper"]), control_batch(1), probe_every=1, max_steps=1)
    (line,) = lines_of(tmp_path / "alone")
    assert line["grad_norm_mse"] > 0 and not caplog.records
    assert not {"doubt", "grad_norm_contrast", "grad_norm_ratio", "pair_accuracy_real_back"} & set(line)


@pytest.mark.parametrize(
    ("real", "blank", "said"), [(1.0, 0.95, True), (1.0, 0.85, False), (0.3, 0.1, False), (0, 0, True)]
)
def test_as_well_is_nine_tenths(real, blank, said):
    assert (doubt({"pair_accuracy_real_back": real, "pair_accuracy_blank_back": blank}) is not None) == said
    assert doubt({"loss": 1.0, "pair_accuracy": 1.0}) is None


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_holds_what_was_measured_since_the_last_one(tmp_path):
    train(tmp_path / "every", control_stage(MID), control_batch(), probe_every=2, max_steps=5)
    lines = lines_of(tmp_path / "every")
    probed = {"grad_norm_mse", "grad_norm_contrast", "grad_norm_ratio", "feature_rms_back", "feature_rms_front"}
    probed |= {f"pair_accuracy_{name}_back" for name in ("real", "blank", "shuffled")}
    always = {"stage", "step", "loss", "mse", "contrastive", "pair_accuracy"}
    always |= {"grad_norm_controlnet", "grad_norm_unet", "learning_rate", "images_per_second", "peak_memory_mib"}
    assert [set(line) - always - {"doubt"} for line in lines] == [set(), probed, set(), probed, set()]
    assert all(always <= set(line) for line in lines)
    sparse = {"log_every": 4, "checkpoint_every": 4, "max_steps": 4}
    train(tmp_path / "sparse", control_stage(MID), control_batch(), probe_every=2, **sparse)
    (line,) = lines_of(tmp_path / "sparse")
    mean = (lines[1]["grad_norm_mse"] + lines[3]["grad_norm_mse"]) / 2
    assert line["grad_norm_mse"] == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_speed_is_that_of_all_processes_without_the_time_of_validation(tmp_path, monkeypatch, processes):
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(trainer, "time", clock)
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    stage, make_batch = tiny_prior()

    def make_slowly(number, sampler):
        clock.now += 0.5
        return make_batch(number, sampler)

    def validate(step):
        clock.now += 100

    settings = tiny_config(tmp_path, max_steps=8, log_every=4, validate_every=3, checkpoint_every=8, probe_every=9)
    StageTrainer(Accelerator(), stage, make_slowly, settings, "prior", tmp_path).train(validate)
    assert [line["images_per_second"] for line in lines_of(tmp_path)] == [4 * processes] * 2


def test_every_rate_is_logged(tmp_path):
    rates = {"learning_rate": 4e-4, "unet_learning_rate": 1e-4, "max_steps": 2}
    train(tmp_path / "two", control_stage(MID), control_batch(), warmup_steps=4, **rates)
    line = lines_of(tmp_path / "two")[0]
    assert line["learning_rate"] == pytest.approx(4 * line["unet_learning_rate"]) and line["unet_learning_rate"] > 0
    used = [4e-4 * learning_rate_factor(step, warmup_steps=4, max_steps=2) for step in range(2)]
    assert [line["learning_rate"] for line in lines_of(tmp_path / "two")] == pytest.approx(used)
    train(tmp_path / "one", control_stage(MID), control_batch(), **rates | {"unet_learning_rate": None})
    assert "unet_learning_rate" not in lines_of(tmp_path / "one")[0]


def test_memory_is_that_of_this_process_or_of_the_device(monkeypatch):
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    block = np.ones(int(before + 300) * MIB, np.uint8)
    assert before > 100 and before + 100 < peak_memory(cpu) < 2 * before + 700
    del block
    assert peak_memory(cpu) > before + 100
    counting = types.SimpleNamespace(max_memory_allocated=lambda device: 7 * MIB)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: counting)
    assert peak_memory(torch.device("cuda")) == 7


def test_a_table_has_its_columns_once_and_is_cut_back_with_them(tmp_path):
    path = tmp_path / "validation.csv"
    for step in (2, 4, 6):
        append_row(path, {"step": step, "l1": step / 10})
    drop_later_lines(path, 4, csv_step)
    assert path.read_text() == "step,l1\n2,0.2\n4,0.4\n"
    drop_later_lines(path, 0, csv_step)
    append_row(path, {"step": 2, "l1": 0.3})
    assert path.read_text() == "step,l1\n2,0.3\n"
    path.write_text("")
    append_row(path, {"step": 2, "l1": 0.3})
    assert path.read_text() == "step,l1\n2,0.3\n"


@pytest.mark.parametrize(
    ("step_of", "whole", "damaged"),
    [
        (json_step, ['{"step": 1}\n', '{"step": 2}\n'], ["half\n", "[3]\n", "{}\n", '{"step": null}\n']),
        (csv_step, ["step,l1\n", "2,0.5\n"], ["\ufffd,0.5\n", "\n"]),
    ],
)
def test_damaged_lines_are_left_out_and_counted(tmp_path, caplog, step_of, whole, damaged):
    path = tmp_path / "log"
    path.write_text("".join([whole[0], *damaged, whole[1]]))
    drop_later_lines(path, 4, step_of)
    assert path.read_text() == "".join(whole)
    (record,) = caplog.records
    assert record.getMessage() == f"{path} has damaged lines, which are left out: {len(damaged)}."


def test_a_step_without_a_back_has_no_share_in_the_accuracy():
    none, half, loss = torch.tensor(torch.nan), torch.tensor(0.5), torch.tensor(2.0)
    steps = [{"pair_accuracy": none, "loss": loss}, {"pair_accuracy": half, "loss": loss}]
    assert _means(steps) == {"pair_accuracy": 0.5, "loss": 2}
    assert math.isnan(_means([{"pair_accuracy": half, "grad_norm_unet": none}])["grad_norm_unet"])


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_means_over_the_people_or_over_all_pixels():
    random = np.random.RandomState(0)
    made, true = (random.randint(0, 256, (3, 24, 24, 3)).astype(np.uint8) for _ in range(2))
    masks = np.zeros((3, 24, 24), np.uint8)
    masks[:, 4:15, 3:20] = 255
    whole = np.full_like(masks, 255)
    results = [Image.fromarray(each) for each in made[:2]]
    for given, used, prefix in ((masks, masks, "person_"), (None, whole, "")):
        found = score(results, true, given)
        assert list(found) == ["l1", f"{prefix}ssim", f"{prefix}colour_difference"]
        assert found["l1"] == pytest.approx(np.abs(made[:2] / 255 - true[:2] / 255).mean(), abs=1e-6)
        for name, metric in (("ssim", ssim), ("colour_difference", colour_difference)):
            expected = np.mean([metric(made[i], true[i], used[i]) for i in range(2)])
            assert found[prefix + name] == pytest.approx(expected)


@pytest.mark.parametrize(("stage", "scored"), [("vae", 9), ("prior", 8), ("controlnet", 9)])
def test_a_sheet_has_eight_rows_and_a_model_that_knows_no_backs_is_scored_by_these(tmp_path, stage, scored):
    run, pipeline, held_out = TrainingRun(tiny_config(tmp_path)), tiny_pipeline(), pair_arrays(9)
    prompts = pipeline.encode_prompt(["Front side of the person", ""], "cpu", 1, False)[0]
    run._validate(stage, 4, pipeline, held_out, None, prompts)
    sheet = Image.open(tmp_path / stage / "sheets" / "0000004.png")
    blank = Image.new("RGB", (64, 64))
    assert sheet.size == picture_sheet([[blank] * 3] * 8).size
    if stage == "vae":
        results = rebuild(pipeline.vae, held_out.fronts)
    else:
        results = generate(pipeline, held_out.backs, 0, prompts)[:scored]
    (row,) = csv.DictReader((tmp_path / stage / "validation.csv").read_text().splitlines())
    assert float(row["l1"]) == pytest.approx(score(results, held_out.fronts, None)["l1"], abs=1e-6)


class Masked:
    """Rows with a person each; one is marked nowhere, one has no mask, and one cannot be read."""

    capacity, size, key, findings = 4, 32, "masked", None

    def row(self, index):
        if index == 3:
            raise UnreadablePairError("3", "it is not there")
        person = Image.new("L", (32, 32))
        if index != 1:
            person.paste(200 + index, (5, 6, 20, 30))
        return dict.fromkeys(COLUMNS) | {"front_person": None if index == 2 else person}


def test_masks_are_those_of_the_pairs_that_can_be_used():
    masks = front_masks(Pairs(Masked(), [0, 3, 0]), 1)
    assert masks.shape == (2, 32, 32) and masks.dtype == np.uint8
    assert masks[0, 6, 5] == 200 and masks[0].sum() == 200 * 15 * 24
    assert front_masks(Pairs(Masked(), [0, 1]), 1) is None
    assert front_masks(Pairs(Masked(), [0, 2]), 1) is None
    drawn = load_pairs("wardrobe", split="validation", size=64, count=2)
    assert np.array_equal(front_masks(drawn, 1), np.stack([np.asarray(row["front_person"]) for row in drawn]))


def test_a_run_on_a_source_without_masks_says_so_in_the_columns(tmp_path):
    random = np.random.RandomState(0)
    for split in ("train", "validation"):
        for view in ("back", "front"):
            folder = tmp_path / "pairs" / split / view
            folder.mkdir(parents=True)
            for item in "abcd":
                noise = random.randint(0, 255, (64, 64, 3)).astype(np.uint8)
                Image.fromarray(noise).save(folder / f"{item}{split}.png")
    source = {"source": "folder", "source_path": str(tmp_path / "pairs"), "train_pairs": 4}
    TrainingRun(tiny_config(tmp_path / "run", stages={"vae": {}}, **source)).run()
    heading, row = (tmp_path / "run" / "vae" / "validation.csv").read_text().splitlines()
    assert heading == "step,l1,ssim,colour_difference" and row.startswith("4,")


# --- trackers --------------------------------------------------------------------------------------------------------


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_what_the_files_hold_also_after_a_resume(tmp_path):
    settings = {"stages": {"vae": {}}, "report_to": "tensorboard", "validate_every": 2}
    TrainingRun(tiny_config(tmp_path, **settings)).run()
    for path in ("checkpoint-4", "pipeline"):
        (tmp_path / "vae" / path).rename(tmp_path / path)
    TrainingRun(tiny_config(tmp_path, **settings)).run()
    shown, lines = scalars_in(tmp_path / "vae" / "tensorboard"), lines_of(tmp_path / "vae")
    logged = set().union(*lines) - {"stage", "step"}
    for name in logged:
        assert shown[name] == [(line["step"], pytest.approx(line[name])) for line in lines if name in line], name
    rows = list(csv.DictReader((tmp_path / "vae" / "validation.csv").read_text().splitlines()))
    assert list(rows[0]) == ["step", "l1", "person_ssim", "person_colour_difference"] and len(rows) == 2
    for name in list(rows[0])[1:]:
        assert shown[f"held_out_{name}"] == [(int(row["step"]), pytest.approx(float(row[name]))) for row in rows]
    assert set(shown) == logged | {f"held_out_{name}" for name in list(rows[0])[1:]}


def test_no_tracker_leaves_no_trace(finished):
    assert not list(finished.rglob("*tensorboard*")) and not list(finished.rglob("*wandb*"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(trackers._INSTALLED, name, lambda: False)
    with pytest.raises(ConfigError, match=f"^report_to is {name}, which is not installed: run `pip install {name}`"):
        TrainingRun(tiny_config(tmp_path / "run", report_to=name)).run()
    assert not (tmp_path / "run").exists()


def test_the_script_refuses_a_tracker_that_is_not_installed_in_one_sentence(tmp_path):
    hidden = "import runpy, sys; sys.modules['wandb'] = None; sys.argv = sys.argv[1:]"
    run = f"{hidden}; runpy.run_path(sys.argv[0], run_name='__main__')"
    script = [str(ROOT / "examples" / "train_backshan.py"), "--config", str(SMOKE), "--report_to", "wandb"]
    command = [sys.executable, "-c", run, *script, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "report_to is wandb, which is not installed: run `pip install wandb`, or give none.\n"
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="report_to 'paper' does not exist: choose from none, tensorboard, wandb"):
        tiny_config(tmp_path, report_to="paper")
