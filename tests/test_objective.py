"""The loss against an independent NumPy formula, and where features are exactly zero."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline

from backshan_diffusers.objective import (
    PRESETS,
    RMS_FLOOR,
    Objective,
    backshan_loss,
    contrastive_cross_entropy,
    cosine_matrix,
    noise_mse,
    pair_accuracy,
)
from backshan_diffusers.training.stages import ControlStage


def features(seed: int, pairs: int = 5, width: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(pairs, width)).float()


def numpy_cross_entropy(back, front, temperature, groups=None, shown=None):
    """Loops and logarithms only, in float64."""
    back, front = back.double().numpy(), front.double().numpy()
    losses = []
    for i in range(len(back)):
        if shown is not None and not shown[i]:
            continue
        scores = []
        for j in range(len(front)):
            if groups is not None and i != j and groups[i] == groups[j]:
                continue
            cosine = sum(back[i] * front[j]) / math.sqrt(sum(back[i] ** 2)) / math.sqrt(sum(front[j] ** 2))
            scores.append((i == j, math.exp(cosine / temperature)))
        total = sum(score for _, score in scores)
        losses.append(-math.log(next(score for own, score in scores if own) / total))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [1.0, 0.07])
@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 1]])
def test_cross_entropy_equals_the_independent_formula(temperature, groups):
    back, front = features(0), features(1) + 0.5 * features(0)
    ids = None if groups is None else torch.tensor(groups)
    ours = contrastive_cross_entropy(cosine_matrix(back, front), temperature, ids)
    assert float(ours) == pytest.approx(numpy_cross_entropy(back, front, temperature, groups), rel=1e-5)


def test_rows_are_backs():
    back, front = features(0), features(1)
    matrix = cosine_matrix(back, front)
    expected = torch.nn.functional.cosine_similarity(back[1], front[3], dim=0)
    assert float(matrix[1, 3]) == pytest.approx(float(expected), rel=1e-5)
    assert float(matrix[1, 3]) != pytest.approx(float(matrix[3, 1]), abs=1e-3)


def test_cosines_do_not_depend_on_the_length_of_features():
    torch.testing.assert_close(cosine_matrix(features(0) * 100, features(1)), cosine_matrix(features(0), features(1)))


def test_paper_preset_is_the_plain_sum_with_temperature_one():
    prediction, target = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    back, front = features(0, 4), features(1, 4)
    terms = backshan_loss(PRESETS["paper"], prediction, target, back, front)
    mse = ((prediction - target).numpy() ** 2).mean()
    expected = mse + numpy_cross_entropy(back, front, 1.0)
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(terms["mse"]) == pytest.approx(mse, rel=1e-5)


def test_weight_and_temperature_reach_the_loss():
    back, front, target = features(0, 4), features(1, 4), torch.zeros(4, 1, 1, 1)
    terms = backshan_loss(Objective(contrastive_weight=0.25, temperature=0.5), target, target, back, front)
    assert float(terms["loss"]) == pytest.approx(0.25 * numpy_cross_entropy(back, front, 0.5), rel=1e-5)


def test_group_ids_reach_the_loss():
    back, front, target = features(0, 4), features(1, 4), torch.zeros(4, 1, 1, 1)
    groups = torch.tensor([7, 7, 1, 2])
    terms = backshan_loss(PRESETS["paper"], target, target, back, front, groups)
    assert float(terms["loss"]) == pytest.approx(numpy_cross_entropy(back, front, 1.0, [7, 7, 1, 2]), rel=1e-5)


def test_blanked_backs_have_nothing_to_find_but_their_fronts_stay_negatives():
    back, front, target = features(0, 4), features(1, 4), torch.zeros(4, 1, 1, 1)
    shown = torch.tensor([True, False, True, True])
    terms = backshan_loss(PRESETS["paper"], target, target, back, front, None, shown)
    expected = numpy_cross_entropy(back, front, 1.0, None, shown)
    assert expected != pytest.approx(numpy_cross_entropy(back, front, 1.0), rel=1e-3)
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_blanked_backs_teaches_nothing():
    back, front = features(0).requires_grad_(True), features(1)
    loss = contrastive_cross_entropy(cosine_matrix(back, front), shown=torch.zeros(5, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and back.grad.abs().max() == 0


def test_mse_preset_needs_no_features():
    prediction, target = torch.full((2, 1, 2, 2), 3.0), torch.ones(2, 1, 2, 2)
    terms = backshan_loss(PRESETS["mse"], prediction, target)
    assert set(terms) == {"loss", "mse"}
    assert float(terms["loss"]) == 4.0


def test_mse_of_half_precision_is_computed_in_float32():
    prediction, target = torch.full((1, 1, 1, 1), 300.0).half(), torch.zeros(1, 1, 1, 1).half()
    assert float(noise_mse(prediction, target)) == 90_000.0  # beyond the largest float16


def test_zero_features_give_the_loss_of_chance_and_no_gradient():
    back, front = (torch.zeros(8, 1000, requires_grad=True) for _ in range(2))
    loss = contrastive_cross_entropy(cosine_matrix(back, front))
    loss.backward()
    assert float(loss) == pytest.approx(math.log(8))
    assert back.grad.abs().max() == 0 and front.grad.abs().max() == 0


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1e-5, 1e-3, 1.0])
def test_gradients_stay_bounded_for_features_of_any_size(scale):
    width = 10_000
    back, front = features(0, 6, width) * scale, features(1, 6, width) * scale
    back.requires_grad_(True)
    contrastive_cross_entropy(cosine_matrix(back, front)).backward()
    assert torch.isfinite(back.grad).all()
    assert float(back.grad.norm(dim=1).max()) <= 1 / (RMS_FLOOR * math.sqrt(width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosines_are_float32_also_under_autocast(dtype):
    back, front = features(0).to(dtype), features(1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        matrix = cosine_matrix(back, front)
    assert matrix.dtype == torch.float32
    torch.testing.assert_close(matrix, cosine_matrix(back.float(), front.float()))


def test_the_floor_halves_the_cosine_of_features_of_its_own_size():
    back = torch.full((1, 64), 1e-4)
    assert float(cosine_matrix(back, back)) == pytest.approx(0.5)


def test_one_zero_side_is_no_nan():
    matrix = cosine_matrix(torch.zeros(3, 10), features(1, 3, 10))
    assert torch.equal(matrix, torch.zeros(3, 3))


def test_paper_objective_takes_its_first_step_from_zero_convolutions():
    pipeline = tiny_pipeline(zero_residuals=True)
    stage = ControlStage(pipeline.controlnet, pipeline.unet, pipeline.scheduler, PRESETS["paper"], train_unet=None)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "latents": torch.randn(4, 4, 8, 8, generator=generator),
        "prompts": torch.zeros(4, 7, 16),
        "back_control": torch.rand(4, 3, 64, 64, generator=generator),
        "front_control": torch.rand(4, 3, 64, 64, generator=generator),
        "groups": torch.arange(4),
        "shown": torch.ones(4, dtype=torch.bool),
    }
    optimizer = torch.optim.SGD(stage.parameters(), lr=1e-3)
    for step in range(3):
        terms = stage(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        terms["loss"].backward()
        norms = [p.grad.norm() for p in pipeline.controlnet.parameters() if p.grad is not None]
        assert torch.isfinite(torch.stack(norms)).all() and max(norms) < 1e3
        optimizer.step()
    assert torch.isfinite(terms["loss"])


def test_pair_accuracy_counts_the_diagonal():
    matrix = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.1, 0.3]])
    assert float(pair_accuracy(matrix)) == pytest.approx(2 / 3)
    assert float(pair_accuracy(matrix, torch.tensor([True, True, False]))) == pytest.approx(1 / 2)
    assert float(pair_accuracy(matrix, torch.zeros(3, dtype=torch.bool))) == 0


def test_every_pair_found_drives_the_loss_to_zero():
    matrix = torch.eye(6) * 2 - 1
    assert float(contrastive_cross_entropy(matrix, temperature=0.05)) < 1e-6
    assert float(contrastive_cross_entropy(matrix, temperature=1.0)) > 0.5  # tau = 1 cannot do it
