"""What all tests share. The environment comes first: the libraries read it when they are imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes test at once; also read by the commands they start

from pathlib import Path

import PIL.Image
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A saved tiny pipeline. Its files are shared by all tests: copy the folder to change it."""
    from tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def datasets_cache(tmp_path_factory, monkeypatch) -> None:
    """The library `datasets` keeps its copies of tables in a folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run of every stage. It is shared by all tests: copy it to change it."""
    from tiny import tiny_config

    from backshan_diffusers.training.run import TrainingRun

    folder = tmp_path_factory.mktemp("finished")
    TrainingRun(tiny_config(folder)).run()
    return folder


@pytest.fixture(scope="session")
def drawn_backs() -> list[PIL.Image.Image]:
    """Three drawn people from behind, 64 x 64 px."""
    from backshan_diffusers.data import load_pairs

    return [pair["back"] for pair in load_pairs("wardrobe", split="validation", size=64, count=3)]
