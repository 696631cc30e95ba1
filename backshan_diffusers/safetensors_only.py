"""Weights are read from safetensors alone: a pickle could run any code when it is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPVisionModelWithProjection

SUFFIX = ".safetensors"


def with_safetensors(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a `from_pretrained` of diffusers, which by itself falls back on pickles.

    Raises:
        ValueError: if `use_safetensors` is given and false.
    """
    if given.get("use_safetensors") not in (None, True):
        raise ValueError("weights are read from safetensors alone: leave use_safetensors out.")
    return {**given, "use_safetensors": True}


class SafetensorsFile:
    """Stands before a class of diffusers that can be made from a single file."""

    @classmethod
    def from_single_file(cls, file, **kwargs):
        """The parent's, from a path, a link or, where the parent takes them, the weights themselves.

        Raises:
            ValueError: if the file is not in safetensors.
        """
        if isinstance(file, str | os.PathLike):
            _refuse_other(os.fspath(file).partition("?")[0])
        return super().from_single_file(file, **kwargs)


class SafetensorsAdapters:
    """Stands before a pipeline of diffusers: what can be added to it comes from safetensors alone, too.

    The parents' methods read a pickle where its name is given, and where they find nothing else.
    """

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict, **kwargs):
        """The parent's, by which `load_lora_weights` reads.

        Raises:
            ValueError: if a file is named that is not in safetensors.
        """
        _refuse_others(pretrained_model_name_or_path_or_dict, kwargs.get("weight_name"))
        return super().lora_state_dict(pretrained_model_name_or_path_or_dict, **with_safetensors(kwargs))

    def load_textual_inversion(self, pretrained_model_name_or_path, *args, **kwargs):
        """The parent's.

        Raises:
            ValueError: if a file is named that is not in safetensors.
        """
        _refuse_others(pretrained_model_name_or_path, kwargs.get("weight_name"))
        super().load_textual_inversion(pretrained_model_name_or_path, *args, **with_safetensors(kwargs))

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict,
        subfolder,
        weight_name,
        image_encoder_folder: str | None = "image_encoder",
        **kwargs,
    ):
        """The parent's.

        Raises:
            ValueError: if a file is named that is not in safetensors.
        """
        _refuse_others(pretrained_model_name_or_path_or_dict, weight_name)
        source, inside = _first(pretrained_model_name_or_path_or_dict), _first(subfolder)
        if self.image_encoder is None and image_encoder_folder is not None and not isinstance(source, Mapping):
            names = ("cache_dir", "local_files_only", "token", "revision")
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                source,
                # a name without a slash lies beside the adapter
                subfolder=image_encoder_folder if "/" in image_encoder_folder else f"{inside}/{image_encoder_folder}",
                dtype=self.dtype,
                use_safetensors=True,
                **{name: kwargs[name] for name in names if name in kwargs},
            )
            self.register_modules(image_encoder=encoder.to(self.device))
        super().load_ip_adapter(
            pretrained_model_name_or_path_or_dict, subfolder, weight_name, image_encoder_folder, **kwargs
        )


def _refuse_others(sources: Any, weight_names: Any) -> None:
    """Refuse files of other kinds among what a loader of diffusers is given: one or a list of each.

    A source may be a folder, a file, a repository or the weights themselves, to which a name means nothing.
    """
    sources = [source for source in _listed(sources) if isinstance(source, str | os.PathLike)]
    files = [source for source in sources if os.path.isfile(source)]
    names = [name for name in _listed(weight_names) if name is not None] if sources else []
    for name in files + names:
        _refuse_other(name)


def _refuse_other(file: str | os.PathLike) -> None:
    if Path(file).suffix != SUFFIX:
        raise ValueError(
            f"{file} is not in safetensors, and a file in another form could run any code: convert it, or give a file"
            f" whose name ends in {SUFFIX}."
        )


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _first(value: Any) -> Any:
    return _listed(value)[0]
