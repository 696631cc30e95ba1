"""A discriminator that learns beside a ControlNet: who learns from what, and that it leaves with the training."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from test_resume import assert_equal_files, log
from test_stages import control_batch, control_stage, noised
from tiny import pair_arrays, tiny_autoencoder, tiny_config, tiny_pipeline

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.objective import (
    Objective,
    bounded_adversarial_weight,
    coarse_error,
    noise_mse,
    relativistic_loss,
    smoothness_penalty,
)
from backshan_diffusers.training.batches import StepSampler
from backshan_diffusers.training.checkpoints import checkpoint_path
from backshan_diffusers.training.config import ConfigError, ModelSize
from backshan_diffusers.training.discriminator import FrontDiscriminator
from backshan_diffusers.training.probes import probe_stage
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.savings import compile_blocks
from backshan_diffusers.training.schedule import denoising_target, predicted_latents
from backshan_diffusers.training.trainer import parameter_groups

JUDGED = Objective(adversarial_weight=0.5)
ROLLED_OUT = replace(JUDGED, coarse_weight=2.0, rollout_share=0.5)


def judged_batch() -> dict:
    generator = torch.Generator().manual_seed(7)
    fronts, disturbance = torch.randn(2, 4, 3, 64, 64, generator=generator).tanh()
    return control_batch() | {
        "adversarial_weight": torch.tensor(0.5),
        "fronts": fronts,
        "disturbance": 0.05 * disturbance[:2],
    }


def what_the_adversary_adds(terms: dict) -> torch.Tensor:
    return terms["adversarial_weight"] * terms["adversarial"] + terms["discriminator"] + terms["smoothness"]


def gradients(module: torch.nn.Module) -> list[torch.Tensor | None]:
    return [weight.grad for weight in module.parameters()]


def test_the_loss_equals_the_independent_formula():
    generator = np.random.default_rng(0)
    true, predicted = ([generator.normal(size=(3, 1, side, side)) for side in (8, 4, 2)] for _ in range(2))
    weights = generator.uniform(size=(3, 1, 4, 4))
    halved = weights.reshape(3, 1, 2, 2, 2, 2).mean(axis=(3, 5))
    doubled = weights.repeat(2, axis=2).repeat(2, axis=3)
    expected = np.mean(
        [
            (m * np.log1p(np.exp(a - b))).sum() / m.sum()
            for a, b, m in zip(true, predicted, (doubled, weights, halved), strict=True)
        ]
    )
    as_tensors = [[torch.from_numpy(scale) for scale in scores] for scores in (true, predicted)]
    assert relativistic_loss(*as_tensors, torch.from_numpy(weights)).item() == pytest.approx(expected, rel=1e-5)


def test_the_penalty_equals_the_independent_formula():
    generator = np.random.default_rng(0)
    scores, disturbed = ([generator.normal(size=(3, 1, side, side)) for side in (4, 2)] for _ in range(2))
    expected = np.mean([((d - s) ** 2).mean() / 10 + (s**2).mean() / 1000 for s, d in zip(scores, disturbed)])
    as_tensors = [[torch.from_numpy(scale) for scale in each] for each in (scores, disturbed)]
    assert smoothness_penalty(*as_tensors).item() == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_told_apart_has_the_loss_of_chance():
    scores, weights = [torch.randn(2, 1, 4, 4)], torch.rand(2, 1, 4, 4)
    assert relativistic_loss(scores, scores, weights).item() == pytest.approx(np.log(2))
    assert relativistic_loss(scores, [scores[0] + 50], weights).item() < 1e-6


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_right_prediction_stands_for_the_true_latents(kind):
    stage = control_stage(Objective())
    stage.scheduler.register_to_config(prediction_type=kind)
    batch = judged_batch()
    right = batch["noise"]
    if kind == "v_prediction":
        right = stage.scheduler.get_velocity(batch["latents"], batch["noise"], batch["timesteps"])
    made = predicted_latents(stage.scheduler, noised(stage, batch), right, batch["timesteps"])
    torch.testing.assert_close(made, batch["latents"], atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_sum_of_its_terms():
    stage, batch = control_stage(JUDGED), judged_batch()
    terms = stage(batch)
    torch.testing.assert_close(terms["loss"], terms["mse"] + what_the_adversary_adds(terms))
    judged = stage.adversary.judge(batch, *_prediction(stage, batch))
    for name, term in judged.items():
        torch.testing.assert_close(terms[name], term.detach())
    assert not stage.trained["unet"].conv_out._forward_pre_hooks
    plain = control_stage(Objective())(batch)
    torch.testing.assert_close(plain["loss"], terms["mse"])
    assert set(terms) - set(plain) == {"adversarial", "adversarial_weight", "discriminator", "smoothness"}


def test_the_comparison_and_the_discriminator_go_together():
    objective = Objective(contrastive_weight=0.5, features="mid", adversarial_weight=0.5)
    terms = control_stage(objective)(judged_batch())
    expected = terms["mse"] + 0.5 * terms["contrastive"] + what_the_adversary_adds(terms)
    torch.testing.assert_close(terms["loss"], expected)


def test_each_side_learns_from_its_own_term_alone():
    stage, batch = control_stage(JUDGED), judged_batch()
    terms = stage.adversary.judge(batch, *_prediction(stage, batch))
    discriminator, unet = stage.trained["discriminator"], stage.trained["unet"]
    terms["adversarial"].backward(retain_graph=True)
    assert all(gradient is None for gradient in gradients(discriminator))
    assert any(gradient is not None and gradient.any() for gradient in gradients(unet))
    unet.zero_grad(set_to_none=True)
    terms["discriminator"].backward()
    assert all(gradient is not None and gradient.any() for gradient in gradients(discriminator))
    assert all(gradient is None for gradient in gradients(unet))


def _prediction(stage, batch) -> tuple[torch.Tensor, torch.Tensor]:
    latents = noised(stage, batch)
    output, _ = stage._control(batch, latents)
    return latents, stage._predict(latents, batch, output)


def test_each_term_pulls_in_its_direction():
    """A step down the discriminator's term parts the scores; one down the other brings them together."""
    stage, batch = control_stage(JUDGED), judged_batch()
    latents, prediction = _prediction(stage, batch)
    discriminator = stage.trained["discriminator"]

    def gap(made: torch.Tensor) -> float:
        fronts = (batch["fronts"], stage.adversary.decode(made))
        scores = [discriminator(each, batch["back_control"]) for each in fronts]
        return sum((true - predicted).mean() for true, predicted in zip(*scores)).item()

    made = predicted_latents(stage.scheduler, latents, prediction, batch["timesteps"]).detach()
    before = gap(made)
    stage.adversary.judge(batch, latents, prediction)["discriminator"].backward()
    with torch.no_grad():
        for weight in discriminator.parameters():
            weight -= 0.01 * weight.grad
    parted = gap(made)
    assert parted > before
    slope = torch.autograd.grad(stage.adversary.judge(batch, latents, prediction)["adversarial"], prediction)[0]
    nearer = predicted_latents(stage.scheduler, latents, prediction - 10 * slope, batch["timesteps"]).detach()
    assert gap(nearer) < parted


def test_what_counts_more_and_what_had_more_noise_is_judged_more():
    """Each item's share of the term is that of its noise, times what its places count."""
    stage, batch = control_stage(JUDGED), judged_batch()
    latents, prediction = _prediction(stage, batch)
    batch["weights"] = torch.ones(4, 1, 8, 8)  # what is there in the true front does not count
    batch["place_weights"] = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)) + 0.5
    batch["place_weights"][:, :, 2:4, 5] = 0
    predicted = predicted_latents(stage.scheduler, latents, prediction, batch["timesteps"])
    fronts = [batch["fronts"].clone(), stage.adversary.decode(predicted)]
    for each in fronts:
        each[:, :, 16:32, 40:48] = 0
    true, made = (stage.trained["discriminator"](each, batch["back_control"]) for each in fronts)
    noise = 1 - stage.scheduler.alphas_cumprod[batch["timesteps"]]
    weights = noise[:, None, None, None] * batch["place_weights"]
    terms = stage.adversary.judge(batch, latents, prediction)
    torch.testing.assert_close(terms["adversarial"], relativistic_loss(true, made, weights))
    torch.testing.assert_close(terms["discriminator"], relativistic_loss(made, true, weights))


def test_it_pulls_at_most_as_hard_as_the_squared_error_where_the_prediction_comes_out():
    stage, batch = control_stage(JUDGED), judged_batch()
    unet, discriminator = stage.trained["unet"], stage.trained["discriminator"]
    with torch.no_grad():
        for head in discriminator.heads:
            head.weight *= 100  # so that it would pull harder
    terms = stage(batch)
    latents, prediction = _prediction(stage, batch)
    adversarial = stage.adversary.judge(batch, latents, prediction)["adversarial"]
    (alone,) = torch.autograd.grad(adversarial, unet.conv_out.weight)
    below = stage.trained["controlnet"].conv_in.weight
    (of_mse,) = torch.autograd.grad(terms["mse"], unet.conv_out.weight, retain_graph=True)
    scaled, further = torch.autograd.grad(terms["loss"] - terms["mse"], (unet.conv_out.weight, below))
    assert terms["adversarial_weight"] < 0.4
    torch.testing.assert_close(terms["adversarial_weight"], of_mse.norm() / alone.norm(), rtol=1e-4, atol=0)
    torch.testing.assert_close(scaled, of_mse.norm() / alone.norm() * alone, rtol=1e-3, atol=1e-8)
    assert further.any()
    assert stage(batch | {"adversarial_weight": torch.tensor(0.01)})["adversarial_weight"] == 0.01
    stage.adversary.pull = 0.5
    assert stage(batch)["adversarial_weight"].item() == pytest.approx(terms["adversarial_weight"].item() / 2)


def test_a_verdict_without_a_slope_has_its_weight_and_makes_nothing_nan():
    stage, batch = control_stage(JUDGED), judged_batch()
    with torch.no_grad():
        for head in stage.trained["discriminator"].heads:
            head.weight.zero_()
    terms = stage(batch)
    assert terms["adversarial_weight"] == 0.5 and terms["adversarial"].item() == pytest.approx(np.log(2))
    terms["loss"].backward()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients(stage))


def test_a_batch_in_which_nothing_counts_teaches_nothing():
    stage, batch = control_stage(JUDGED), judged_batch()
    batch["weights"] = batch["place_weights"] = torch.zeros(4, 1, 8, 8)
    terms = stage(batch)
    assert terms["mse"] == terms["adversarial"] == terms["discriminator"] == 0 and terms["loss"].isfinite()


def test_small_slopes_come_through_an_autoencoder_in_half_precision():
    """As where a frozen one is held in float16: its smallest number is far above them."""
    slopes = []
    for dtype in (torch.float32, torch.float16):
        stage, batch = control_stage(JUDGED), judged_batch()
        with torch.no_grad():
            for head in stage.trained["discriminator"].heads:
                head.weight *= 1e-3
        stage.frozen["vae"].to(dtype)
        latents, prediction = _prediction(stage, batch)
        prediction = prediction.detach().requires_grad_()
        adversarial = stage.adversary.judge(batch, latents, prediction)["adversarial"]
        inputs = torch.ones(4, stage.trained["unet"].conv_out.in_channels, 8, 8)
        term = stage.adversary.bound(prediction.square().mean(), adversarial, prediction, inputs, torch.tensor(1.0))
        slopes.append(torch.autograd.grad(term["adversarial"], prediction)[0])
    assert slopes[0].abs().median() < torch.finfo(torch.float16).smallest_normal
    assert (slopes[1] - slopes[0]).norm() < 0.1 * slopes[0].norm()


def test_the_bound_is_nearly_the_same_under_autocast():
    whole = control_stage(JUDGED)(judged_batch() | {"adversarial_weight": torch.tensor(1e3)})
    with torch.autocast("cpu", torch.bfloat16):
        half = control_stage(JUDGED)(judged_batch() | {"adversarial_weight": torch.tensor(1e3)})
    assert half["adversarial_weight"].item() == pytest.approx(whole["adversarial_weight"].item(), rel=0.1)


def test_the_bound_is_that_of_the_formula():
    weight, mse, adversarial = torch.tensor(0.5), torch.tensor(0.3), torch.tensor(4.0)
    assert bounded_adversarial_weight(weight, 2.0, mse, adversarial).item() == pytest.approx(2 * 0.3 / 4)
    assert bounded_adversarial_weight(weight, 20.0, mse, adversarial).item() == 0.5
    assert bounded_adversarial_weight(weight, 2.0, mse, torch.zeros(())).item() == 0.5


def test_the_discriminator_may_have_a_rate_of_its_own(tmp_path):
    stage = control_stage(JUDGED)
    settings = tiny_config(tmp_path, learning_rate=1e-3, unet_learning_rate=1e-5, discriminator_learning_rate=4e-4)
    groups = parameter_groups(stage, settings)
    assert list(groups) == ["learning_rate", "unet_learning_rate", "discriminator_learning_rate"]
    assert groups["discriminator_learning_rate"]["lr"] == 4e-4
    models = [stage.trained[name] for name in ("controlnet", "unet", "discriminator")]
    for group, model in zip(groups.values(), models, strict=True):
        assert set(group["params"]) == set(model.parameters())
    alone = parameter_groups(stage, tiny_config(tmp_path, discriminator_learning_rate=4e-4))
    assert list(alone) == ["learning_rate", "discriminator_learning_rate"]


def test_a_masked_face_is_not_looked_at():
    """Whatever the true front has in its place, nobody learns anything of it."""
    stage, batch = control_stage(JUDGED), judged_batch()
    batch["place_weights"] = torch.ones(4, 1, 8, 8)
    batch["place_weights"][:, :, 2:4, 5] = 0
    other = batch | {"fronts": batch["fronts"].clone()}
    other["fronts"][:, :, 16:32, 40:48] = 1
    latents, prediction = _prediction(stage, batch)
    before, after = (stage.adversary.judge(each, latents, prediction) for each in (batch, other))
    assert before == after
    slope = torch.autograd.grad(before["adversarial"], prediction)[0]
    assert slope.any()
    other["fronts"][:, :, 16:32, 48:56] = 1
    assert stage.adversary.judge(other, latents, prediction) != before


def test_predictions_are_seen_as_the_autoencoder_decodes_them():
    pipeline = tiny_pipeline()
    pipeline.vae.register_to_config(scaling_factor=0.5)
    stage, batch = control_stage(JUDGED, pipeline=pipeline), control_batch()
    with torch.no_grad():
        expected = pipeline.vae.decode(batch["latents"] / 0.5).sample
        torch.testing.assert_close(stage.adversary.decode(batch["latents"]), expected)


def test_scores_are_those_of_patches_and_depend_on_the_back():
    discriminator = FrontDiscriminator(3, width=8)
    fronts, controls = torch.randn(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    scores = discriminator(fronts, controls)
    assert [tuple(scale.shape) for scale in scores] == [(2, 1, 32, 32), (2, 1, 16, 16), (2, 1, 8, 8)]
    for one, other in zip(scores, discriminator(fronts, controls.roll(1, 0))):
        assert not torch.allclose(one, other)
    for one, same in zip(scores, discriminator.as_it_is(fronts, controls)):
        assert torch.equal(one, same)


def test_the_weight_warms_up():
    objective = Objective(adversarial_weight=0.5, adversarial_warmup_steps=4)
    assert [objective.adversarial_weight_at(step) for step in (0, 1, 4, 9)] == [0, 0.125, 0.5, 0.5]
    assert Objective(adversarial_weight=0.5).adversarial_weight_at(0) == 0.5
    late = replace(objective, adversarial_head_start_steps=3)
    assert [late.adversarial_weight_at(step) for step in (0, 3, 4, 7, 9)] == [0, 0, 0.125, 0.5, 0.5]
    sudden = Objective(adversarial_weight=0.5, adversarial_head_start_steps=3)
    assert [sudden.adversarial_weight_at(step) for step in (2, 3)] == [0, 0.5]


def test_the_probe_counts_no_third_term():
    """How hard the comparison pulls does not depend on what the discriminator thinks."""
    comparing = Objective(contrastive_weight=0.5, features="mid", pooled=True, before_zero_convolutions=True)
    plain = probe_stage(control_stage(comparing), control_batch())
    more = replace(comparing, adversarial_weight=0.5, coarse_weight=2.0)
    judged = probe_stage(control_stage(more), judged_batch() | {"coarse_weight": torch.tensor(2.0)})
    assert judged["grad_norm_contrast"].item() == pytest.approx(plain["grad_norm_contrast"].item(), rel=1e-4)


def rolled_out_batch() -> dict:
    first_noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return judged_batch() | {"first_noise": first_noise, "coarse_weight": torch.tensor(2.0)}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_some_items_begin_where_sampling_would_bring_them(kind):
    """What a sampler's first step makes of noise alone, noised once more, stands in for the noised true front."""
    pipeline, batch = tiny_pipeline(), rolled_out_batch()
    pipeline.scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    pipeline.scheduler.set_timesteps(1000)
    stage = control_stage(ROLLED_OUT, pipeline=pipeline)
    with torch.no_grad():  # not at zero, so that the back counts
        for block in stage.trained["controlnet"].controlnet_down_blocks:
            block.weight.normal_(generator=torch.Generator().manual_seed(4))
    last, backs, prompts = torch.tensor([999, 999]), batch["back_control"][:2], batch["prompts"][:2]
    with torch.no_grad():
        downs, mid = stage.trained["controlnet"](batch["first_noise"], last, prompts, backs, return_dict=False)
        residuals = {"down_block_additional_residuals": downs, "mid_block_additional_residual": mid}
        output = stage.trained["unet"](batch["first_noise"], last, prompts, **residuals).sample
    made = pipeline.scheduler.step(output, 999, batch["first_noise"]).pred_original_sample
    begun = {**batch, "latents": torch.cat([made, batch["latents"][2:]])}
    seen = stage._noised_fronts(batch)
    torch.testing.assert_close(seen, noised(stage, begun), rtol=1e-3, atol=1e-3)
    assert not seen.requires_grad
    assert not torch.allclose(seen[:2], noised(stage, batch)[:2], atol=0.1)


def test_of_such_an_item_only_the_coarse_colours_are_asked_for_beside_the_adversary():
    stage, batch = control_stage(ROLLED_OUT), rolled_out_batch()
    for seed, name in enumerate(("weights", "place_weights")):
        batch[name] = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) + 0.5
    terms, seen = stage(batch), stage._noised_fronts(batch)
    prediction = stage._predict(seen, batch, stage._control(batch, seen)[0])
    target = denoising_target(stage.scheduler, batch)
    torch.testing.assert_close(terms["mse"], noise_mse(prediction[2:], target[2:], batch["weights"][2:]))
    predicted = predicted_latents(stage.scheduler, seen, prediction, batch["timesteps"])
    expected = coarse_error(predicted, batch["latents"], batch["place_weights"])
    torch.testing.assert_close(terms["coarse"], expected)
    torch.testing.assert_close(terms["loss"], terms["mse"] + what_the_adversary_adds(terms) + 2 * expected)
    torch.testing.assert_close(terms["discriminator"], stage.adversary.judge(batch, seen, prediction)["discriminator"])


def test_where_noise_is_predicted_coarse_colours_count_by_the_share_of_signal():
    """And no adversary is needed for them."""
    pipeline, batch = tiny_pipeline(), control_batch() | {"coarse_weight": torch.tensor(2.0)}
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    stage = control_stage(Objective(coarse_weight=2.0), pipeline=pipeline)
    terms, seen = stage(batch), noised(stage, batch)
    prediction = stage._predict(seen, batch, stage._control(batch, seen)[0])
    predicted = predicted_latents(stage.scheduler, seen, prediction, batch["timesteps"])
    shares = stage.scheduler.alphas_cumprod[batch["timesteps"]]
    torch.testing.assert_close(terms["coarse"], coarse_error(predicted, batch["latents"], None, shares))
    torch.testing.assert_close(terms["loss"], terms["mse"] + 2 * terms["coarse"])


@pytest.mark.parametrize("before", [False, True])
def test_items_that_begin_elsewhere_are_compared_as_they_are_seen(before):
    objective = replace(ROLLED_OUT, contrastive_weight=0.5, features="mid", before_zero_convolutions=before)
    stage, batch = control_stage(objective), rolled_out_batch()
    with torch.no_grad():
        stage.trained["controlnet"].controlnet_mid_block.weight.normal_(generator=torch.Generator().manual_seed(4))
    (whole,) = stage.compare([batch])
    torch.testing.assert_close(whole.terms["contrastive"], stage(batch)["contrastive"])
    assert stage.probe(batch)["feature_rms_back"] > 0
    made = stage._first_fronts(batch, 2)
    stage.objective = ROLLED_OUT
    torch.testing.assert_close(stage._first_fronts(batch, 2), made)


def test_a_pass_from_which_nothing_is_learned_leaves_all_weights_learning():
    """Under autocast too, which keeps the weights that it has rounded."""
    stage, whole = control_stage(ROLLED_OUT), control_stage(ROLLED_OUT)
    with torch.autocast("cpu", torch.bfloat16):
        terms = stage(rolled_out_batch())
    terms["loss"].backward()
    whole(rolled_out_batch())["loss"].backward()
    for (name, weight), expected in zip(stage.named_parameters(), whole.parameters(), strict=True):
        if expected.grad is not None and expected.grad.any():
            assert weight.grad is not None and weight.grad.any(), name


def test_how_steep_the_scores_are_is_seen_at_true_and_at_predicted_fronts():
    stage, batch = control_stage(JUDGED), judged_batch()
    seen, prediction = _prediction(stage, batch)
    made = stage.adversary.decode(predicted_latents(stage.scheduler, seen, prediction, batch["timesteps"]))
    discriminator, first = stage.trained["discriminator"], batch["back_control"][:1]
    scores, disturbed = [], []
    for front, disturbance in zip((batch["fronts"][:1], made[:1]), batch["disturbance"].split(1), strict=True):
        scores.append(discriminator(front, first))
        disturbed.append(discriminator(front + disturbance, first))
    expected = smoothness_penalty(*([torch.cat(both) for both in zip(*each)] for each in (scores, disturbed)))
    torch.testing.assert_close(stage.adversary.judge(batch, seen, prediction)["smoothness"], expected)


BESIDES = {"adversarial_weight": 0.5, "adversarial_warmup_steps": 2, "coarse_weight": 1.0, "rollout_share": 0.5}


def test_a_share_that_is_no_pair_is_refused(tmp_path):
    """In the stages that have one; the others do not look at it."""
    objective = {"preset": "mse"} | BESIDES | {"rollout_share": 0.4}
    message = "rollout_share of joint is 0.4 and its batch_size 2, which makes less than one pair: give more of either"
    for size in (2, 3):
        stages = {"vae": {}, "prior": {}, "joint": {"batch_size": size}}
        with pytest.raises(ConfigError, match=message) if size == 2 else nullcontext():
            TrainingRun(tiny_config(tmp_path, objective=objective, stages=stages))


def test_a_run_resumes_its_discriminator_and_leaves_it_out_of_its_pipeline(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "base")
    config = tiny_config(
        tmp_path / "run",
        base_model=str(tmp_path / "base"),
        model=ModelSize(),
        objective={"preset": "mse"} | BESIDES,
        discriminator_learning_rate=1e-3,
        stages={"joint": {}},
    )
    finished = TrainingRun(config).run()
    assert "discriminator" not in BackToFrontPipeline.load_config(finished)
    folder, whole = finished.parent, tmp_path / "whole"
    shutil.copytree(folder, whole)
    shutil.rmtree(folder / "pipeline")
    shutil.rmtree(checkpoint_path(folder, 4))
    TrainingRun(config).run()
    assert_equal_files(folder, whole)
    assert log(folder) == log(whole)
    logged = {"adversarial", "adversarial_weight", "discriminator", "grad_norm_discriminator", "coarse"}
    assert logged | {"discriminator_learning_rate"} <= set(log(folder)[0])


def test_the_weight_follows_the_steps_and_fronts_are_disturbed_a_little(tmp_path):
    (tmp_path / "cache").mkdir()
    objective = {"preset": "mse", "adversarial_weight": 0.5, "adversarial_warmup_steps": 2}
    run = TrainingRun(tiny_config(tmp_path, objective=objective, gradient_accumulation_steps=2))
    stage, make_batch = run.build_stage("joint", tiny_pipeline(), pair_arrays())
    batches = [make_batch(number, StepSampler(0, "joint")) for number in range(6)]
    assert [batch["adversarial_weight"].item() for batch in batches] == [0, 0, 0.25, 0.25, 0.5, 0.5]
    disturbances = torch.stack([batch["disturbance"] for batch in batches])
    assert disturbances.shape == (6, 2, 3, 64, 64) and disturbances.std().item() == pytest.approx(0.05, rel=0.05)
    assert not torch.equal(disturbances[0], disturbances[1])
    fronts = torch.from_numpy(pair_arrays().fronts[batches[0]["items"]]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(batches[0]["fronts"], fronts)
    run = TrainingRun(tiny_config(tmp_path, objective=objective, gradient_accumulation_steps=2, flip=1.0))
    _, make_flipped = run.build_stage("joint", tiny_pipeline(), pair_arrays())
    torch.testing.assert_close(make_flipped(0, StepSampler(0, "joint"))["fronts"], fronts.flip(-1))
    assert not any(weight.requires_grad for weight in stage.component("vae").parameters())


def test_a_tiny_autoencoder_is_looked_through_and_not_compiled():
    pipeline = tiny_pipeline()
    pipeline.register_modules(vae=tiny_autoencoder())
    stage = control_stage(JUDGED, pipeline=pipeline)
    compile_blocks(stage, "aot_eager")
    assert stage(judged_batch())["adversarial"] > 0


def test_a_signal_does_not_fade_on_its_way_through_the_discriminator():
    torch.manual_seed(0)
    scores = FrontDiscriminator(3)(torch.randn(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert all(scale.std() > 0.2 for scale in scores)
