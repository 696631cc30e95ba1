"""`BackshanControlNetModel`: its config, where it comes from, and the habits of its parent."""

import json

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetOutput
from peft import LoraConfig
from tiny import TINY, build_controlnet, tiny_controlnet, tiny_unet, wake

from backshan_diffusers import BackshanControlNetModel
from backshan_diffusers.objective import FEATURES


def inputs(channels: int = 3, batch: int = 2, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(batch, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([10, 700, 400, 5][:batch]),
        "encoder_hidden_states": torch.randn(batch, 7, 16, generator=generator),
        "controlnet_cond": torch.rand(batch, channels, 64, 64, generator=generator),
    }


def every(output) -> list[torch.Tensor]:
    return [*output.down_block_res_samples, output.mid_block_res_sample]


def stock_controlnet(conditioning_channels: int = 3, channel_order: str = "rgb") -> ControlNetModel:
    torch.manual_seed(3)
    stock = ControlNetModel.from_unet(
        tiny_unet(),
        controlnet_conditioning_channel_order=channel_order,
        conditioning_embedding_out_channels=TINY.condition_channels,
        conditioning_channels=conditioning_channels,
    )
    wake(stock)
    return stock


@pytest.mark.parametrize(("conditioning", "channels"), [("canny", 3), ("rgb", 3), ("canny+rgb", 6), ("latents", 4)])
def test_conditioning_fixes_the_width_of_the_condition(conditioning, channels):
    model = tiny_controlnet(conditioning)
    assert model.config.conditioning_channels == channels
    assert model.controlnet_cond_embedding.conv_in.in_channels == channels


def test_a_width_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="canny\\+rgb.*6 channels.*is 3"):
        BackshanControlNetModel(conditioning="canny+rgb", conditioning_channels=3)


def test_latents_are_as_wide_as_the_unets_input():
    unet = UNet2DConditionModel.from_config(tiny_unet().config, in_channels=9)
    made = BackshanControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=TINY.condition_channels, conditioning="latents"
    )
    again = BackshanControlNetModel.from_config(made.config)
    for model in (made, again):
        assert model.config.conditioning_channels == model.controlnet_cond_embedding.conv_in.in_channels == 9
    with pytest.raises(ValueError, match="'latents' has 4 channels, but conditioning_channels is 3"):
        BackshanControlNetModel(conditioning="latents", conditioning_channels=3)


@pytest.mark.parametrize("widths", [None, ()])
def test_a_condition_embedding_without_levels_is_refused(widths):
    with pytest.raises(ValueError, match="conditioning_embedding_out_channels is .*: give the width of each"):
        BackshanControlNetModel(conditioning_embedding_out_channels=widths)


def test_an_unknown_conditioning_is_refused():
    with pytest.raises(ValueError, match="depth"):
        BackshanControlNetModel(conditioning="depth")


@pytest.mark.parametrize(
    "recorded",
    [
        *({"image_size": value} for value in (0, "x", 64.0, 60)),
        *({"mirror": value} for value in ("no", None, 1)),
        *({name: value} for name in ("canny_low_threshold", "canny_high_threshold") for value in ("x", -1, True)),
        *({"default_num_inference_steps": value} for value in (0, "x", 2.5, np.int64(2), True)),
        {"image_size": np.int64(64)},
        *({"default_guidance_scale": value} for value in (None, "x", -1, float("nan"), float("inf"))),
        *({"default_prompt": value} for value in (None, 3)),
    ],
)
def test_a_record_that_no_call_could_use_is_refused(recorded):
    (name,) = recorded
    with pytest.raises(ValueError, match=f"^{name} is .*: give a .*\\.$"):
        BackshanControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(4, 4, 4, 8), **recorded)


def test_nothing_and_any_side_that_the_embedding_can_shrink_may_be_recorded():
    recorded = {"canny_low_threshold": 0, "default_guidance_scale": 0.0, "image_size": 24}
    config = BackshanControlNetModel.from_controlnet(tiny_controlnet(), **recorded).config
    assert {name: config[name] for name in recorded} == recorded


def test_from_unet_copies_the_encoder_and_starts_at_zero():
    unet = tiny_unet()
    model = build_controlnet(unet, TINY, seed=0, conditioning="rgb")
    torch.testing.assert_close(model.conv_in.weight, unet.conv_in.weight)
    assert all(residual.abs().max() == 0 for residual in every(model(**inputs())))


def test_from_unet_can_take_the_shape_alone():
    unet = tiny_unet()
    encoders = []
    for load_weights in (True, False):
        model = BackshanControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=TINY.condition_channels, load_weights_from_unet=load_weights
        )
        encoders.append(model.down_blocks.state_dict())
    expected = unet.down_blocks.state_dict()
    copied, fresh = ([torch.equal(weights[name], expected[name]) for name in expected] for weights in encoders)
    assert all(copied) and not all(fresh)
    assert all(fresh_weight.shape == expected[name].shape for name, fresh_weight in encoders[1].items())


def test_what_is_recorded_comes_back(tmp_path):
    recorded = {
        "conditioning": "canny+rgb",
        "mirror": False,
        "canny_low_threshold": 11,
        "canny_high_threshold": 222,
        "default_prompt": "the front",
        "default_guidance_scale": 3.5,
        "default_num_inference_steps": 7,
    }
    model = tiny_controlnet(**recorded)
    model.save_pretrained(tmp_path)
    again = BackshanControlNetModel.from_pretrained(tmp_path)
    for name, value in {**recorded, "image_size": 64}.items():
        assert again.config[name] == value
    with torch.no_grad():
        for ours, theirs in zip(every(model.eval()(**inputs(6))), every(again(**inputs(6))), strict=True):
            assert torch.equal(ours, theirs)


def test_unknown_fields_are_refused_by_name():
    with pytest.raises(TypeError, match="mirrored: no such config field"):
        BackshanControlNetModel.from_unet(tiny_unet(), mirrored=True)


@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
@pytest.mark.parametrize("conditioning", ["canny", "rgb", "canny+rgb"])
def test_from_controlnet_keeps_what_the_old_channels_do(conditioning, channel_order):
    stock = stock_controlnet(channel_order=channel_order)
    model = BackshanControlNetModel.from_controlnet(stock, conditioning=conditioning, mirror=False)
    theirs = inputs()
    ours = dict(theirs)
    if conditioning == "canny+rgb":
        ours["controlnet_cond"] = torch.cat([theirs["controlnet_cond"], torch.rand(2, 3, 64, 64)], dim=1)
    with torch.no_grad():
        for old, new in zip(every(stock(**theirs)), every(model(**ours)), strict=True):
            torch.testing.assert_close(old, new)
    assert (model.config.conditioning, model.config.mirror) == (conditioning, False)


@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
def test_from_controlnet_reads_latents_as_black_until_it_has_learned(channel_order):
    """The kernels for a picture say nothing about latents."""
    stock = stock_controlnet(channel_order=channel_order)
    model = BackshanControlNetModel.from_controlnet(stock, conditioning="latents")
    assert (model.config.conditioning, model.config.conditioning_channels) == ("latents", 4)
    black = inputs() | {"controlnet_cond": torch.zeros(2, 3, 64, 64)}
    output = model(**inputs(4))
    for old, new in zip(every(stock(**black)), every(output), strict=True):
        torch.testing.assert_close(old, new)
    output.mid_block_res_sample.sum().backward()
    assert model.controlnet_cond_embedding.conv_in.weight.grad.flatten(2).abs().sum(2).min() > 0


def test_from_controlnet_keeps_one_that_reads_latents():
    for controlnet in (stock_controlnet(4), tiny_controlnet("latents")):
        model = BackshanControlNetModel.from_controlnet(controlnet, conditioning="latents")
        assert model.config.conditioning == "latents"
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), controlnet.parameters(), strict=True))


@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
@pytest.mark.parametrize("part", ["canny", "rgb"])
def test_widening_one_of_ours_keeps_each_part_where_it_stands(part, channel_order):
    narrow = tiny_controlnet(part, controlnet_conditioning_channel_order=channel_order)
    wide = BackshanControlNetModel.from_controlnet(narrow, conditioning="canny+rgb")
    theirs = inputs()
    other = torch.rand(2, 3, 64, 64)
    parts = [theirs["controlnet_cond"], other] if part == "canny" else [other, theirs["controlnet_cond"]]
    with torch.no_grad():
        old, new = narrow(**theirs), wide(**theirs | {"controlnet_cond": torch.cat(parts, dim=1)})
    for before, after in zip(every(old), every(new), strict=True):
        torch.testing.assert_close(before, after)


@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
def test_what_reads_all_parts_is_taken_over_as_it_is(channel_order):
    model = tiny_controlnet("canny+rgb", controlnet_conditioning_channel_order=channel_order)
    again = BackshanControlNetModel.from_controlnet(model).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("conditioning", ["canny", "canny+rgb"])
def test_half_precision_stays(conditioning):
    stock = stock_controlnet().half()
    model = BackshanControlNetModel.from_controlnet(stock, conditioning=conditioning)
    assert {weight.dtype for weight in model.parameters()} == {torch.float16}
    old, new = stock.state_dict(), model.state_dict()
    first = "controlnet_cond_embedding.conv_in.weight"
    assert torch.equal(new.pop(first)[:, :3], old.pop(first))
    assert all(torch.equal(new[name], old[name]) for name in old | new)


def test_the_new_channels_can_learn():
    model = BackshanControlNetModel.from_controlnet(stock_controlnet(), conditioning="canny+rgb")
    model(**inputs(6)).mid_block_res_sample.sum().backward()
    assert model.controlnet_cond_embedding.conv_in.weight.grad[:, 3:].abs().max() > 0


def test_from_controlnet_leaves_the_stock_model_alone():
    stock = stock_controlnet()
    model = BackshanControlNetModel.from_controlnet(stock)
    model.conv_in.weight.data.zero_()
    assert stock.conv_in.weight.abs().max() > 0


def test_from_controlnet_makes_the_model_where_the_stock_one_is():
    elsewhere = stock_controlnet().to("meta")  # a device beside the CPU that every machine has
    assert BackshanControlNetModel.from_controlnet(elsewhere, conditioning="canny+rgb").device.type == "meta"


def test_from_controlnet_opens_a_stock_folder_as_canny(tmp_path):
    stock = stock_controlnet()
    stock.save_pretrained(tmp_path)
    for folder in (tmp_path, str(tmp_path)):
        model = BackshanControlNetModel.from_controlnet(folder, image_size=64)
        assert (model.config.conditioning, model.config.image_size) == ("canny", 64)
        assert torch.equal(model.conv_in.weight, stock.conv_in.weight)


@pytest.mark.parametrize("build", [stock_controlnet, tiny_controlnet])
def test_load_kwargs_are_passed_on(tmp_path, build):
    build().save_pretrained(tmp_path / "inside", variant="half")
    load_kwargs = {"subfolder": "inside", "variant": "half", "dtype": torch.bfloat16}
    model = BackshanControlNetModel.from_controlnet(tmp_path, load_kwargs=load_kwargs)
    assert model.dtype == torch.bfloat16


RECORD = {"conditioning": "canny+rgb", "default_prompt": "the front", "mirror": False, "canny_low_threshold": 60}


def recorded_by(model) -> dict:
    return {name: model.config[name] for name in RECORD}


def test_from_controlnet_keeps_the_record_of_one_of_ours():
    ours = tiny_controlnet(**RECORD)
    assert recorded_by(BackshanControlNetModel.from_controlnet(ours)) == RECORD
    model = BackshanControlNetModel.from_controlnet(ours, default_prompt="another")
    assert recorded_by(model) == RECORD | {"default_prompt": "another"}
    rgb = tiny_controlnet(**RECORD | {"conditioning": "rgb"})
    assert BackshanControlNetModel.from_controlnet(rgb).config.conditioning == "rgb"
    assert recorded_by(BackshanControlNetModel.from_controlnet(rgb, conditioning="canny+rgb")) == RECORD


def test_a_record_survives_folders_and_the_stock_class(tmp_path):
    ours = tiny_controlnet(**RECORD)
    ours.save_pretrained(tmp_path / "ours")
    stock = ControlNetModel.from_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "resaved")
    assert json.loads((tmp_path / "resaved" / "config.json").read_text())["_class_name"] == "ControlNetModel"
    opened = [BackshanControlNetModel.from_controlnet(source) for source in (tmp_path / "ours", stock)]
    opened += [BackshanControlNetModel.from_controlnet(tmp_path / "resaved")]
    opened += [BackshanControlNetModel.from_pretrained(tmp_path / "resaved")]
    for model in opened:
        assert recorded_by(model) == RECORD
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ours.parameters(), strict=True))


def test_a_record_survives_the_hub(tmp_path):
    """As the Hub's cache holds it; nothing is asked of the network."""
    repository = tmp_path / "models--someone--net"
    tiny_controlnet(**RECORD).save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    load_kwargs = {"cache_dir": tmp_path, "local_files_only": True}
    assert recorded_by(BackshanControlNetModel.from_controlnet("someone/net", load_kwargs=load_kwargs)) == RECORD


@pytest.mark.parametrize("given", [{}, {"conditioning": "rgb"}])
def test_a_stock_config_is_not_read_as_if_it_said_what_the_controlnet_reads(tmp_path, given):
    stock = stock_controlnet()
    stock.save_pretrained(tmp_path)
    for opening, source in (("from_pretrained", tmp_path), ("from_config", stock.config)):
        with pytest.raises(ValueError, match="take it over with BackshanControlNetModel.from_controlnet") as caught:
            getattr(BackshanControlNetModel, opening)(source, **given)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_from_config_builds_one_of_ours():
    model = BackshanControlNetModel.from_config(tiny_controlnet(**RECORD).config, default_prompt="another")
    assert recorded_by(model) == RECORD | {"default_prompt": "another"}


@pytest.mark.parametrize(("channels", "conditioning"), [(6, "rgb"), (4, "canny+rgb"), (1, "canny")])
def test_from_controlnet_refuses_a_stock_one_of_another_width(channels, conditioning):
    stock = stock_controlnet(channels)
    with pytest.raises(ValueError, match=f"reads {channels} condition channels.*begins with what it reads"):
        BackshanControlNetModel.from_controlnet(stock, conditioning=conditioning)


def test_from_controlnet_refuses_latents_where_a_stock_one_reads_neither_them_nor_a_picture():
    with pytest.raises(
        ValueError, match="reads 6 condition channels and latents have 4: give one that .* picture's.$"
    ):
        BackshanControlNetModel.from_controlnet(stock_controlnet(6), conditioning="latents")


@pytest.mark.parametrize(
    ("read", "conditioning"),
    [("canny+rgb", "canny"), ("rgb", "canny"), ("canny", "rgb"), ("rgb", "latents"), ("latents", "rgb")],
)
def test_from_controlnet_refuses_to_drop_what_one_of_ours_reads(read, conditioning):
    with pytest.raises(ValueError, match=f"reads {read.replace('+', '.')}, which is not all in {conditioning}:"):
        BackshanControlNetModel.from_controlnet(tiny_controlnet(read), conditioning=conditioning)


@pytest.mark.parametrize(("conditioning", "channels"), [("canny+rgb", 6), ("latents", 4)])
def test_a_folder_of_ours_opens_in_the_stock_class(tmp_path, conditioning, channels):
    model = tiny_controlnet(conditioning)
    model.save_pretrained(tmp_path)
    stock = ControlNetModel.from_pretrained(tmp_path)
    assert type(stock) is ControlNetModel
    with torch.no_grad():
        for ours, theirs in zip(
            every(model.eval()(**inputs(channels))), every(stock(**inputs(channels))), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_forward_gives_a_tuple_on_request():
    model = tiny_controlnet()
    downs, mid = model(**inputs(), return_dict=False)
    assert len(downs) == len(model.controlnet_down_blocks) and mid.shape == (2, 16, 4, 4)


@torch.no_grad()
def test_the_first_items_of_a_batch_have_the_residuals_they_have_alone():
    model = tiny_controlnet().eval()
    first, second = inputs(batch=2), inputs(batch=2, seed=5)
    joined = {name: torch.cat([first[name], second[name]]) for name in first}
    alone = every(model(**first))
    for output in (model(**joined).first(2), model(**joined, hidden_states_of=2)):
        for ours, theirs in zip(every(output), alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hidden_states_are_what_the_zero_convolutions_turn_into_residuals():
    model = tiny_controlnet().eval()
    output = model(**inputs(batch=3), hidden_states_of=1)
    convolutions = [*model.controlnet_down_blocks, model.controlnet_mid_block]
    hidden = [*output.down_block_hidden_states, output.mid_block_hidden_state]
    for convolution, state, residual in zip(convolutions, hidden, every(model(**inputs(batch=3))), strict=True):
        assert len(state) == 3
        torch.testing.assert_close(convolution(state), residual, rtol=1e-4, atol=1e-5)
    assert model(**inputs()).mid_block_hidden_state is None  # nothing listens any more


def test_hidden_states_are_features_too():
    model = tiny_controlnet(zero_residuals=True).eval()
    output = model(**inputs(), hidden_states_of=2)
    features = BackshanControlNetModel.control_features(output, before_zero_convolutions=True)
    assert features.abs().max() > 0
    torch.testing.assert_close(features[1, -256:], output.mid_block_hidden_state[1].flatten())
    pooled = BackshanControlNetModel.control_features(output, "last_down", True, True)
    torch.testing.assert_close(pooled, output.down_block_hidden_states[-1].mean(dim=(2, 3)))
    assert BackshanControlNetModel.control_features(output).abs().max() == 0  # the residuals are


def test_listening_to_one_pass_leaves_no_hook_behind():
    model = tiny_controlnet()
    with torch.no_grad():
        before = every(model(**inputs()))
        model(**inputs(), hidden_states_of=1)
        after = every(model(**inputs()))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_pass_that_fails_leaves_no_hook_behind():
    model = tiny_controlnet()
    model.controlnet_mid_block.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**inputs(), hidden_states_of=1)
    model.controlnet_mid_block._forward_hooks.clear()
    assert len(model(**inputs()).mid_block_res_sample) == 2


def test_mirrored_features_are_flipped_left_right():
    residual = torch.arange(12.0).view(1, 2, 2, 3)
    output = ControlNetOutput((residual,), residual)
    found = BackshanControlNetModel.control_features(output, "mid", mirrored=True)
    assert found.tolist() == [[2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9]]


def test_control_features_hold_every_residual_of_each_item():
    output = tiny_controlnet()(**inputs())
    features = BackshanControlNetModel.control_features(output)
    assert features.shape == (2, sum(residual[0].numel() for residual in every(output)))
    torch.testing.assert_close(features[1, -256:], output.mid_block_res_sample[1].flatten())
    torch.testing.assert_close(features[1, :512], output.down_block_res_samples[0][1].flatten())


def test_variants_and_shards(tmp_path):
    model = tiny_controlnet()
    model.save_pretrained(tmp_path / "variant", variant="fp16")
    BackshanControlNetModel.from_pretrained(tmp_path / "variant", variant="fp16")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    index = json.loads((tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    again = BackshanControlNetModel.from_pretrained(tmp_path / "shards")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_controlnet().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        sum(residual.square().sum() for residual in every(model(**inputs()))).backward()
        gradients.append(model.conv_in.weight.grad)
    torch.testing.assert_close(*gradients)


def test_attention_processors_and_adapters_work():
    model = tiny_controlnet()
    model.set_default_attn_processor()
    before = model(**inputs()).mid_block_res_sample
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    assert not torch.equal(before, model(**inputs()).mid_block_res_sample)
    model.disable_adapters()
    torch.testing.assert_close(before, model(**inputs()).mid_block_res_sample)


def test_features_that_an_output_does_not_hold_are_refused():
    model = tiny_controlnet()
    model = BackshanControlNetModel.from_controlnet(model)
    output = model(**inputs())
    with pytest.raises(ValueError, match=f"features is 'first': choose one of {', '.join(FEATURES)}.$"):
        model.control_features(output, "first")
    for lacking in (output, tiny_controlnet()(**inputs())):
        with pytest.raises(ValueError, match="holds no hidden states: call the model with hidden_states_of.$"):
            model.control_features(lacking, before_zero_convolutions=True)
    with pytest.raises(ValueError, match="a tuple holds no hidden states"):
        model(**inputs(), return_dict=False, hidden_states_of=1)
