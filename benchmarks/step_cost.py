"""Cost of one training step against the public ControlNet recipe: time, arithmetic and memory, side by side.

python benchmarks/step_cost.py --json benchmarks/results/step_cost.json
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from random_sd15 import random_sd15
from report import Parser, Table, output_file, peak_memory_mib, positive, publish
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from training_step import random_trainer

from backshan_diffusers import MINI, BackToFrontPipeline
from backshan_diffusers.objective import PRESETS

VARIANTS = {
    "public": "the public ControlNet step",
    "mse": "ours, plain loss (mse)",
    "paper": "ours, paper",
    "backshan": "ours, backshan",
    "watched": "ours, backshan, fronts only looked at",
}
"""What is measured; the first is what the others are compared with."""

MODELS = {"sd15": 256, "mini": 128}
"""Side of the pictures in px by model: Stable Diffusion 1.5 with random weights, and the embedded model."""

TOKENS = 77

TIMED_STEPS = 3
"""Steps of a process, after the first, of which the fastest counts."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = Parser(prog="step_cost.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="sd15", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=2, help="pairs in a step (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=3, help="processes of each, in turn (default: %(default)s)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16", help="(default: %(default)s)")
    parser.add_argument("--json", type=output_file, help="write the results here")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write what was asked for."""
    options = parse(arguments)
    if options.only:
        print(json.dumps(measure(options)))
        return
    order = [name for _ in range(options.rounds) for name in VARIANTS]
    found = {name: [] for name in VARIANTS}
    for name in tqdm(order, unit="process"):
        found[name].append(in_a_process_of_its_own(name, options))
    results = {
        "model": options.model,
        "size_px": MODELS[options.model],
        "batch_size": options.batch_size,
        "precision": options.precision,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "variants": {name: summary(rounds) for name, rounds in found.items()},
    }
    publish([table(results)], results, arguments, 0, options.json)


def in_a_process_of_its_own(name: str, options: argparse.Namespace) -> dict[str, float]:
    """What `measure` finds of a variant in a process that does nothing else: several large ones do not fit at once."""
    command = [sys.executable, __file__, "--only", name, "--model", options.model]
    command += ["--batch-size", str(options.batch_size), "--precision", options.precision]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Operations of a first step, seconds of the fastest of `TIMED_STEPS` later ones, and the peak of memory."""
    step = public_step(options) if options.only == "public" else our_step(options, options.only)
    operations, seconds = gigaflops(step), []
    for _ in range(TIMED_STEPS):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    memory = peak_memory_mib(resource.getrusage(resource.RUSAGE_SELF))
    return {"seconds": min(seconds), "gigaflops": operations, "peak_memory_mib": memory}


def summary(rounds: list[dict[str, float]]) -> dict:
    """Medians over the rounds, and every round's seconds."""
    names = {"median_s": "seconds", "gigaflops": "gigaflops", "peak_memory_mib": "peak_memory_mib"}
    medians = {name: statistics.median(each[key] for each in rounds) for name, key in names.items()}
    return {"seconds": [each["seconds"] for each in rounds], **medians}


def build(model: str) -> BackToFrontPipeline:
    """A pipeline of Stable Diffusion 1.5's shape with random weights, or the embedded one."""
    if model == "mini":
        return BackToFrontPipeline.from_pretrained(MINI, dtype=torch.float32)
    return random_sd15(MODELS[model])


def public_step(options: argparse.Namespace) -> Callable[[], None]:
    """The step of the public ControlNet training script, made again from its description.

    The picture goes through the autoencoder and the prompt through the text encoder in every step; these and the
    U-Net are frozen and in half precision where that is asked for; ControlNet stays in float32 under autocast.
    """
    pipeline, side, size = build(options.model), MODELS[options.model], options.batch_size
    accelerator = Accelerator(mixed_precision=options.precision)
    half = torch.bfloat16 if options.precision == "bf16" else torch.float32
    for frozen in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        frozen.requires_grad_(False).to(accelerator.device, half)
    controlnet = pipeline.controlnet.train()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=1e-5)
    controlnet, optimizer = accelerator.prepare(controlnet, optimizer)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    pixels, control = torch.rand(2, size, 3, side, side).to(accelerator.device)
    tokens = torch.randint(0, pipeline.text_encoder.config.vocab_size, (size, TOKENS)).to(accelerator.device)

    def step() -> None:
        latents = pipeline.vae.encode((pixels * 2 - 1).to(half)).latent_dist.sample()
        latents = latents * pipeline.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (size,), device=latents.device)
        noised = schedule.add_noise(latents.float(), noise.float(), timesteps).to(half)
        prompts = pipeline.text_encoder(tokens)[0]
        with accelerator.autocast():
            downs, mid = controlnet(noised, timesteps, prompts, control, return_dict=False)
        prediction = pipeline.unet(
            noised,
            timesteps,
            prompts,
            down_block_additional_residuals=[residual.to(half) for residual in downs],
            mid_block_additional_residual=mid.to(half),
        ).sample
        loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(controlnet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(options: argparse.Namespace, name: str) -> Callable[[], None]:
    """The step of the `controlnet` stage, through the trainer that runs it: averaged weights and all checks included.

    Latents and prompt come from caches, as they do in training; making control pictures is left out on both sides.
    """
    objective = replace(PRESETS["backshan"], front_gradient=False) if name == "watched" else PRESETS[name]
    trainer = random_trainer(build(options.model), objective, None, options.precision, batch_size=options.batch_size)
    return trainer.advance


def gigaflops(step: Callable[[], None]) -> float:
    """Floating point operations of matrix products and convolutions in one step, forward and backward, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def table(results: dict) -> Table:
    """What is printed and goes into the docs."""
    variants = results["variants"]
    first, plain = variants["public"], variants["mse"]
    return Table(
        results["model"],
        f"one step of {results['model']}, {results['size_px']} px, {results['batch_size']} pairs,"
        f" precision {results['precision']}, {results['threads']} threads: medians of {results['rounds']} rounds",
        ["variant", "seconds", "of the public step", "of mse", "arithmetic of mse", "GFLOP", "peak memory in MiB"],
        [
            [
                VARIANTS[name],
                f"{each['median_s']:.2f}",
                f"{each['median_s'] / first['median_s']:.2f}",
                f"{each['median_s'] / plain['median_s']:.2f}",
                f"{each['gigaflops'] / plain['gigaflops']:.2f}",
                f"{each['gigaflops']:.0f}",
                f"{each['peak_memory_mib']:.0f}",
            ]
            for name, each in variants.items()
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
