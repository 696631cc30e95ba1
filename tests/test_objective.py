"""The loss against an independent NumPy formula, and where features are exactly zero."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_stages import control_batch, control_stage
from tiny import tiny_pipeline

from backshan_diffusers.objective import (
    PRESETS,
    RMS_FLOOR,
    Objective,
    backshan_loss,
    coarse_error,
    contrastive_cross_entropy,
    contrastive_terms,
    cosine_matrix,
    dispersive_loss,
    min_snr_weights,
    noise_mse,
    pair_accuracy,
)


def features(seed: int, pairs: int = 5, width: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(pairs, width)).float()


def numpy_cross_entropy(back, front, temperature, groups=None, shown=None, candidates=None):
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
            if candidates is not None and i != j and not candidates[j]:
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
    mse = noise_mse(prediction, target)
    terms = contrastive_terms(PRESETS["paper"], back, front)
    assert float(mse) == pytest.approx(((prediction - target).numpy() ** 2).mean(), rel=1e-5)
    expected = float(mse) + numpy_cross_entropy(back, front, 1.0)
    loss = backshan_loss(mse, terms["contrastive"], PRESETS["paper"].weight_at(0))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_weight_reaches_the_loss():
    assert float(backshan_loss(torch.tensor(2.0), torch.tensor(3.0), 0.25)) == 2.75


def contrastive(objective: Objective, groups=None, shown=None, temperature=None) -> float:
    tensors = [None if values is None else torch.tensor(values) for values in (groups, shown)]
    return float(contrastive_terms(objective, features(0, 4), features(1, 4), *tensors, temperature)["contrastive"])


def expected_cross_entropy(temperature, groups=None, shown=None) -> float:
    return numpy_cross_entropy(features(0, 4), features(1, 4), temperature, groups, shown)


def test_the_temperature_is_the_objectives_unless_it_is_learned():
    objective = Objective(temperature=0.5)
    assert contrastive(objective) == pytest.approx(expected_cross_entropy(0.5), rel=1e-5)
    assert contrastive(objective, temperature=torch.tensor(0.2)) == pytest.approx(
        expected_cross_entropy(0.2), rel=1e-5
    )


def test_items_of_one_group_are_negatives_only_where_the_objective_says_so():
    groups = [7, 7, 1, 2]
    assert contrastive(Objective(), groups) == pytest.approx(expected_cross_entropy(1.0, groups), rel=1e-5)
    strict = Objective(same_group_negatives=True)
    assert contrastive(strict, groups) == pytest.approx(expected_cross_entropy(1.0), rel=1e-5)


def test_both_directions_are_the_mean_of_backs_and_fronts_that_seek():
    other_way = numpy_cross_entropy(features(1, 4), features(0, 4), 0.5)
    expected = (expected_cross_entropy(0.5) + other_way) / 2
    assert abs(expected_cross_entropy(0.5) - other_way) > 1e-3
    assert contrastive(Objective(temperature=0.5, both_directions=True)) == pytest.approx(expected, rel=1e-5)


def test_groups_and_a_learned_temperature_hold_in_both_directions_and_blanked_backs_are_no_negatives():
    choice = {"temperature": 0.2, "groups": [7, 7, 1, 2], "shown": [True, False, True, True]}
    other_way = numpy_cross_entropy(features(1, 4), features(0, 4), **choice, candidates=choice["shown"])
    expected = (expected_cross_entropy(**choice) + other_way) / 2
    found = contrastive(Objective(both_directions=True), **choice | {"temperature": torch.tensor(0.2)})
    assert found == pytest.approx(expected, rel=1e-5)


def test_blanked_backs_have_nothing_to_find_but_their_fronts_stay_negatives():
    shown = [True, False, True, True]
    expected = expected_cross_entropy(1.0, None, shown)
    assert expected != pytest.approx(expected_cross_entropy(1.0), rel=1e-3)
    assert contrastive(PRESETS["paper"], None, shown) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 1]])
@pytest.mark.parametrize("shown", [None, [True, True, True, False, True]])
def test_dispersive_loss_equals_the_independent_formula(groups, shown):
    back = features(0).double().numpy()
    terms = []
    for i in range(5):
        for j in range(5):
            if i == j or (groups and groups[i] == groups[j]) or (shown and not (shown[i] and shown[j])):
                continue
            cosine = sum(back[i] * back[j]) / math.sqrt(sum(back[i] ** 2)) / math.sqrt(sum(back[j] ** 2))
            terms.append(math.exp(cosine / 0.5))
    tensors = [None if values is None else torch.tensor(values) for values in (groups, shown)]
    ours = dispersive_loss(cosine_matrix(features(0), features(0)), 0.5, *tensors)
    assert float(ours) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-5)


def test_dispersive_loss_without_pairs_teaches_nothing():
    back = features(0).requires_grad_(True)
    loss = dispersive_loss(cosine_matrix(back, back), 0.5, torch.zeros(5, dtype=torch.long))
    loss.backward()
    assert loss == 0 and back.grad.abs().max() == 0


def test_dispersive_loss_at_a_low_temperature_counts_no_pair_that_is_left_out():
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert float(dispersive_loss(opposite, 0.001)) == pytest.approx(-1000)


def test_negatives_are_the_backs_among_themselves():
    terms = contrastive_terms(PRESETS["dispersive"], features(0))
    assert list(terms) == ["contrastive"]
    assert torch.equal(terms["contrastive"], dispersive_loss(cosine_matrix(features(0), features(0)), 0.5))


def test_the_weight_warms_up_and_anneals():
    objective = Objective(contrastive_weight=2.0, contrastive_warmup_steps=4, contrastive_anneal_steps=10)
    assert [objective.weight_at(step) for step in (0, 1, 4, 9, 14, 20)] == [0, 0.5, 2, 1, 0, 0]
    assert [Objective(contrastive_weight=2.0).weight_at(step) for step in (0, 99)] == [2, 2]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_equal_the_formula(kind):
    alpha_bars = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.999])
    expected = []
    for alpha_bar in alpha_bars.double().tolist():
        snr = alpha_bar / (1 - alpha_bar)
        kept = min(snr, 5)
        expected.append((kept / snr if snr else 1.0) if kind == "epsilon" else kept / (snr + 1))
    assert min_snr_weights(alpha_bars, 5, kind).tolist() == pytest.approx(expected, rel=1e-3)


def test_mse_weighs_items():
    prediction, target = torch.tensor([[[[1.0]]], [[[3.0]]]]), torch.zeros(2, 1, 1, 1)
    per_item = torch.tensor([1.0, 0.5])
    assert float(noise_mse(prediction, target, item_weights=per_item)) == (1 * 1 + 0.5 * 9) / 2
    kept = torch.tensor([0.0, 1.0])[:, None, None, None]
    assert float(noise_mse(prediction, target, kept, per_item)) == 0.5 * 9


def test_weighted_mse_is_a_mean_over_channels_and_over_the_cells_that_are_left():
    prediction, target = features(0, 2, 48).view(2, 3, 4, 4), features(1, 2, 48).view(2, 3, 4, 4)
    kept, per_item = (features(2, 2, 16) > 0).view(2, 1, 4, 4), torch.tensor([0.25, 2.0])
    total = 0.0
    for i, c, y, x in np.ndindex(2, 3, 4, 4):
        total += float(per_item[i] * kept[i, 0, y, x] * (prediction[i, c, y, x] - target[i, c, y, x]) ** 2)
    expected = total / (3 * int(kept.sum()))
    assert float(noise_mse(prediction, target, kept.float(), per_item)) == pytest.approx(expected, rel=1e-5)


def test_presets_are_those_of_the_documentation():
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text(encoding="utf-8")
    for name, objective in PRESETS.items():
        cells = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |")).split("|")
        compared, temperature, weight, chosen, fronts = (cell.strip() for cell in cells[2:7])
        assert float(weight.split()[0]) == objective.contrastive_weight
        assert ("after 500 steps" in weight) == (objective.contrastive_warmup_steps == 500)
        if objective.contrastive_weight:
            assert float(temperature) == objective.temperature
            assert ("both directions" in compared) == objective.both_directions
            assert ("no front" in compared) == (objective.contrast == "negatives")
            assert ("middle block" in chosen, "pooled" in chosen) == (objective.features == "mid", objective.pooled)
            assert ("before" in chosen) == objective.before_zero_convolutions
            assert ("noise of their own" in fronts) == (objective.front_latents == "independent")


@pytest.mark.parametrize("given", [{}, {"adversarial_weight": 1.0}, {"coarse_weight": 1.0}])
def test_rollouts_need_an_adversary_and_an_anchor(given):
    with pytest.raises(ValueError, match="^objective.rollout_share needs an adversary and an anchor: give objective"):
        Objective(rollout_share=0.5, **given)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("contrast", "triplets"),
        ("features", "first"),
        ("front_latents", "none"),
        ("timesteps", "all"),
        ("contrastive_weight", -1.0),
        ("contrastive_warmup_steps", -1),
        ("contrastive_anneal_steps", -1),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("timestep_shift", 0.0),
        ("min_snr_gamma", -1.0),
        ("noise_offset", float("nan")),
        ("adversarial_weight", -1.0),
        ("adversarial_pull", 0.0),
        ("adversarial_head_start_steps", -1),
        ("adversarial_warmup_steps", -1),
        ("coarse_weight", -1.0),
        ("rollout_share", -0.1),
        ("rollout_share", 0.5),
        ("rollout_share", 1.0),
        ("projection_width", 8),
        ("projection_width", 1),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(ValueError, match=f"^objective.{field} "):
        Objective(**{field: value})


@pytest.mark.parametrize("weighted", [False, True])
def test_the_coarse_error_equals_the_independent_formula(weighted):
    generator = np.random.default_rng(2)
    prediction, target = generator.normal(size=(2, 3, 3, 10, 12))
    weights = generator.uniform(size=(3, 1, 10, 12))
    weights[0, 0, :4, :4] = 0
    weights, shares = (weights, np.array([0.5, 1.0, 2.0])) if weighted else (np.ones_like(weights), np.ones(3))
    total = counted = 0.0
    for item in range(3):
        for top in (0, 4, 8):
            for left in (0, 4, 8):
                place = np.s_[top : top + 4, left : left + 4]
                block = weights[item, 0][place]
                if block.any():
                    errors = ((prediction - target)[item][:, *place] * block).sum(axis=(1, 2)) / block.sum()
                    total += shares[item] * (errors**2).mean() * block.mean()
                counted += block.mean()
    arguments = [prediction, target, *((weights, shares) if weighted else ())]
    as_tensors = [torch.from_numpy(each) for each in arguments]
    assert coarse_error(*as_tensors).item() == pytest.approx(total / counted, rel=1e-4)


def test_the_coarse_error_sees_a_colour_and_no_detail():
    front = torch.zeros(1, 1, 8, 8)
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert coarse_error(front + checks, front) == 0
    assert coarse_error(front + 0.5, front).item() == pytest.approx(0.25)
    assert coarse_error(front + 0.5, front, torch.zeros(1, 1, 8, 8)) == 0


@pytest.mark.parametrize(("share", "count", "expected"), [(0.5, 8, 4), (0.5, 3, 1), (0.9, 1, 0), (0.0, 8, 0)])
def test_some_items_always_begin_at_their_own_front(share, count, expected):
    assert Objective(adversarial_weight=1.0, coarse_weight=1.0, rollout_share=share).rolled_out(count) == expected


def test_a_batch_of_blanked_backs_teaches_nothing():
    back, front = features(0).requires_grad_(True), features(1)
    loss = contrastive_cross_entropy(cosine_matrix(back, front), shown=torch.zeros(5, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and back.grad.abs().max() == 0


def test_mse_of_half_precision_is_computed_in_float32():
    prediction, target = torch.full((1, 1, 1, 1), 300.0).half(), torch.zeros(1, 1, 1, 1).half()
    assert float(noise_mse(prediction, target)) == 90_000.0  # beyond the largest float16
    for weights in ({"weights": torch.ones(1, 1, 1, 1)}, {"item_weights": torch.ones(1)}):
        assert float(noise_mse(prediction, target, **weights)) == 90_000.0


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
    stage = control_stage(PRESETS["paper"], train_unet=None, pipeline=tiny_pipeline(zero_residuals=True))
    optimizer = torch.optim.SGD(stage.parameters(), lr=1e-3)
    for step in range(3):
        terms = stage(control_batch(seed=step))
        optimizer.zero_grad()
        terms["loss"].backward()
        norms = [p.grad.norm() for p in stage.parameters() if p.grad is not None]
        assert torch.isfinite(torch.stack(norms)).all() and max(norms) < 1e3
        optimizer.step()
    assert torch.isfinite(terms["loss"])


def test_pair_accuracy_counts_the_diagonal():
    matrix = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.1, 0.3]])
    assert float(pair_accuracy(matrix)) == pytest.approx(2 / 3)
    assert float(pair_accuracy(matrix, shown=torch.tensor([True, True, False]))) == pytest.approx(1 / 2)
    assert pair_accuracy(matrix, shown=torch.zeros(3, dtype=torch.bool)).isnan()
    # the second back takes the first front for its own, which does not count where both are of one outfit
    assert float(pair_accuracy(matrix, torch.tensor([0, 0, 1]))) == 1
    assert float(pair_accuracy(matrix, torch.tensor([0, 1, 0]))) == pytest.approx(2 / 3)


def test_a_blanked_back_gets_no_gradient_from_the_comparison():
    backs = features(0, 4).requires_grad_(True)
    shown = torch.tensor([True, False, True, True])
    terms = contrastive_terms(PRESETS["backshan"], backs, features(1, 4), torch.arange(4), shown)
    (slope,) = torch.autograd.grad(terms["contrastive"], backs)
    assert (slope[1] == 0).all() and (slope[[0, 2, 3]] != 0).any(dim=1).all()


def test_pair_accuracy_and_loss_count_the_same_negatives():
    groups, backs = torch.tensor([0, 0]), torch.eye(2)
    fronts = backs.flip(0)  # each back finds the front of the other, which is of its own outfit
    assert contrastive_terms(PRESETS["paper"], backs, fronts, groups)["pair_accuracy"] == 1
    strict = Objective(contrastive_weight=1, same_group_negatives=True)
    assert contrastive_terms(strict, backs, fronts, groups)["pair_accuracy"] == 0


def test_what_cannot_be_learned_or_mirrored_is_refused():
    with pytest.raises(ValueError, match="begins at 0.01 or above"):
        Objective(learned_temperature=True, temperature=0.005)
    assert Objective(temperature=0.005).temperature == 0.005
    assert Objective(learned_temperature=True, temperature=0.01).temperature == 0.01
    with pytest.raises(ValueError, match="mirror_features"):
        Objective(mirror_features=True, pooled=True)


def test_pairs_are_counted_among_the_backs_that_are_shown():
    backs, fronts = torch.eye(3), torch.eye(3)[[0, 2, 1]]  # the first alone finds its front
    shown = torch.tensor([True, True, False])
    assert contrastive_terms(PRESETS["paper"], backs, fronts, shown=shown)["pair_accuracy"] == 1 / 2
    assert contrastive_terms(PRESETS["paper"], backs, fronts)["pair_accuracy"] == pytest.approx(1 / 3)


def test_every_pair_found_drives_the_loss_to_zero():
    matrix = torch.eye(6) * 2 - 1
    assert float(contrastive_cross_entropy(matrix, temperature=0.05)) < 1e-6
    assert float(contrastive_cross_entropy(matrix, temperature=1.0)) > 0.5  # tau = 1 cannot do it
