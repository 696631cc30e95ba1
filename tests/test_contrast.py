"""The contrastive term over several micro-batches and several processes against one large batch."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from test_stages import MID, control_batch, control_stage
from tiny import tiny_config
from two_processes import launch

from backshan_diffusers.objective import PRESETS, SMALLEST_TEMPERATURE
from backshan_diffusers.training.contrast import ComparisonHead, compare
from backshan_diffusers.training.probes import probe_stage
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.trainer import StageTrainer

HERE = Path(__file__).parent
OBJECTIVES = {
    "paper": PRESETS["paper"],
    "backshan": PRESETS["backshan"],
    "dispersive": PRESETS["dispersive"],
    "learned": replace(MID, projection_width=6, learned_temperature=True, both_directions=True),
}


def cut(batch: dict, parts: int) -> list[dict]:
    """The batch as micro-batches."""
    size = len(batch["latents"]) // parts
    places = [slice(part * size, (part + 1) * size) for part in range(parts)]
    shared = {name: batch[name] for name in ("contrastive_weight", "blank_control")}
    return [{name: value[place] for name, value in batch.items() if name not in shared} | shared for place in places]


def gradients(stage) -> torch.Tensor:
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in stage.parameters()])


def whole_gradient(name: str) -> torch.Tensor:
    """Of one batch of 8 pairs on one process."""
    stage = control_stage(OBJECTIVES[name])
    stage(control_batch(8))["loss"].backward()
    return gradients(stage)


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_that_are_compared_with_each_other_equal_one_batch(name):
    stage, parts = control_stage(OBJECTIVES[name]), cut(control_batch(8), 4)
    losses = []
    for part, comparison in zip(parts, stage.compare(parts), strict=True):
        losses.append(stage(part, comparison, len(parts))["loss"])
        (losses[-1] / len(parts)).backward()
    assert relative_error(gradients(stage), whole_gradient(name)) < 1e-5
    whole = control_stage(OBJECTIVES[name])(control_batch(8))["loss"]
    torch.testing.assert_close(torch.stack(losses).mean(), whole, rtol=1e-5, atol=1e-6)


def test_micro_batches_that_are_not_compared_equal_one_batch_in_the_mse_alone():
    for name, same in (("mse", True), ("paper", False)):
        stage = control_stage(PRESETS[name])
        for part in cut(control_batch(8), 4):
            (stage(part)["loss"] / 4).backward()
        whole = control_stage(PRESETS[name])
        whole(control_batch(8))["loss"].backward()
        assert (relative_error(gradients(stage), gradients(whole)) < 1e-5) == same


def test_a_learned_temperature_has_a_floor():
    head = ComparisonHead(replace(MID, learned_temperature=True, temperature=0.01), 4)
    with torch.no_grad():
        head.log_temperature.sub_(1)
    assert head.temperature().item() == pytest.approx(SMALLEST_TEMPERATURE)
    assert ComparisonHead(MID, 4).temperature() is None


def test_a_temperature_at_its_floor_can_rise_again():
    head = ComparisonHead(replace(MID, learned_temperature=True, temperature=0.01), 4)
    with torch.no_grad():
        head.log_temperature.sub_(1)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    (-head.temperature()).backward()
    optimizer.step()
    assert head.temperature().item() == pytest.approx(SMALLEST_TEMPERATURE * torch.tensor(0.01).exp().item())


def test_what_no_loss_reaches_is_not_there():
    """Several processes would wait for its gradient."""
    silent = replace(MID, contrastive_weight=0, projection_width=6, learned_temperature=True)
    assert not list(ComparisonHead(silent, 4).parameters())
    assert len(list(ComparisonHead(replace(silent, contrastive_weight=1), 4).parameters())) == 3


def test_slopes_too_small_for_half_precision_reach_the_features():
    """As under float16's loss scaler: the product is made, and scaled, before anything is rounded."""
    whole = [torch.randn(4, 200_000, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    slopes = {}
    for kind in (torch.float32, torch.float16):
        features = [each.to(kind).requires_grad_(True) for each in whole]
        groups, shown = torch.arange(4), torch.ones(4, dtype=torch.bool)
        comparison = compare(PRESETS["paper"], features, groups, shown)
        scaled = comparison.carried_by(features, None, 1) * 2.0**16
        slopes[kind] = torch.autograd.grad(scaled, features)[0].float()
    assert slopes[torch.float32].abs().median() / 2**16 < torch.finfo(torch.float16).tiny
    assert relative_error(slopes[torch.float16], slopes[torch.float32]) < 5e-3


def test_two_processes_equal_one_batch(tmp_path):
    """Through a real DistributedDataParallel on gloo, with and without micro-batches."""
    launch(__file__, tmp_path)
    ours = load_file(tmp_path / "gradients.safetensors")
    assert len(ours) == 3 * len(OBJECTIVES)
    for name in OBJECTIVES:
        for parts in (1, 2):
            assert relative_error(ours[f"{name} in {parts}"], whole_gradient(name)) < 1e-5, name
        assert (
            relative_error(ours[f"norms of {name}"], norms(control_stage(OBJECTIVES[name]), control_batch(8))) < 1e-5
        )

    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    stage = control_stage(OBJECTIVES["paper"])
    mine, other = (float(stage(half)["mse"]) for half in cut(control_batch(8), 2))
    assert line["mse"] == pytest.approx((mine + other) / 2, abs=2e-6) and abs(mine - other) > 1e-3


def norms(stage, batch: dict) -> torch.Tensor:
    """Of the gradients of both terms, as the probe finds them."""
    found = probe_stage(stage, batch)
    return torch.stack([found["grad_norm_mse"], found["grad_norm_contrast"]])


def process(folder: Path) -> None:
    """What each of the two processes does: its half of the batch, wrapped as training wraps it."""
    accelerator, found = Accelerator(), {}
    half = cut(control_batch(8), 2)[accelerator.process_index]
    for name, objective in OBJECTIVES.items():
        for parts in (1, 2):
            stage, batches = control_stage(objective), cut(half, parts)
            wrapped = accelerator.prepare(stage)
            compared = stage.compare(batches) if parts > 1 else []
            for place, batch in enumerate(batches):
                together = (compared[place], parts) if compared else ()
                with nullcontext() if place == parts - 1 else accelerator.no_sync(wrapped):
                    accelerator.backward(wrapped(batch, *together)["loss"] / parts)
            found[f"{name} in {parts}"] = gradients(stage)
        found[f"norms of {name}"] = norms(stage, half)
        assert torch.equal(gradients(stage), found[f"{name} in 2"])  # the probe leaves them
    settings = tiny_config(folder / "logged", max_steps=1)
    trainer = StageTrainer(
        accelerator, control_stage(OBJECTIVES["paper"]), lambda *_: half, settings, "controlnet", folder
    )
    trainer.train(lambda step: None)
    TrainingRun(tiny_config(folder / "run", batch_size=1))  # not refused: of a step's two pairs each has one
    if accelerator.is_main_process:
        save_file(found, folder / "gradients.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    process(Path(sys.argv[1]))
