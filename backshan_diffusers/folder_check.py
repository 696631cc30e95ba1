"""What a folder lacks to be a pipeline, or has damaged: said by the file's name, before anything is loaded from it.

Torch and diffusers take seconds to import and nearly a GB of memory, and files can be judged without them.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

INDEX = "model_index.json"
ADAPTERS = "pytorch_lora_weights.safetensors"
"""What diffusers calls LoRA adapters beside a pipeline."""

COMPONENTS_WITH_WEIGHTS = ("vae", "text_encoder", "unet", "controlnet", "safety_checker", "image_encoder")
NEEDED = ("vae", "text_encoder", "tokenizer", "unet", "controlnet", "scheduler")
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either will do; without one, transformers makes a tokenizer that knows no word."""

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
"""What the schedulers of diffusers know, each some of them; what is wrong here would be found in the first step."""

LONGEST_PROMPT = 1_000_000
"""Tokens; transformers writes 10^30 where nobody has said how many."""

PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
"""Fields of configs in which diffusers and transformers, some versions of it, note where files lay."""

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
REMEDY = "copy or download the whole pipeline folder again."


def check_folder(folder: Path, given: Container[str]) -> None:
    """Refuse a folder from which a pipeline cannot be loaded.

    Args:
        folder: it exists.
        given: names of components that are not loaded from the folder.

    Raises:
        OSError: in one sentence with the name of what is missing or damaged.
    """
    if not (folder / INDEX).is_file():
        raise OSError(f"{folder} has no {INDEX}: give the folder of a saved pipeline.")
    index = _read(folder / INDEX)
    for name in (name for name in dict.fromkeys([*index, *NEEDED]) if not name.startswith("_") and name not in given):
        entry = index.get(name)
        if name in NEEDED and not _names_a_class(entry):
            raise OSError(f"{folder / INDEX} names no {name}: give the folder of a pipeline that has one.")
        if _names_a_class(entry):
            _check_component(folder / name)
            if entry[0].partition(".")[0] in sys.stdlib_module_names:
                raise OSError(f"{folder / INDEX} is damaged (its {name} is of the library {entry[0]}): {REMEDY}")
            if not _is_at_hand(entry[0], folder / name):
                raise OSError(
                    f"{folder / INDEX} names the library {entry[0]} for {name}, which is not installed: install it, or"
                    " give another pipeline."
                )


def check_controlnet(folder: Path) -> None:
    """As [`check_folder`], for a folder with a ControlNet alone, whatever its name."""
    if not folder.is_dir():
        raise OSError(f"the folder {folder} is missing: {REMEDY}")
    if not (folder / "config.json").is_file():
        raise OSError(f"{folder} has no {INDEX} and no config.json: give the folder of a pipeline or of a ControlNet.")
    _read(folder / "config.json")
    _check_weights(folder)


def model_around(place: Path) -> Path | None:
    """The folder of a pipeline or of a single model that `place` is or lies in, however deep; `None` without one."""
    for folder in (place.resolve(), *place.resolve().parents):
        # a config.json by itself may be any program's
        if (folder / INDEX).is_file() or ((folder / "config.json").is_file() and any(folder.glob("*.safetensors"))):
            return folder
    return None


def lone_variant(folder: Path, given: Container[str] = ()) -> str | None:
    """The variant, such as `fp16`, in which a component of a pipeline's folder has its weights and not in the plain
    form too; `None` if there is no such component but those that are `given`."""
    variants = (stored_variant(folder / part) for part in COMPONENTS_WITH_WEIGHTS if part not in given)
    return next((variant for variant in variants if variant), None)


def stored_variant(component: Path) -> str | None:
    """The variant in which the folder of a component has its weights, `None` where it has them in the plain form."""
    # model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model-00001-of-00002.fp16.safetensors
    variants = {file.stem.partition(".")[2].partition("-")[0] for file in component.glob("*.safetensors")}
    return min(variants, default="") or None


def find_damage(folder: Path) -> str | None:
    """Which component of a pipeline's folder cannot be loaded by itself, and why; `None` if each of them can.

    For files that [`check_folder`] finds whole but that do not fit each other. It takes as long as loading them all.
    """
    import torch  # here, where weights are loaded

    for name, entry in _read(folder / INDEX).items():
        if not _names_a_class(entry) or entry[0] not in ("diffusers", "transformers"):
            continue
        try:
            kind = getattr(importlib.import_module(entry[0]), entry[1])
            component = kind.from_pretrained(
                folder / name,
                use_safetensors=True,  # a pickle could run any code
                variant=stored_variant(folder / name),
            )
        except Exception as error:  # nothing is known about what is in the files
            return f"{folder / name} cannot be loaded ({' '.join(str(error).split())}): {REMEDY}"
        for weight, value in component.named_parameters() if isinstance(component, torch.nn.Module) else ():
            if value.is_meta:  # what diffusers leaves where a file has no such weight
                return f"{folder / name} has no weight {weight}: {REMEDY}"
    return None


def refuse_random_encoders(folder: Path) -> None:
    """Refuse a pipeline's folder in which a text or image encoder lacks weights; it has passed [`check_folder`].

    transformers would put random numbers in their places, which only its warnings tell. No weight is read.

    Raises:
        OSError: in one sentence with the name of a missing weight, or as transformers says why an encoder cannot be
            opened.
    """
    import transformers  # here, where a model is loaded

    for name, entry in _read(folder / INDEX).items():
        if name in COMPONENTS_WITH_WEIGHTS and _names_a_class(entry) and entry[0] == "transformers":
            encoder = getattr(transformers, entry[1])
            _, report = encoder.from_pretrained(
                folder / name,
                device_map="meta",
                use_safetensors=True,
                variant=stored_variant(folder / name),
                output_loading_info=True,
            )
            if report["missing_keys"]:
                raise OSError(f"{folder / name} has no weight {min(report['missing_keys'])}: {REMEDY}")


def components(index: dict[str, Any]) -> list[str]:
    """The folders of a pipeline, as its index names them; a name that leads elsewhere is none of them."""
    return [name for name, entry in index.items() if re.fullmatch(r"[A-Za-z]\w*", name) and _names_a_class(entry)]


def object_in(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if it is no JSON, or no text; the message says why, without the file's name.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def records_conditioning(config: Mapping[str, Any]) -> bool:
    """Whether a ControlNet's config says what it reads: one of ours does, even where the stock class has saved it."""
    return "conditioning" in config


def without_origin(config: str) -> str:
    """A component's config without the folders it was loaded from, which are nobody's business."""
    content = json.loads(config)
    kept = {name: value for name, value in content.items() if name not in PLACES}
    return config if kept == content else json.dumps(kept, indent=2) + "\n"


def _names_a_class(entry: Any) -> bool:
    """Whether an entry of the index is a library and a class, not `[null, null]` or a plain value."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)


def _is_at_hand(library: str, component: Path) -> bool:
    """Whether what the index names is installed, a module of diffusers' pipelines, or a file of the component."""
    root = library.partition(".")[0]
    if not root.isidentifier():
        return False
    homes = importlib.util.find_spec("diffusers").submodule_search_locations  # imports nothing
    places = [*(Path(home, "pipelines", root) for home in homes), component / f"{root}.py"]
    return importlib.util.find_spec(root) is not None or any(place.exists() for place in places)


def _check_component(folder: Path) -> None:
    if not folder.is_dir():
        raise OSError(f"the folder {folder} is missing: {REMEDY}")
    if folder.name in COMPONENTS_WITH_WEIGHTS:
        _check_weights(folder)
        _require(folder / "config.json")
    if folder.name == "scheduler":
        _require(folder / "scheduler_config.json")
        predicts = _read(folder / "scheduler_config.json").get("prediction_type", PREDICTION_TYPES[0])
        if predicts not in PREDICTION_TYPES:
            raise OSError(
                f"{folder / 'scheduler_config.json'} is damaged (its prediction_type is {predicts!r}): {REMEDY}"
            )
    if folder.name == "tokenizer":
        _require(folder / "tokenizer_config.json")
        if not any(all((folder / name).is_file() for name in names) for names in VOCABULARIES):
            _require(folder / VOCABULARIES[0][0])
        config = _read(folder / "tokenizer_config.json")
        longest = config.get("model_max_length")  # to which prompts are padded
        if not isinstance(longest, int) or not 0 < longest <= LONGEST_PROMPT:
            fault = (
                f"its model_max_length is {longest!r}"
                if "model_max_length" in config
                else "it has no model_max_length"
            )
            raise OSError(f"{folder / 'tokenizer_config.json'} is damaged ({fault}): {REMEDY}")
    for file in sorted(folder.glob("*.json")):
        _read(file)


def _check_weights(folder: Path) -> None:
    present = sorted(folder.iterdir())
    files = [path for path in present if path.suffix == ".safetensors"]
    pickles = any(path.suffix in PICKLES for path in present)
    if not files and pickles:
        raise OSError(
            f"{folder} has its weights only as a pickle, which could run any code: convert them to safetensors first."
        )
    if not files:
        raise OSError(f"{folder} has no weights: {REMEDY}")
    for file in files:
        try:
            # the first says why a file cannot be opened, the second whether its header and its length are right
            with open(file, "rb"), safe_open(file, "np"):
                pass
        except SafetensorError as error:
            raise OSError(f"{file} is damaged ({error}): {REMEDY}") from error
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        _check_shards(index)


def _check_shards(index: Path) -> None:
    """Refuse a part of the files that an index names; where there is none of them, other files hold the weights."""
    places = _read(index).get("weight_map")
    named = {str(name) for name in places.values()} if isinstance(places, dict) else set()
    missing = {name for name in named if not (index.parent / name).is_file()}
    if missing != named:
        for name in sorted(missing):
            _require(index.parent / name)


def _require(file: Path) -> None:
    if not file.is_file():
        raise OSError(f"{file} is missing: {REMEDY}")


def _read(file: Path) -> dict[str, Any]:
    try:
        return object_in(file)
    except ValueError as error:
        raise OSError(f"{file} is damaged ({error}): {REMEDY}") from error
