"""Caches: what they hold, what they depend on, and what happens to killed runs, broken files, shared folders and full
disks."""

import logging
import os
import resource
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny import pair_arrays, tiny_config, tiny_pipeline
from transformers import CLIPTextConfig, CLIPTextModel

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.conditioning import control_image
from backshan_diffusers.data import Pairs, load_pairs, wardrobe
from backshan_diffusers.data.arrays import CHUNK
from backshan_diffusers.data.pairs import UnreadablePairError
from backshan_diffusers.training.augmentation import Augmentation
from backshan_diffusers.training.batches import StepPairs, StepSampler
from backshan_diffusers.training.caching import (
    Edges,
    PairArrays,
    cache_edges,
    cache_latents,
    cache_pairs,
    cache_prompts,
    encode,
    read_attributes,
    read_item_ids,
    storage,
    to_pixels,
)
from backshan_diffusers.training.caching import pairs as cached_pairs
from backshan_diffusers.training.caching.storage import LEFTOVER_AGE
from backshan_diffusers.training.config import ConfigError
from backshan_diffusers.training.run import TrainingRun

COUNT = 2 * CHUNK + 22  # two whole chunks and a part of one


class Greys:
    """Rows of grey pictures, without face masks but for empty ones.

    Args:
        broken: a row that cannot be made.
        pause: seconds that a row takes.
        unreadable: rows that are left out.
    """

    capacity, size, key = COUNT, 32, "greys 1"

    def __init__(self, broken: int | None = None, pause: float = 0.0, unreadable: Sequence[int] = ()):
        self.broken, self.pause, self.unreadable, self.made = broken, pause, unreadable, []

    def row(self, index):
        if index in self.unreadable:
            raise UnreadablePairError(f"grey {index}", "it is not there")
        if index == self.broken:
            raise RuntimeError(f"row {index} is broken")
        time.sleep(self.pause)
        self.made.append(index)
        back, front = (Image.new("RGB", (32, 32), (index, grey, grey)) for grey in (0, 9))
        face = Image.new("L", (32, 32))
        labels = {"item_id": f"grey {index}", "group_id": str(index // 2), "attributes": {}}
        return {"back": back, "front": front, "front_face": face, **labels}

    def rows(self) -> Pairs:
        return Pairs(self, range(COUNT))


def check_greys(pairs):
    assert pairs.backs[:, 3, 5].tolist() == [[index, 0, 0] for index in range(COUNT)]
    assert pairs.fronts[:, 3, 5].tolist() == [[index, 9, 9] for index in range(COUNT)]
    groups = np.arange(COUNT) // 2
    assert np.array_equal(pairs.groups[:, None] == pairs.groups[None], groups[:, None] == groups[None])


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_cached_pairs_are_the_pairs(tmp_path):
    rows = load_pairs("wardrobe", split="validation", size=64, count=CHUNK + 3)
    pairs = cache_pairs(rows, tmp_path, workers=2)
    for index, row in enumerate(rows):
        assert np.array_equal(pairs.backs[index], np.asarray(row["back"]))
        assert np.array_equal(pairs.fronts[index], np.asarray(row["front"]))
    ids = [row["group_id"] for row in rows]
    same = [[a == b for b in ids] for a in ids]
    assert (pairs.groups[:, None] == pairs.groups[None]).tolist() == same
    assert pairs.faces is None
    assert {path.suffix for path in tmp_path.iterdir()} <= {".npy", ".jsonl", ".txt", ".lock"}


def test_pairs_are_made_and_counted_in_words_once(tmp_path, caplog):
    greys = Greys()
    with caplog.at_level(logging.INFO):
        check_greys(cache_pairs(greys.rows(), tmp_path, workers=1))
        check_greys(cache_pairs(greys.rows(), tmp_path, workers=1))
    assert greys.made == list(range(COUNT))
    (said,) = [each for each in caplog.records if each.name == cached_pairs.__name__]
    assert said.levelname == "INFO" and said.getMessage().startswith(f"{COUNT} pairs can be used; left out are 0 that")


def test_a_cache_belongs_to_its_rows_their_masks_and_the_code_that_drew_them(tmp_path, monkeypatch):
    def keys():
        options = [("train", 64, 2), ("validation", 64, 2), ("train", 128, 2), ("train", 64, 3)]
        return [load_pairs("wardrobe", split=split, size=size, count=n).key for split, size, n in options]

    before = keys()
    assert len(set(before)) == 4
    rows = load_pairs("wardrobe", split="train", size=64, count=2)
    made = {cache_pairs(rows, tmp_path, 1, mask_face).key for mask_face in ("none", "blur", "blank")}
    assert len(made) == 3
    monkeypatch.setattr(wardrobe, "DRAWING", wardrobe.DRAWING + 1)
    assert not set(before) & set(keys())
    assert cache_pairs(rows, tmp_path, 1).key not in made


def test_a_killed_run_is_gone_on_from(tmp_path):
    with pytest.raises(RuntimeError, match="row 130"):
        cache_pairs(Greys(broken=130).rows(), tmp_path, workers=1)
    unfinished = {path.name.rpartition("-")[2]: path for path in tmp_path.glob("*.tmp")}
    assert set(unfinished) == {"backs.tmp", "fronts.tmp", "groups.tmp"}
    for path in unfinished.values():  # a chunk that was being written
        path.write_bytes(path.read_bytes() + b'["0", "1')
    greys = Greys()
    check_greys(cache_pairs(greys.rows(), tmp_path, workers=1))
    assert greys.made == list(range(2 * CHUNK, COUNT))
    assert not list(tmp_path.glob("*.tmp"))


def test_pairs_that_a_killed_run_left_out_are_few_of_all_not_of_those_that_it_did_not_reach(tmp_path):
    left_out = (3, 5, 70)
    with pytest.raises(RuntimeError, match="row 130"):
        cache_pairs(Greys(broken=130, unreadable=left_out).rows(), tmp_path, workers=1)
    pairs = cache_pairs(Greys(unreadable=left_out).rows(), tmp_path, workers=1)
    assert pairs.backs[:, 0, 0, 0].tolist() == [index for index in range(COUNT) if index not in left_out]


def test_a_run_that_was_killed_at_its_very_end_only_finishes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cached_pairs.os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
        cache_pairs(Greys().rows(), tmp_path, workers=1)
    greys = Greys()
    check_greys(cache_pairs(greys.rows(), tmp_path, workers=1))
    assert greys.made == []


@pytest.mark.parametrize("harm", ["shorter", "missing", "no journal"])
def test_what_a_killed_run_left_is_not_trusted_blindly(tmp_path, harm):
    with pytest.raises(RuntimeError):
        cache_pairs(Greys(broken=130).rows(), tmp_path, workers=1)
    (fronts,), (groups,) = tmp_path.glob("*-fronts.tmp"), tmp_path.glob("*-groups.tmp")
    if harm == "shorter":
        os.truncate(fronts, fronts.stat().st_size - 1)
    elif harm == "missing":
        fronts.unlink()
    else:
        groups.write_text("[\n")
    greys = Greys()
    check_greys(cache_pairs(greys.rows(), tmp_path, workers=1))
    assert greys.made == list(range(COUNT))


@pytest.mark.parametrize("name", ["backs", "fronts", "groups"])
@pytest.mark.parametrize("harm", ["cut off", "empty", "no array", "another shape"])
def test_broken_pairs_are_made_anew(tmp_path, caplog, name, harm):
    cache_pairs(Greys().rows(), tmp_path, workers=1)
    (path,) = tmp_path.glob(f"*-{name}.npy")
    content = path.read_bytes()
    if harm == "another shape":
        np.save(path, np.load(path)[1:])
    else:
        path.write_bytes({"cut off": content[:-1], "empty": b"", "no array": b"x" * len(content)}[harm])
    check_greys(cache_pairs(Greys().rows(), tmp_path, workers=1))
    (message,) = caplog.messages
    assert "are damaged: they are made anew." in message


@pytest.mark.parametrize("kept", [b"", b"{}\n", None])
def test_labels_that_are_cut_off_are_made_anew(tmp_path, caplog, kept):
    pairs = cache_pairs(Greys().rows(), tmp_path, workers=1)
    (path,) = tmp_path.glob("*-labels.jsonl")
    path.unlink() if kept is None else path.write_bytes(kept)
    cache_pairs(Greys().rows(), tmp_path, workers=1)
    assert read_attributes(pairs, tmp_path) == [{}] * COUNT
    assert read_item_ids(pairs, tmp_path) == [f"grey {index}" for index in range(COUNT)]
    assert "are damaged: they are made anew." in caplog.messages[0]


def test_two_runs_share_the_work(tmp_path, caplog):
    sources, results = [Greys(pause=0.005) for _ in range(2)], {}

    def work(number):
        results[number] = cache_pairs(sources[number].rows(), tmp_path, workers=1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(source.made) for source in sources) == [0, COUNT]
    for pairs in results.values():
        check_greys(pairs)
    assert ["is waited for" in message for message in caplog.messages] == [True]


def test_old_leftovers_are_removed_and_young_ones_are_not(tmp_path):
    with pytest.raises(RuntimeError):
        cache_pairs(Greys(broken=130).rows(), tmp_path, workers=1)
    others = [tmp_path / name for name in ("old-backs.tmp", ".unfinished-0123abcd", "young-backs.tmp")]
    for path in others:
        path.write_bytes(b"x")
    for path in [*others[:2], *tmp_path.glob("*-backs.tmp"), *tmp_path.glob("*-groups.tmp")]:
        if not path.name.startswith("young"):
            os.utime(path, (0, time.time() - LEFTOVER_AGE - 60))
    greys = Greys()
    cache_pairs(greys.rows(), tmp_path, workers=1)
    assert [path.exists() for path in others] == [False, False, True]
    assert len(greys.made) == COUNT - 2 * CHUNK  # its own were not too old


@contextmanager
def room_for(size: int):
    """Within, no file can grow beyond `size` bytes: the same refusal as that of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_what_was_done_stays(tmp_path):
    with room_for(100 * 32 * 32 * 3), pytest.raises(ConfigError) as refused:
        cache_pairs(Greys().rows(), tmp_path, workers=1)
    assert str(refused.value).startswith(f"the cache {tmp_path} cannot be written (File too large): make room")
    assert not list(tmp_path.glob("*.npy"))
    greys = Greys()
    check_greys(cache_pairs(greys.rows(), tmp_path, workers=1))
    assert greys.made == list(range(CHUNK, COUNT))


def test_a_cache_that_is_no_folder_is_one_sentence(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(ConfigError, match="cannot be written .*: make room there, or give another cache_dir"):
        cache_pairs(Greys().rows(), tmp_path / "cache", workers=1)


# --- latents ---------------------------------------------------------------------------------------------------------


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


class Second:
    """The second of two processes; it knows all that a cache asks an `Accelerator`."""

    process_index, num_processes, is_main_process = 1, 2, False

    def wait_for_everyone(self):
        pass


def test_latents_are_cached_by_the_autoencoders_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SHARD", 3)
    pairs, pipeline = pair_arrays(), tiny_pipeline()
    first = cache_latents(pairs, pipeline.vae, tmp_path, Accelerator())
    with torch.no_grad():
        expected = pipeline.vae.encode(to_pixels(pairs.fronts)).latent_dist.mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(first, expected)
    before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    assert torch.equal(first, cache_latents(pairs, pipeline.vae, tmp_path, Accelerator()))
    assert before == {path: path.stat().st_mtime_ns for path in shards(tmp_path)} and len(before) == 3
    pipeline.vae.encoder.conv_in.weight.data.mul_(1.5)
    assert not torch.equal(first, cache_latents(pairs, pipeline.vae, tmp_path, Accelerator()))
    assert len(shards(tmp_path)) == 6  # three of each


def test_scaled_latents_have_a_cache_of_their_own(tmp_path):
    pairs, pipeline = pair_arrays(), tiny_pipeline()
    first = cache_latents(pairs, pipeline.vae, tmp_path, Accelerator())
    pipeline.vae.register_to_config(scaling_factor=2 * pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(cache_latents(pairs, pipeline.vae, tmp_path, Accelerator()), 2 * first)


def test_latents_of_other_pairs_have_a_cache_of_their_own(tmp_path):
    vae, rows = tiny_pipeline().vae, load_pairs("wardrobe", split="train", size=64, count=2)
    made = [
        cache_latents(cache_pairs(rows, tmp_path, 1, how), vae, tmp_path, Accelerator()) for how in ("none", "blank")
    ]
    assert not torch.equal(*made) and len(shards(tmp_path)) == 2


def test_backs_and_fronts_have_caches_of_their_own(tmp_path):
    pairs, vae = pair_arrays(), tiny_pipeline().vae
    for view in ("fronts", "backs"):
        made = cache_latents(pairs, vae, tmp_path, Accelerator(), view)
        torch.testing.assert_close(made, encode(getattr(pairs, view), vae))
    assert len(shards(tmp_path)) == 2


def test_flipped_latents_are_those_of_flipped_fronts(tmp_path):
    pairs, vae = pair_arrays(), tiny_pipeline().vae
    upright, flipped = (cache_latents(pairs, vae, tmp_path, Accelerator(), flipped=flip) for flip in (False, True))
    torch.testing.assert_close(flipped, encode(pairs.fronts[:, :, ::-1], vae))
    torch.testing.assert_close(upright, encode(pairs.fronts, vae))
    assert (flipped - upright.flip(3)).abs().mean() > 0.1 * upright.abs().mean()  # a flip of latents is another thing
    assert len(shards(tmp_path)) == 2


@pytest.mark.parametrize("harm", ["cut off", "empty", "no tensors"])
def test_a_broken_shard_is_made_anew_and_the_others_stay(tmp_path, monkeypatch, caplog, harm):
    monkeypatch.setattr(storage, "SHARD", 3)
    pairs, vae = pair_arrays(), tiny_pipeline().vae
    first = cache_latents(pairs, vae, tmp_path, Accelerator())
    broken = shards(tmp_path)[1]
    before = [path.stat().st_mtime_ns for path in shards(tmp_path)]
    content = broken.read_bytes()
    broken.write_bytes({"cut off": content[:-1], "empty": b"", "no tensors": b"x" * len(content)}[harm])
    assert torch.equal(first, cache_latents(pairs, vae, tmp_path, Accelerator()))
    after = [path.stat().st_mtime_ns for path in shards(tmp_path)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert caplog.messages == [f"the cached latents {broken} are damaged: they are made anew."]


def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    def breaks_off(tensors, path):
        path.write_bytes(b"the first half")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "save_file", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(pair_arrays(), tiny_pipeline().vae, tmp_path, Accelerator())
    assert not shards(tmp_path)


def test_models_whose_weights_have_other_names_are_told_apart():
    layer = torch.nn.Linear(2, 2)
    one, same, other = (torch.nn.ModuleDict({name: layer}) for name in ("down", "down", "up"))
    assert storage.fingerprint(one) == storage.fingerprint(same) != storage.fingerprint(other)


def test_a_disk_that_is_too_full_for_latents_is_one_sentence(tmp_path):
    pairs, vae = pair_arrays(), tiny_pipeline().vae
    with room_for(1000), pytest.raises(ConfigError, match="cannot be written .*File too large.*: make room"):
        cache_latents(pairs, vae, tmp_path, Accelerator())
    assert not shards(tmp_path) and not list(tmp_path.glob(".unfinished-*"))


def test_processes_share_the_shards_out(tmp_path, monkeypatch):
    """A process computes its own shards alone."""
    monkeypatch.setattr(storage, "SHARD", 2)
    pairs, vae = pair_arrays(), tiny_pipeline().vae
    whole = cache_latents(pairs, vae, tmp_path, Accelerator())

    for path in shards(tmp_path)[1::2]:
        path.unlink()
    left = [path.stat().st_mtime_ns for path in shards(tmp_path)]
    assert torch.equal(cache_latents(pairs, vae, tmp_path, Second()), whole)
    every = shards(tmp_path)
    assert [path.stat().st_mtime_ns for path in every[::2]] == left
    for path in every:
        path.unlink()
    with pytest.raises(FileNotFoundError):  # nobody is there who makes the first process's
        cache_latents(pairs, vae, tmp_path, Second())
    assert shards(tmp_path) == every[1::2]


# --- edges -----------------------------------------------------------------------------------------------------------


def shapes(count: int = 8, size: int = 60) -> PairArrays:
    """Pairs of pictures with some edges, whose side is no multiple of eight."""
    pairs = pair_arrays(count, size)
    blurred = {
        view: np.stack([cv2.blur(each, (5, 5)) for each in getattr(pairs, view)]) for view in ("backs", "fronts")
    }
    return replace(pairs, **blurred)


def edges_of(pictures, *thresholds):
    return np.stack([cv2.Canny(np.ascontiguousarray(each), *thresholds) for each in pictures])


def all_of(edges: Edges, count: int = 8):
    return np.stack([edges[index] for index in range(count)])


@pytest.mark.parametrize("view", ["backs", "fronts"])
def test_cached_edges_are_those_of_the_pictures(tmp_path, monkeypatch, view):
    monkeypatch.setattr(storage, "SHARD", 3)
    pairs = shapes()
    expected = edges_of(getattr(pairs, view), 100, 200)
    assert 0.05 < (expected > 0).mean() < 0.95
    assert np.array_equal(all_of(cache_edges(pairs, (100, 200), tmp_path, Accelerator(), view, False)), expected)
    before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    again = all_of(cache_edges(pairs, (100, 200), tmp_path, Accelerator(), view, False))
    assert np.array_equal(again, expected) and again.dtype == np.uint8
    assert before == {path: path.stat().st_mtime_ns for path in shards(tmp_path)} and len(before) == 3


def test_edges_have_a_cache_for_all_that_they_depend_on(tmp_path, monkeypatch):
    pairs, other = shapes(), replace(shapes(), backs=255 - shapes().fronts, key="other pairs")
    wanted = [
        (pairs, (100, 200), "backs", False),
        (pairs, (50, 200), "backs", False),
        (pairs, (100, 120), "backs", False),
        (pairs, (100, 200), "fronts", False),
        (pairs, (100, 200), "backs", True),
        (other, (100, 200), "backs", False),
    ]
    for number, (of, thresholds, view, flipped) in enumerate(wanted, 1):
        pictures = getattr(of, view)[:, :, ::-1] if flipped else getattr(of, view)
        made = all_of(cache_edges(of, thresholds, tmp_path, Accelerator(), view, flipped))
        assert np.array_equal(made, edges_of(pictures, *thresholds))
        assert len(shards(tmp_path)) == number
    upright = edges_of(pairs.backs, 100, 200)
    flipped = edges_of(pairs.backs[:, :, ::-1], 100, 200)
    assert not np.array_equal(upright[:, :, ::-1], flipped)  # a flip of edges is another thing
    monkeypatch.setattr(cv2, "__version__", "another")
    cache_edges(pairs, (100, 200), tmp_path, Accelerator(), "backs", False)
    assert len(shards(tmp_path)) == number + 1


def test_broken_edges_are_made_anew_and_processes_share_them_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(storage, "SHARD", 2)
    pairs = shapes()
    whole = all_of(cache_edges(pairs, (100, 200), tmp_path, Accelerator(), "backs", False))
    before = [path.stat().st_mtime_ns for path in shards(tmp_path)]
    shards(tmp_path)[3].write_bytes(shards(tmp_path)[3].read_bytes()[:-1])
    shards(tmp_path)[1].unlink()
    made = all_of(cache_edges(pairs, (100, 200), tmp_path, Second(), "backs", False))
    assert np.array_equal(made, whole)
    after = [path.stat().st_mtime_ns for path in shards(tmp_path)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, False]
    assert caplog.messages == [f"the cached edges {shards(tmp_path)[3]} are damaged: they are made anew."]


def test_edges_are_a_map_of_a_file_of_one_bit_a_pixel(tmp_path):
    """What is written to the file afterwards is read."""
    edges = cache_edges(shapes(8, 64), (100, 200), tmp_path, Accelerator(), "backs", False)
    (path,) = shards(tmp_path)
    assert 8 * 64 * 8 < path.stat().st_size < 8 * 64 * 8 + 200
    with open(path, "r+b") as file:
        file.seek(-64 * 8, os.SEEK_END)
        file.write(b"\xff" * 64 * 8)
    assert (edges[7] == 255).all() and not (edges[6] == 255).all()


def stage_batch(folder, conditioning, mirror, pairs, **settings):
    """A batch of the last stage, and what makes it."""
    objective = {"objective": {"preset": "paper"}, "condition_dropout": 0.4}
    run = TrainingRun(tiny_config(folder, batch_size=8, **{**objective, **settings}))
    pipeline, sampler = tiny_pipeline(conditioning, mirror=mirror), StepSampler(0, "joint")
    make_batch = run.build_stage("joint", pipeline, pairs)[1]
    return lambda: make_batch(1, sampler)


def controls_of(step_pairs, conditioning, mirror, shown):
    """The controls of backs and of fronts by their definition."""
    backs = [each if seen else np.full_like(each, 255) for each, seen in zip(step_pairs.backs, shown, strict=True)]
    fronts = step_pairs.fronts
    both = [[control_image(each, conditioning, mirror) for each in backs]]
    both += [[control_image(each, conditioning, False) for each in fronts]]
    return [torch.stack(each) for each in both]


@pytest.mark.parametrize("conditioning", ["canny", "canny+rgb"])
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_controls_from_cached_edges_are_bit_for_bit_those_of_the_pictures(tmp_path, conditioning, mirror, flip):
    pairs, sampler = shapes(8, 64), StepSampler(0, "joint")
    batch = stage_batch(tmp_path, conditioning, mirror, pairs, flip=flip)()
    assert len(list((tmp_path / "cache").glob("*-edges-*"))) == (4 if flip else 2)
    step_pairs = StepPairs(pairs, batch["items"].numpy(), Augmentation(flip=flip), sampler, 1)
    assert set(step_pairs.flipped.tolist()) == ({True, False} if flip else {False})
    assert set(batch["shown"].tolist()) == {True, False}
    backs, fronts = controls_of(step_pairs, conditioning, mirror, batch["shown"].tolist())
    assert torch.equal(batch["back_control"], backs) and torch.equal(batch["front_control"], fronts)


def test_edges_are_not_looked_for_in_the_step(tmp_path):
    """Pictures that change after their edges were kept change no control that is made of edges alone."""
    pairs = shapes(8, 64)
    make_batch = stage_batch(tmp_path, "canny", True, pairs)
    before = make_batch()
    pairs.backs[:], pairs.fronts[:] = 0, 0
    after = make_batch()
    for name in ("back_control", "front_control"):
        assert torch.equal(before[name], after[name]) and before[name].any()


@pytest.mark.parametrize(
    ("conditioning", "settings", "kept"),
    [
        ("canny", {}, 2),
        ("canny", {"objective": {"preset": "mse"}}, 1),  # no front is compared
        ("rgb", {}, 0),
        ("canny", {"colour_jitter": (0.2, 0.0, 0.0, 0.0)}, 0),
        ("canny", {"affine": (5.0, 0.0, 0.0)}, 0),
    ],
)
def test_edges_are_kept_only_where_they_are_needed(tmp_path, conditioning, settings, kept):
    pairs, sampler = shapes(8, 64), StepSampler(0, "joint")
    batch = stage_batch(tmp_path, conditioning, True, pairs, condition_dropout=0.0, **settings)()
    assert len(list((tmp_path / "cache").glob("*-edges-*"))) == kept
    changes = {name: value for name, value in settings.items() if name != "objective"}
    step_pairs = StepPairs(pairs, batch["items"].numpy(), Augmentation(**changes), sampler, 1)
    backs, fronts = controls_of(step_pairs, conditioning, True, [True] * 8)
    assert torch.equal(batch["back_control"], backs)
    assert "front_control" not in batch or torch.equal(batch["front_control"], fronts)


def test_a_batch_of_edges_with_thresholds_of_its_models_config(tmp_path):
    pairs = shapes(8, 64)
    run = TrainingRun(tiny_config(tmp_path, batch_size=8, condition_dropout=0.0))
    pipeline = tiny_pipeline("canny", canny_low_threshold=300, canny_high_threshold=400)
    batch = run.build_stage("joint", pipeline, pairs)[1](0, StepSampler(0, "joint"))
    expected = [edges_of([pairs.fronts[item]], 300, 400)[0] / 255 for item in batch["items"].tolist()]
    assert np.array_equal(batch["front_control"][:, 1].numpy(), expected)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_encoded_once_for_all_that_they_depend_on(tmp_path):
    prompts, pipeline = ["seen from ahead", ""], tiny_pipeline()
    with torch.no_grad():
        expected = pipeline.encode_prompt(prompts, torch.device("cpu"), 1, False)[0]
    first = cache_prompts(prompts, pipeline, tmp_path, Accelerator())
    assert torch.equal(first, expected) and not first.requires_grad
    (path,) = shards(tmp_path)
    before = path.stat().st_mtime_ns
    assert torch.equal(cache_prompts(prompts, pipeline, tmp_path, Accelerator()), expected)
    pipeline.save_pretrained(tmp_path / "saved")
    reopened = BackToFrontPipeline.from_pretrained(tmp_path / "saved")
    reopened.encode_prompt = None  # not needed
    assert torch.equal(cache_prompts(prompts, reopened, tmp_path, Accelerator()), expected)
    assert path.stat().st_mtime_ns == before


def other_prompts(pipeline):
    return ["seen from behind", ""]


def other_weights(pipeline):
    pipeline.text_encoder.get_parameter("final_layer_norm.bias").data.add_(0.5)


def other_activation(pipeline):
    """A change of the config alone."""
    weights = pipeline.text_encoder.state_dict()
    changed = CLIPTextConfig.from_dict({**pipeline.text_encoder.config.to_dict(), "hidden_act": "relu"})
    pipeline.text_encoder = CLIPTextModel(changed).eval()
    pipeline.text_encoder.load_state_dict(weights)


def other_padding(pipeline):
    """Another tokenizer for the same text."""
    pipeline.tokenizer.pad_token = "!"


@pytest.mark.parametrize("change", [other_prompts, other_weights, other_activation, other_padding])
def test_prompts_are_encoded_anew_where_something_differs(tmp_path, change):
    prompts = ["seen from ahead", ""]
    first = cache_prompts(prompts, tiny_pipeline(), tmp_path, Accelerator())
    pipeline = tiny_pipeline()  # another one, because a pipeline remembers its last prompt
    prompts = change(pipeline) or prompts
    second = cache_prompts(prompts, pipeline, tmp_path, Accelerator())
    with torch.no_grad():
        assert torch.equal(second, pipeline.encode_prompt(prompts, torch.device("cpu"), 1, False)[0])
    assert not torch.equal(first, second) and len(shards(tmp_path)) == 2
