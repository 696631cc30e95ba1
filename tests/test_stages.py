"""What each stage computes from a batch, with real models at tiny size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import pair_arrays, tiny_config, tiny_pipeline

from backshan_diffusers.conditioning import CONDITIONINGS, blank_control
from backshan_diffusers.models import BackshanControlNetModel
from backshan_diffusers.objective import (
    PRESETS,
    Objective,
    contrastive_cross_entropy,
    contrastive_terms,
    cosine_matrix,
    min_snr_weights,
)
from backshan_diffusers.training.batches import StepSampler
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.schedule import denoising_target
from backshan_diffusers.training.scratch import seeded
from backshan_diffusers.training.stages import AutoencoderStage, ControlStage, PriorStage

MID = Objective(contrastive_weight=0.5, features="mid", pooled=True, before_zero_convolutions=True)


def control_batch(pairs: int = 4, seed: int = 0) -> dict:
    """A batch with everything that any objective asks for; two pairs make a group, and the last back is blank."""
    generator = torch.Generator().manual_seed(seed)
    latents = {
        name: torch.randn(pairs, 4, 8, 8, generator=generator)
        for name in ("latents", "back_latents", "noise", "front_noise")
    }
    controls = {name: torch.rand(pairs, 3, 64, 64, generator=generator) for name in ("back_control", "front_control")}
    return {
        **latents,
        **controls,
        "blank_control": torch.ones(1, 3, 64, 64),
        "timesteps": torch.randint(100, 900, (pairs,), generator=generator),
        "prompts": torch.randn(pairs, 7, 16, generator=generator),
        "groups": torch.arange(pairs) // 2,
        "shown": torch.tensor([True] * (pairs - 1) + [False]),
        "items": torch.arange(pairs),
        "contrastive_weight": torch.tensor(0.5),
    }


def control_stage(objective: Objective, train_unet: str | None = "all", pipeline=None) -> ControlStage:
    pipeline = pipeline or tiny_pipeline()
    with seeded(0):
        models = pipeline.controlnet, pipeline.unet, pipeline.scheduler
        return ControlStage(*models, objective, train_unet, vae=pipeline.vae)


def noised(stage, batch, latents="latents", noise="noise"):
    return stage.scheduler.add_noise(batch[latents], batch[noise], batch["timesteps"])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_of_the_unet_equals_the_formula(kind):
    scheduler = tiny_pipeline().scheduler
    scheduler.register_to_config(prediction_type=kind)
    batch = control_batch()
    alpha_bar = scheduler.alphas_cumprod[batch["timesteps"]].view(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    expected = batch["noise"] if kind == "epsilon" else alpha * batch["noise"] - sigma * batch["latents"]
    torch.testing.assert_close(denoising_target(scheduler, batch), expected)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("features", ["all", "mid", "last_down"])
@pytest.mark.parametrize("pooled", [False, True])
def test_one_pass_for_the_pair_equals_two(before, features, pooled):
    objective = Objective(
        contrastive_weight=0.5, features=features, pooled=pooled, before_zero_convolutions=before, temperature=0.3
    )
    stage, batch = control_stage(objective), control_batch()
    terms = stage(batch)
    z_t = noised(stage, batch)
    overhear = {"hidden_states_of": 4} if before else {}
    back, front = (
        stage.component("controlnet")(z_t, batch["timesteps"], batch["prompts"], batch[name], **overhear)
        for name in ("back_control", "front_control")
    )
    prediction = stage.component("unet")(
        z_t,
        batch["timesteps"],
        batch["prompts"],
        down_block_additional_residuals=back.down_block_res_samples,
        mid_block_additional_residual=back.mid_block_res_sample,
    ).sample
    mse = ((prediction - denoising_target(stage.scheduler, batch)) ** 2).mean()
    vectors = [BackshanControlNetModel.control_features(output, features, pooled, before) for output in (back, front)]
    contrastive = contrastive_cross_entropy(cosine_matrix(*vectors), 0.3, batch["groups"], batch["shown"])
    torch.testing.assert_close(terms["mse"], mse, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["contrastive"], contrastive, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss"], mse + 0.5 * contrastive, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(mse + 0.5 * contrastive, list(stage.parameters()), allow_unused=True)
    terms["loss"].backward()
    for parameter, gradient in zip(stage.parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "branches"),
    [
        ("shared", [("latents", "noise", "back_control"), ("latents", "noise", "front_control")]),
        ("independent", [("latents", "noise", "back_control"), ("latents", "front_noise", "front_control")]),
        ("own", [("back_latents", "noise", "back_control"), ("latents", "front_noise", "front_control")]),
        ("pure", [("latents", "noise", "back_control"), (None, "front_noise", "front_control")]),
    ],
)
def test_each_view_is_compared_on_the_latents_that_were_chosen(choice, branches):
    objective = replace(MID, front_latents=choice)
    stage, batch = control_stage(objective), control_batch()
    vectors = []
    for latents, noise, control in branches:
        z = noised(stage, batch, latents, noise) if latents else batch[noise]
        output = stage.component("controlnet")(
            z, batch["timesteps"], batch["prompts"], batch[control], hidden_states_of=0
        )
        vectors.append(output.mid_block_hidden_state.mean(dim=(2, 3)))
    expected = contrastive_terms(objective, *vectors, batch["groups"], batch["shown"])
    terms = stage(batch)
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-4, atol=1e-5)
    mse_alone = control_stage(PRESETS["mse"])(batch)["mse"]
    torch.testing.assert_close(terms["mse"], mse_alone, rtol=1e-4, atol=1e-5)


def test_a_front_that_is_looked_at_changes_the_gradient_and_not_the_loss():
    batch, results = control_batch(), {}
    for learns in (True, False):
        stage = control_stage(replace(MID, front_gradient=learns))
        loss = stage(batch)["loss"]
        loss.backward()
        results[learns] = loss.item(), stage.component("controlnet").conv_in.weight.grad.clone()
    assert results[True][0] == pytest.approx(results[False][0], rel=1e-5)
    assert not torch.allclose(results[True][1], results[False][1], rtol=1e-2)


def test_negatives_need_no_front_picture():
    stage, batch = control_stage(replace(MID, contrast="negatives")), control_batch()
    before = stage(batch)
    batch["front_control"] = torch.full_like(batch["front_control"], float("nan"))
    after = stage(batch)
    assert torch.equal(before["loss"], after["loss"]) and "pair_accuracy" not in after
    assert before["contrastive"] != 0


def test_mse_never_looks_at_the_front_picture():
    stage, batch = control_stage(PRESETS["mse"]), control_batch()
    before = stage(batch)["loss"]
    batch["front_control"] = torch.full_like(batch["front_control"], float("nan"))
    assert torch.equal(before, stage(batch)["loss"])
    batch["back_control"] = 1 - batch["back_control"]
    assert not torch.equal(before, stage(batch)["loss"])


def test_the_weight_of_the_step_reaches_the_loss():
    stage, batch = control_stage(MID), control_batch()
    terms = stage(batch | {"contrastive_weight": torch.tensor(0.0)})
    assert terms["loss"].item() == terms["mse"].item()
    terms = stage(batch | {"contrastive_weight": torch.tensor(2.0)})
    assert terms["loss"].item() == pytest.approx((terms["mse"] + 2 * terms["contrastive"]).item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_every_item_by_its_timestep(kind):
    pipeline, batch = tiny_pipeline(), control_batch()
    pipeline.scheduler.register_to_config(prediction_type=kind)
    weighted = control_stage(Objective(min_snr_gamma=5.0), pipeline=pipeline)(batch)["mse"]
    stage = control_stage(PRESETS["mse"], pipeline=pipeline)
    each = [stage({name: value[i : i + 1] for name, value in batch.items() if value.ndim})["mse"] for i in range(4)]
    alpha_bars = pipeline.scheduler.alphas_cumprod[batch["timesteps"]]
    expected = (torch.stack(each) * min_snr_weights(alpha_bars, 5.0, kind)).mean()
    torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("train_unet", "learns"), [(None, {"controlnet"}), ("all", {"controlnet", "unet"})])
def test_only_the_models_of_a_stage_learn(train_unet, learns):
    pipeline = tiny_pipeline()
    models = {"controlnet": pipeline.controlnet, "unet": pipeline.unet}
    for name, model in models.items():
        model.train(name not in learns)
    stage = control_stage(Objective(contrastive_weight=0.5), train_unet, pipeline)
    assert {name for name, model in models.items() if model.training} == learns
    stage(control_batch())["loss"].backward()
    assert {n for n, m in models.items() if any(p.grad is not None for p in m.parameters())} == learns
    assert {id(p) for p in stage.parameters()} == {id(p) for n in learns for p in models[n].parameters()}
    assert [name for name, _ in stage.named_trained()] == sorted(learns)


def test_the_head_learns_and_is_no_part_of_the_controlnet():
    objective = replace(MID, projection_width=6, learned_temperature=True, temperature=0.2)
    stage = control_stage(objective)
    terms = stage(control_batch())
    terms["loss"].backward()
    assert terms["temperature"].item() == pytest.approx(0.2)
    assert stage.head.projection.weight.shape == (6, 16) and stage.head.projection.weight.grad.norm() > 0
    assert stage.head.log_temperature.grad.abs() > 0
    assert [name for name, _ in stage.named_trained()] == ["controlnet", "unet", "head"]
    names = [name for name, _ in stage.component("controlnet").named_parameters()]
    assert not any("projection" in name or "temperature" in name for name in names)


@pytest.mark.parametrize("features", ["all", "mid", "last_down"])
def test_the_head_fits_the_features(features):
    stage = control_stage(replace(MID, features=features, projection_width=3))
    assert torch.isfinite(stage(control_batch())["loss"])


def test_the_slope_of_a_learned_temperature_is_that_of_the_formula():
    objective = replace(MID, learned_temperature=True, temperature=0.2)
    stage, batch = control_stage(objective), control_batch()
    stage(batch)["loss"].backward()
    losses = {}
    for step in (-1e-3, 1e-3):
        with torch.no_grad():
            stage.head.log_temperature.add_(step)
            losses[step] = stage(batch)["loss"].item()
            stage.head.log_temperature.sub_(step)
    assert stage.head.log_temperature.grad.item() == pytest.approx((losses[1e-3] - losses[-1e-3]) / 2e-3, rel=0.02)


def test_the_probe_shows_whether_backs_are_looked_at():
    """With a ControlNet that hears nothing of its picture, blank and shuffled backs do as well as the real ones."""
    stage, batch = control_stage(replace(MID, before_zero_convolutions=False)), control_batch(8)
    deaf = control_stage(PRESETS["paper"])
    torch.nn.init.zeros_(deaf.component("controlnet").controlnet_cond_embedding.conv_out.weight)
    found = deaf.probe(batch)
    assert found["pair_accuracy_real_back"] == found["pair_accuracy_blank_back"] == 1
    assert found["pair_accuracy_shuffled_back"] == 1
    batch["front_control"] = batch["back_control"]
    batch["noise"][:] = 0
    batch["latents"][:] = 0
    batch["timesteps"][:] = 500
    batch["prompts"][:] = 0
    found = stage.probe(batch)
    assert found["pair_accuracy_real_back"] == 1
    assert found["pair_accuracy_shuffled_back"] == 0
    assert found["pair_accuracy_blank_back"] <= 1 / 6 + 1e-6
    assert found["feature_rms_back"] > 0 and found["feature_rms_front"] == found["feature_rms_back"]


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_probes_blank_back_is_the_one_of_training(conditioning, tmp_path):
    """What is shown in place of a back: a white picture, which has no edges."""
    (tmp_path / "cache").mkdir()
    run = TrainingRun(tiny_config(tmp_path, condition_dropout=0.5, batch_size=8))
    pipeline, seen = tiny_pipeline(conditioning), []
    stage, make_batch = run._control_stage(run.config, pipeline, pair_arrays())
    batch = make_batch(0, StepSampler(0, "controlnet"))
    pipeline.controlnet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[3]))
    stage.probe(batch)
    real, blank, _ = (controls[:8] for controls in seen)
    torch.testing.assert_close(real, batch["back_control"])
    white = blank_control(conditioning, 64, pipeline.vae)
    assert [torch.allclose(each, white, atol=1e-5) for each in real] == (~batch["shown"]).tolist()
    assert len(set(batch["shown"].tolist())) == 2
    torch.testing.assert_close(blank, white.expand_as(blank))


def test_the_probe_leaves_out_backs_that_stand_in_for_their_own_outfit_or_for_a_blank_one():
    """Of six, whose last is blank: the first follows a blank one, the second and the fourth their own outfit."""
    stage, batch = control_stage(PRESETS["paper"]), control_batch(6)
    for name in ("latents", "noise", "timesteps", "prompts"):
        batch[name] = batch[name][:1].expand_as(batch[name])  # nothing tells the pairs apart but their controls
    for one, other, accuracy in ((0, 2, 0.5), (1, 5, 1.0), (0, 3, 1.0), (2, 4, 0.0)):
        batch["front_control"] = batch["back_control"].clone()
        batch["front_control"][[one, other]] = batch["back_control"][[other, one]]
        assert stage.probe(batch)["pair_accuracy_real_back"] == pytest.approx(accuracy), (one, other)


def test_the_probe_tells_no_accuracy_of_what_is_not_compared():
    stage, alone = control_stage(PRESETS["paper"]), control_batch(1)
    blanked, of_one_outfit = control_batch(6), control_batch(6)
    blanked["shown"][:] = False
    of_one_outfit["groups"][:] = 7
    for batch in (alone, blanked, of_one_outfit):
        assert set(stage.probe(batch)) == {"feature_rms_back", "feature_rms_front"}


@pytest.mark.parametrize(("same_group_negatives", "accuracy"), [(False, 1.0), (True, 0.5)])
def test_the_probe_counts_rivals_of_the_same_outfit_as_the_loss_does(same_group_negatives, accuracy):
    """Of the third and the fifth, which are judged, the third is more like the other front of its own outfit."""
    stage = control_stage(replace(PRESETS["paper"], same_group_negatives=same_group_negatives))
    batch = control_batch(6)
    for name in ("latents", "noise", "timesteps", "prompts"):
        batch[name] = batch[name][:1].expand_as(batch[name])
    batch["front_control"] = batch["back_control"].clone()
    batch["front_control"][3] = batch["back_control"][2]
    batch["front_control"][2] += 0.01
    assert stage.probe(batch)["pair_accuracy_real_back"] == pytest.approx(accuracy)


def test_the_probe_names_the_view_and_gives_backs_to_the_next_item():
    stage, batch = control_stage(PRESETS["paper"]), control_batch(6)
    for name in ("latents", "noise", "timesteps", "prompts"):
        batch[name] = batch[name][:1].expand_as(batch[name])
    batch["front_control"] = batch["back_control"].roll(1, 0)
    terms = stage.probe(batch)
    assert (terms["pair_accuracy_real_back"], terms["pair_accuracy_shuffled_back"]) == (0, 1)
    batch = control_batch(6)
    batch["front_control"] = torch.zeros_like(batch["back_control"])
    terms = stage.probe(batch)
    for view in ("back", "front"):
        with torch.no_grad():
            output = stage.component("controlnet")(
                noised(stage, batch), batch["timesteps"], batch["prompts"], batch[f"{view}_control"]
            )
        values = torch.cat([each.flatten() for each in (*output.down_block_res_samples, output.mid_block_res_sample)])
        assert terms[f"feature_rms_{view}"] == pytest.approx(float(values.double().square().mean()) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("front_gradient", [True, False])
def test_features_of_fronts_may_be_compared_flipped(front_gradient):
    """A front whose features are those of the back flipped is as alike as can be, and so is its gradient's path."""
    plain = Objective(contrastive_weight=0.5, front_gradient=front_gradient, before_zero_convolutions=True)
    flipped = replace(plain, mirror_features=True)
    batch, found = control_batch(4), {}
    for name, objective in (("plain", plain), ("flipped", flipped)):
        stage = control_stage(objective)
        controlnet, z_t = stage.component("controlnet"), noised(stage, batch)
        outputs = [
            controlnet(z_t, batch["timesteps"], batch["prompts"], batch[control], hidden_states_of=4)
            for control in ("back_control", "front_control")
        ]
        back, front = (
            torch.cat([each.flip(-1).flatten(1) if turned else each.flatten(1) for each in hidden], dim=1)
            for turned, hidden in zip(
                (False, name == "flipped"),
                [(*output.down_block_hidden_states, output.mid_block_hidden_state) for output in outputs],
                strict=True,
            )
        )
        expected = contrastive_terms(objective, back, front, batch["groups"], batch["shown"])["contrastive"]
        found[name] = stage(batch)["contrastive"]
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["plain"], found["flipped"], atol=1e-4)


def test_there_is_nothing_to_probe_where_fronts_are_not_compared():
    assert control_stage(PRESETS["mse"]).probe(control_batch()) == {}
    assert control_stage(PRESETS["dispersive"]).probe(control_batch()) == {}


def test_prior_stage_is_the_mse_of_the_unet_alone():
    pipeline, batch = tiny_pipeline(), control_batch()
    stage = PriorStage(pipeline.unet, pipeline.scheduler)
    prediction = pipeline.unet(noised(stage, batch), batch["timesteps"], batch["prompts"]).sample
    error = prediction - denoising_target(pipeline.scheduler, batch)
    assert stage(batch)["loss"].item() == pytest.approx((error**2).mean().item(), rel=1e-5)


def test_autoencoder_loss_equals_the_formula():
    vae = tiny_pipeline().vae
    pixels, noise = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 4, 4)
    stage = AutoencoderStage(vae, latents_stay=False, kl_weight=0.1, edge_weight=2.0, colour_weight=3.0)
    weights = torch.randint(1, 5, (2, 1, 32, 32)).float()
    terms = stage({"pixels": pixels, "noise": noise, "weights": weights})
    posterior = vae.encode(pixels).latent_dist
    rebuilt = vae.decode(posterior.mean + posterior.std * noise).sample
    red, green, blue = (rebuilt - pixels).detach().numpy().swapaxes(0, 1)
    opponent = (red + green + blue) / 3**0.5, 3 * (red - green) / 2**0.5, 3 * (red + green - 2 * blue) / 6**0.5
    error = np.stack(opponent, axis=1)
    counts = np.broadcast_to(weights.numpy(), error.shape)
    l1 = np.average(np.abs(error), weights=counts)
    right, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    edges = np.average(np.abs(right), weights=counts[..., 1:]) + np.average(np.abs(down), weights=counts[..., 1:, :])
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
    )
    assert terms["loss"].item() == pytest.approx(l1 + 2 * edges + 0.1 * kl.mean().item(), rel=1e-4)
    assert terms["kl"].item() == pytest.approx(kl.mean().item(), rel=1e-4)
    assert terms["l1"].item() == pytest.approx((rebuilt - pixels).abs().mean().item(), rel=1e-4)


def test_latents_stay_where_only_the_decoder_learns():
    vae = tiny_pipeline().vae
    stage = AutoencoderStage(vae, latents_stay=True, kl_weight=0.1, edge_weight=1.0, colour_weight=1.0)
    batch = {"pixels": torch.rand(2, 3, 32, 32), "noise": torch.zeros(2, 4, 4, 4), "weights": torch.ones(2, 1, 32, 32)}
    stage(batch)["loss"].backward()
    learning = {name.partition(".")[0] for name, p in vae.named_parameters() if p.grad is not None}
    assert learning == {"decoder", "post_quant_conv"}
