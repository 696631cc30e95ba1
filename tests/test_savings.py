"""Options that make a step cheaper: what they save, that they change nothing else, and that they go together."""

import copy
import importlib.util
import shutil
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.models.attention import BasicTransformerBlock
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from test_resume import assert_equal_files, log
from test_stages import control_batch
from tiny import TINY, tiny_config, tiny_pipeline

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.commands.loading import find_model, load_pipeline
from backshan_diffusers.objective import PRESETS
from backshan_diffusers.training.config import ConfigError, ModelSize, TrainingConfig
from backshan_diffusers.training.run import TrainingRun
from backshan_diffusers.training.savings import AveragedWeights, optimizer_bytes
from backshan_diffusers.training.scratch import seeded
from backshan_diffusers.training.stages import ControlStage
from backshan_diffusers.training.trainer import StageTrainer, parameter_groups

ROOT = Path(__file__).parents[1]
LORA = "pytorch_lora_weights.safetensors"
EIGHT_BIT = {"optimizer": "adamw8bit", "channels_last": False}
NEEDS_8_BIT = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs the extra adam8bit")


@pytest.fixture
def small_tensors_too(monkeypatch):
    """Moments of nearly all tensors are kept in 8 bits: hardly one of a tiny model is large enough."""
    monkeypatch.setattr("backshan_diffusers.training.savings.EIGHT_BIT_MINIMUM", 64)


@contextmanager
def precision(name: str):
    """Within, accelerate computes in that mixed precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", name)
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


def control_trainer(
    folder: Path, part: str | None = "all", lora_rank: int | None = None, preset: str = "backshan", **values
) -> StageTrainer:
    """A trainer of ControlNet on one batch of noise, with the U-Net frozen, unlocked or with adapters."""
    folder.mkdir(exist_ok=True)
    pipeline = tiny_pipeline()
    with seeded(0):
        stage = ControlStage(pipeline.controlnet, pipeline.unet, pipeline.scheduler, PRESETS[preset], part, lora_rank)
    settings = tiny_config(folder, learning_rate=0.01, **values)
    return StageTrainer(Accelerator(), stage, lambda step, sampler: control_batch(), settings, "joint", folder)


def trained(folder: Path, *choice, **values) -> StageTrainer:
    trainer = control_trainer(folder, *choice, **values)
    trainer.train(lambda step: None)
    return trainer


def weights_of(trainer: StageTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.states["model"].state_dict().items()}


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- types -----------------------------------------------------------------------------------------------------------


class Watched(TrainingRun):
    """A run that notes in which types its models were when it validated."""

    types = None

    def _validate(self, name, step, pipeline, *rest):
        parts = {part: getattr(pipeline, part) for part in ("vae", "unet", "controlnet")}
        self.types = {part: {tensor.dtype for tensor in model.parameters()} for part, model in parts.items()}
        assert pipeline.text_encoder is None
        super()._validate(name, step, pipeline, *rest)


@pytest.mark.parametrize("mixed, kept", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_what_is_frozen_is_halved_for_the_training_and_written_as_it_was(tiny_folder, tmp_path, mixed, kept):
    """Rounded weights would differ from the base's in nearly every value."""
    with precision(mixed):
        run = Watched(tiny_config(tmp_path, model=ModelSize(), base_model=str(tiny_folder), stages={"controlnet": {}}))
        finished = run.run()
    assert run.types == {"vae": {kept}, "unet": {kept}, "controlnet": {torch.float32}}
    for path in ("vae/diffusion_pytorch_model", "unet/diffusion_pytorch_model", "text_encoder/model"):
        assert same(load_file(finished / f"{path}.safetensors"), load_file(tiny_folder / f"{path}.safetensors")), path
    moved = load_file(finished / "controlnet" / "diffusion_pytorch_model.safetensors")
    before = load_file(tiny_folder / "controlnet" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in moved.values())
    assert all(not torch.equal(moved[name], before[name]) for name in before)


@pytest.mark.parametrize("part", ["decoder", "attention"])
def test_a_unet_of_which_a_part_learns_is_not_halved(tmp_path, part):
    with precision("bf16"):
        unet = control_trainer(tmp_path, part).models["unet"]
    assert {weight.dtype for weight in unet.parameters() if not weight.requires_grad} == {torch.float32}


def test_a_halved_unet_gives_the_loss_of_a_whole_one_up_to_rounding(tmp_path):
    losses = {}
    for name in ("no", "bf16"):
        with precision(name):
            trainer = control_trainer(tmp_path / name, None)
            kept = {tensor.dtype for tensor in trainer.models["controlnet"].parameters()}
            assert kept == {torch.float32}
            losses[name] = float(trainer.advance()[0]["loss"])
    assert losses["bf16"] != losses["no"] and losses["bf16"] == pytest.approx(losses["no"], rel=0.02)


def test_a_halved_unet_computes_in_its_own_type_throughout(tmp_path):
    """Autocast would be off within it, and every block would see what it is made of."""
    seen = set()
    with precision("bf16"):
        trainer = control_trainer(tmp_path, None)
        for module in trainer.states["model"].component("unet").modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.register_forward_hook(
                    lambda _module, inputs, output: seen.add(
                        (inputs[0].dtype, output.dtype, torch.is_autocast_enabled("cpu"))
                    )
                )
        trainer.advance()
    assert seen == {(torch.bfloat16, torch.bfloat16, False)}


def test_a_halved_unet_with_adapters_that_learn_is_left_to_autocast(tmp_path):
    seen = set()
    with precision("bf16"):
        trainer = control_trainer(tmp_path, "all", 2)
        unet = trainer.states["model"].component("unet")
        assert unet.dtype == torch.bfloat16
        unet.register_forward_pre_hook(
            lambda _module, inputs: seen.add((inputs[0].dtype, torch.is_autocast_enabled("cpu")))
        )
        trainer.advance()
    assert seen == {(torch.float32, True)}


# --- memory of activations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [(None,), ("all",), ("all", 2)], ids=["frozen", "unlocked", "lora"])
def test_gradient_checkpointing_keeps_less_and_changes_no_bit(tmp_path, choice):
    kept, weights = {}, {}
    for checkpointing in (False, True):
        trainer = control_trainer(tmp_path / str(checkpointing), *choice, gradient_checkpointing=checkpointing)
        kept[checkpointing] = 0

        def count(tensor, name=checkpointing):
            kept[name] += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            trainer.module(control_batch())
        trainer.train(lambda step: None)
        weights[checkpointing] = weights_of(trainer)
    # what is left at this size is mostly the condition embedding, which works at the side of the picture
    assert kept[True] < 0.8 * kept[False]
    assert same(weights[True], weights[False])


def test_gradient_checkpointing_may_change_where_a_run_goes_on(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "joint" / "pipeline")
    shutil.rmtree(run / "joint" / "checkpoint-4")
    TrainingRun(tiny_config(run, gradient_checkpointing=True)).run()
    assert_equal_files(run / "joint", finished / "joint")


# --- optimizers ------------------------------------------------------------------------------------------------------


@NEEDS_8_BIT
def test_moments_in_8_bit_are_used_and_resumed_exactly(tmp_path, small_tensors_too):
    whole = trained(tmp_path / "whole", **EIGHT_BIT)
    states = whole.optimizer.state_dict()["state"].values()
    flat = [{**state, **state.get("__bnb_optimizer_quant_state__", {})} for state in states]
    assert {state["state1"].dtype for state in flat} == {torch.uint8, torch.float32}
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    trained(tmp_path / "run", **EIGHT_BIT)
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert_equal_files(tmp_path / "run", tmp_path / "whole")
    exact = weights_of(trained(tmp_path / "exact", channels_last=False))
    rounded = weights_of(whole)
    assert not same(rounded, exact)
    moves = [(rounded[name] - exact[name]).abs().mean() for name in exact]
    assert max(moves) < 0.02  # of four steps of 0.01


@pytest.mark.parametrize("values", [{}, pytest.param(EIGHT_BIT, marks=NEEDS_8_BIT)], ids=["adamw", "adamw8bit"])
def test_bytes_of_the_moments_are_those_of_the_optimizer(tmp_path, values, small_tensors_too):
    trainer = control_trainer(tmp_path, **values)
    trainer.advance()
    shared, measured = {"step", "qmap1", "qmap2"}, 0
    for state in trainer.optimizer.state.values():
        measured += sum(value.numel() * value.element_size() for name, value in state.items() if name not in shared)
    learning = [parameter for parameter in trainer.module.parameters() if parameter.requires_grad]
    assert optimizer_bytes(learning, trainer.config.optimizer) == measured


def test_8_bit_moments_without_their_library_are_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    spec = importlib.util.spec_from_file_location("train_backshan", ROOT / "examples" / "train_backshan.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    smoke = ROOT / "examples" / "configs" / "smoke.yaml"
    options = ["--output_dir", str(tmp_path / "run"), "--optimizer", "adamw8bit", "--channels_last", "false"]
    for dry_run in ([], ["--dry_run"]):
        monkeypatch.setattr(sys, "argv", ["train_backshan.py", "--config", str(smoke), *options, *dry_run])
        assert script.main() == 2
        assert capsys.readouterr().err == (
            "optimizer adamw8bit needs bitsandbytes: pip install backshan_diffusers[adam8bit], or give adamw.\n"
        )
    assert not (tmp_path / "run").exists()


def test_adamw_is_one_kernel_and_moves_weights_as_the_plain_one(tmp_path):
    """Also where gradients and weights lie with their channels last."""
    trainer = control_trainer(tmp_path, weight_decay=0.1)
    assert trainer.optimizer.defaults["fused"]
    plain_weights = [weight.detach().clone() for group in trainer.optimizer.param_groups for weight in group["params"]]
    plain = torch.optim.AdamW(plain_weights, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1, fused=False)
    trainer._accumulate()
    for model in trainer.models.values():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    weights = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
    for ours, theirs in zip(plain_weights, weights, strict=True):
        ours.grad = theirs.grad.clone()
    trainer.optimizer.step()
    plain.step()
    for ours, theirs in zip(plain_weights, weights, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-5)


def test_averages_are_those_of_diffusers(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5, 7, generator=generator)) for _ in range(3)]
    ours, theirs = AveragedWeights(weights, 0.9), EMAModel(weights, 0.9)
    for _ in range(20):
        for weight in weights:
            weight.data += torch.randn(5, 7, generator=generator)
        ours.step(iter(weights))
        theirs.step(weights)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert ours.optimization_step == theirs.optimization_step == 20
    for own, other, weight in zip(ours.shadow_params, theirs.shadow_params, weights, strict=True):
        torch.testing.assert_close(own, other)
        assert not torch.equal(own, weight)


def test_averages_and_weights_change_places_and_come_back_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5, 7, generator=generator)) for _ in range(2)]
    averages, raw = AveragedWeights(weights, 0.9), [weight.detach().clone() for weight in weights]
    for shadow in averages.shadow_params:
        shadow.add_(1)
    averages.change_places(iter(weights))
    for weight, before in zip(weights, raw, strict=True):
        assert torch.equal(weight, before + 1)
    averages.change_places(weights)
    for weight, before, average in zip(weights, raw, averages.shadow_params, strict=True):
        assert torch.equal(weight, before) and torch.equal(average, before + 1)


# --- layout and compiled blocks --------------------------------------------------------------------------------------


def kernels(trainer: StageTrainer) -> list[torch.Tensor]:
    """Of all convolutions larger than 1 x 1, in which a layout shows."""
    models = trainer.states["model"].models()
    return [weight for model in models for weight in model.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]


def test_channels_lie_last_or_first_in_trained_and_frozen_models(tmp_path):
    losses = []
    for last in (True, False):
        trainer = control_trainer(tmp_path / str(last), None, channels_last=last)
        assert len(list(trainer.states["model"].models())) == 2
        wanted, other = torch.channels_last, torch.contiguous_format
        wanted, other = (wanted, other) if last else (other, wanted)
        for kernel in kernels(trainer):
            assert kernel.is_contiguous(memory_format=wanted) and not kernel.is_contiguous(memory_format=other)
        assert {
            batch["back_control"].is_contiguous(memory_format=torch.channels_last) for batch in trainer._batches()
        } == {last}
        losses.append(float(trainer.advance()[0]["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("choice", [(None,), ("all", 2)], ids=["frozen", "lora"])
def test_compiled_blocks_compute_the_same_and_keep_the_names_of_weights(tmp_path, choice):
    plain = control_trainer(tmp_path / "plain", *choice)
    compiled = control_trainer(tmp_path / "compiled", *choice, compile="aot_eager", gradient_checkpointing=True)
    blocks = [
        module
        for model in compiled.states["model"].models()
        for module in model.modules()
        if isinstance(module, BasicTransformerBlock)
    ]
    assert len(blocks) > 4 and all(block._compiled_call_impl is not None for block in blocks)
    for _ in range(2):
        ours, theirs = (float(trainer.advance()[0]["loss"]) for trainer in (plain, compiled))
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert weights_of(compiled).keys() == weights_of(plain).keys()


def test_inductor_without_a_compiler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    settings = tiny_config(tmp_path, compile="inductor")
    with pytest.raises(ConfigError, match="C\\+\\+ compiler and there is no no-such-compiler"):
        TrainingRun(settings)
    TrainingRun(tiny_config(tmp_path, compile="aot_eager"))


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_adapters_alone_learn_are_averaged_clipped_and_kept_in_checkpoints(tmp_path):
    trainer = control_trainer(tmp_path, "all", 2)
    unet = trainer.states["model"].component("unet")
    before = copy.deepcopy(unet.state_dict())
    terms, _ = trainer.advance()
    assert {"grad_norm_controlnet", "grad_norm_unet_lora"} == {name for name in terms if name.startswith("grad_norm")}
    norms = [parameter.grad for parameter in unet.parameters()]
    assert norms == len(norms) * [None]
    trainer.train(lambda step: None)
    moved = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    adapters = {name for name in before if ".lora_" in name}
    assert moved == adapters and adapters
    assert all(".attn" in name for name in adapters)
    assert sum(map(torch.numel, trainer.averages["unet_lora"].shadow_params)) == sum(
        before[name].numel() for name in adapters
    )
    assert set(trainer.averages) == {"controlnet", "unet_lora"}
    stored = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert {name for name in stored if "unet" in name} and not any("base_layer" in name for name in stored)
    size = sum(map(torch.numel, stored.values()))
    assert size == sum(p.numel() for model in trainer.models.values() for p in model.parameters())


def test_adapters_may_have_a_rate_of_their_own(tmp_path):
    trainer = control_trainer(tmp_path, "all", 2)
    settings = tiny_config(tmp_path, unet_learning_rate=2e-6)
    first, second = parameter_groups(trainer.states["model"], settings).values()
    assert set(first["params"]) == set(trainer.models["controlnet"].parameters()) and "lr" not in first
    assert set(second["params"]) == set(trainer.models["unet_lora"].parameters()) and second["lr"] == 2e-6


def test_a_run_with_adapters_leaves_the_unet_and_a_file_that_diffusers_loads(tiny_folder, tmp_path):
    """What the finished folder makes of a back is what the run saw with its averaged weights."""

    class Kept(TrainingRun):
        def _finish(self, name, module, *rest):
            self.unet = copy.deepcopy(module.component("unet"))
            super()._finish(name, module, *rest)

    stages = {"joint": {"unet_lora_rank": 2}}
    run = Kept(
        tiny_config(tmp_path, model=ModelSize(), base_model=str(tiny_folder), stages=stages, learning_rate=0.01)
    )
    finished = run.run()
    assert "unet_lora_rank: 2" in (tmp_path / "joint" / "training_config.yaml").read_text()
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert same(load_file(finished / unet), load_file(tiny_folder / unet))
    pipeline = BackToFrontPipeline.from_pretrained(finished)
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 16))
    with torch.no_grad():
        without = pipeline.unet(*inputs).sample
        pipeline.load_lora_weights(finished)
        loaded, trained_one = pipeline.unet(*inputs).sample, run.unet.eval()(*inputs).sample
    assert not torch.allclose(loaded, without, atol=1e-4)
    torch.testing.assert_close(loaded, trained_one)
    by_command = load_pipeline(str(finished), find_model(str(finished)), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(by_command.unet(*inputs).sample, loaded)
    with pytest.raises(ConfigError, match="holds a LoRA adapter beside its U-Net"):
        TrainingRun(tiny_config(tmp_path / "next", model=ModelSize(), base_model=str(finished))).run()


# --- together --------------------------------------------------------------------------------------------------------

TOGETHER = {
    "gradient_checkpointing": True,
    "compile": "aot_eager",
    "gradient_accumulation_steps": 2,
    "cached_contrast": True,
    "objective": {"preset": "backshan"},
    "stages": {"vae": {"compile": "none"}, "prior": {}, "controlnet": {}, "joint": {"unet_lora_rank": 2}},
}


@pytest.mark.parametrize(
    "values", [pytest.param(EIGHT_BIT, marks=NEEDS_8_BIT), {}], ids=["adamw8bit", "channels_last"]
)
def test_all_of_them_together_go_through_every_stage_and_resume_exactly(tmp_path, values, small_tensors_too):
    torch._dynamo.reset()
    with precision("bf16"):
        TrainingRun(tiny_config(tmp_path / "whole", **TOGETHER, **values)).run()
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        for stage in ("controlnet", "joint"):
            shutil.rmtree(tmp_path / "run" / stage / "pipeline")
            shutil.rmtree(tmp_path / "run" / stage / "checkpoint-4")
        finished = TrainingRun(tiny_config(tmp_path / "run", **TOGETHER, **values)).run()
    assert (finished / LORA).exists()
    for stage in ("controlnet", "joint"):
        assert log(tmp_path / "run" / stage) == log(tmp_path / "whole" / stage)
        assert_equal_files(tmp_path / "run" / stage, tmp_path / "whole" / stage)
    assert not any("_orig_mod" in name for path in finished.rglob("*.safetensors") for name in load_file(path))
    pipeline = BackToFrontPipeline.from_pretrained(finished)
    pipeline.load_lora_weights(finished)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"optimizer": "adamw8bit"}, "give channels_last false beside it"),
        ({"optimizer": "sgd"}, "optimizer 'sgd' does not exist"),
        ({"compile": "fast"}, "compile 'fast' does not exist"),
        ({"unet_lora_rank": 0}, "unet_lora_rank is 0"),
        ({"unet_lora_rank": 4, "unlock_unet": "decoder"}, "unet_lora_rank and unlock_unet decoder are both given"),
        ({"stages": {"vae": {}, "prior": {}, "controlnet": {"unet_lora_rank": 4}}}, "only joint unlocks a U-Net"),
        ({"stages": {"vae": {"compile": "inductor"}}}, "compile under the stage vae"),
    ],
)
def test_options_that_do_not_go_together_are_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TrainingConfig(output_dir="run", model=TINY, crop_sizes=(32,), **values)
