"""What the text encoder makes of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from ...pipelines import BackToFrontPipeline
from .storage import cache_shards, fingerprint, key_of

_ABOUT_FILES = ("_name_or_path", "architectures", "dtype")
"""Fields of a text encoder's config that say where it came from, and nothing of what it computes."""


@torch.no_grad()
def cache_prompts(
    prompts: Sequence[str], pipeline: BackToFrontPipeline, folder: Path, accelerator: Accelerator
) -> torch.Tensor:
    """Embeddings of prompts, computed once for this text encoder and the tokens that reach it.

    The text encoder has to be in memory even if they are there: its weights are part of their name, and to read them
    all takes about half as long as to encode two prompts. So little time is saved; what is gained is that stages and
    runs that share a folder train on the same embeddings to the last bit.

    Args:
        prompts: `N` of them.
        pipeline: whose tokenizer and text encoder are used, on the CPU.
        folder: where caches live.
        accelerator: knows the processes; all of them call this function.

    Returns:
        `N x T x E` float32.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    encoder = pipeline.text_encoder
    config = sorted(each for each in encoder.config.to_dict().items() if each[0] not in _ABOUT_FILES)
    # nothing else of the texts and the tokenizer reaches the encoder; as for latents, versions only round otherwise
    tokens = pipeline.tokenizer(list(prompts), padding="max_length", truncation=True).input_ids
    key = key_of("prompts-1", tokens, config, fingerprint(encoder))

    def compute(some: Sequence[str]) -> torch.Tensor:
        return pipeline.encode_prompt(list(some), torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]

    return torch.cat(cache_shards(prompts, compute, folder, accelerator, key, "prompts", "prompts"))
