"""The benchmark scripts, end to end at tiny scale, and the files from which the docs get their numbers."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from diffusers import ControlNetModel, StableDiffusionPipeline
from tiny import tiny_pipeline

from backshan_diffusers import MINI
from backshan_diffusers.data import load_pairs
from backshan_diffusers.data.wardrobe import Wardrobe, describe
from backshan_diffusers.data.wardrobe.tops import CLOSURES, COLLARS
from backshan_diffusers.evaluation import METRICS, GeneratedFront, NearestTrainingFront, presence
from backshan_diffusers.objective import PRESETS
from backshan_diffusers.training.lora import add_lora, save_lora

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SYSTEMS = ["generated", "mirrored back", "nearest training front", "blank back"]
IDENTITY = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]  # for git commit


@pytest.fixture(autouse=True)
def scripts_find_each_other(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def script(name):
    return importlib.import_module(name)


def refused(name, capsys, *arguments):
    """What the script says when it refuses its arguments."""
    with pytest.raises(SystemExit) as stop:
        script(name).main(list(arguments))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def test_mini_quality_end_to_end(model, tmp_path, capsys):
    paths = {name: tmp_path / f"quality.{name}" for name in ("json", "items", "sheet")}
    arguments = ["--model", model, "--count", "16", "--train-count", "5", "--batch-size", "3", "--steps", "1"]
    arguments += [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    script("mini_quality").main([*arguments, "--seed", "7"])
    assert sorted(os.listdir(tmp_path)) == ["quality.items", "quality.json", "quality.sheet"]

    report = json.loads(paths["json"].read_text())
    assert report.keys() == {"command", "commit", "modified", "date", "seed", "machine", "results", "tables"}
    assert report["seed"] == 7
    assert report["command"].endswith("--seed 7")
    results = report["results"]
    assert (results["count"], results["split"], results["train_count"], results["steps"]) == (16, "test", 5, 1)
    assert list(results["systems"]) == SYSTEMS

    records = [json.loads(line) for line in paths["items"].read_text().splitlines()]
    rows = load_pairs("wardrobe", split="test", size=64, count=16)
    assert [record["item_id"] for record in records] == [row["item_id"] for row in rows]
    for system in SYSTEMS:
        for key in METRICS:
            mean = sum(record["systems"][system][key] for record in records) / 16
            assert results["systems"][system][key]["mean"] == pytest.approx(mean)
    mirrored = np.asarray(rows[1]["back"])[:, ::-1]
    assert records[1]["systems"]["mirrored back"]["head_l1"] == METRICS["head_l1"].of(mirrored, rows[1])

    remembered = NearestTrainingFront(load_pairs("wardrobe", split="train", size=64, count=5))([rows[1]])[0]
    pipeline = tiny_pipeline()
    expected = {"nearest training front": remembered}
    for name, blank in (("generated", False), ("blank back", True)):
        expected[name] = GeneratedFront(pipeline, 7, 1, blank)([rows[1]])[0]
    assert not np.array_equal(expected["generated"], expected["blank back"])
    for name, front in expected.items():
        for key, metric in METRICS.items():
            assert records[1]["systems"][name][key] == pytest.approx(metric.of(front, rows[1]), abs=1e-4)
    differs = [record["systems"]["generated"] != record["systems"]["blank back"] for record in records]
    assert all(differs)

    without, true_front = Wardrobe("test", 64).fronts_without(1), np.asarray(rows[1]["front"])
    assert records[1]["presences"].keys() <= without.keys()
    for thing, of in records[1]["presences"].items():
        assert of["mirrored back"] == pytest.approx(presence(mirrored, true_front, without[thing]))
        assert of["nearest training front"] == pytest.approx(presence(remembered, true_front, without[thing]))
    presences = results["presences"]
    for total, kinds in (("closures, all", CLOSURES), ("collars, all", COLLARS)):
        strengths = [
            record["presences"][kind]["mirrored back"]
            for record in records
            for kind in kinds
            if kind in record["presences"]
        ]
        assert presences[total]["mirrored back"]["items"] == len(strengths) > 1
        assert presences[total]["mirrored back"]["mean"] == pytest.approx(np.mean(strengths))
    assert presences["face"]["generated"]["items"] > 8
    sides, strengths = (
        {row[0]: row[1:] for row in table["rows"]}
        for table in report["tables"]
        if table["name"] in ("sides", "presences")
    )
    face = [f"{of['mean']:.2f} [{of['low']:.2f}, {of['high']:.2f}]" for of in presences["face"].values()]
    assert strengths["face"] == [str(presences["face"]["generated"]["items"]), *face]
    bag = [
        f"{100 * of['mean']:.0f} % [{100 * of['low']:.0f}, {100 * of['high']:.0f}]"
        for of in results["sides"]["bag"].values()
    ]
    assert sides["bag"] == [str(results["sides"]["bag"]["generated"]["items"]), *bag]

    printed = capsys.readouterr().out
    for table in report["tables"]:
        assert table["title"] in printed
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    first = report["tables"][0]
    value = results["systems"]["mirrored back"]["person_l1"]
    assert first["rows"][1][:2] == ["mirrored back", f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"]
    assert [table["name"] for table in report["tables"]] == ["systems", "differences", "sides", "presences"]

    with PIL.Image.open(paths["sheet"]) as sheet:
        assert sheet.width == 12 * 64 + 13 * 4  # four items of three pictures in a row
        assert sheet.height > 4 * 64


def test_a_model_that_was_trained_with_captions_is_also_told_by_them(model, tmp_path):
    told = shutil.copytree(model, tmp_path / "told")
    (told / "training_config.yaml").write_text('captions: ["glasses=true: glasses", "beard: {beard} beard"]\n')
    arguments = ["--count", "4", "--train-count", "2", "--steps", "1", "--items", str(tmp_path / "items")]
    script("mini_quality").main(["--model", str(told), *arguments])
    rows = load_pairs("wardrobe", split="test", size=64, count=4)
    pipeline, said = tiny_pipeline(), []
    for row, line in zip(rows, (tmp_path / "items").read_text().splitlines(), strict=True):
        worn = row["attributes"]
        words = {"glasses": worn["glasses"], f"{worn['beard']} beard": worn["beard"] != "none"}
        said.append(", ".join([pipeline.controlnet.config.default_prompt, *(each for each in words if words[each])]))
        front = GeneratedFront(pipeline, 0, 1, prompt_of=lambda row: said[-1])([row])[0]
        value = json.loads(line)["systems"]["generated, told by captions"]["person_l1"]
        assert value == pytest.approx(METRICS["person_l1"].of(front, row), abs=1e-4)
    assert len({*said}) > 1


def test_mini_is_measured_by_its_name_as_by_its_folder(tmp_path):
    arguments = ["--count", "2", "--train-count", "2", "--steps", "1", "--json", str(tmp_path / "json")]
    measured = []
    for model in ("mini", MINI):
        script("mini_quality").main(["--model", model, *arguments])
        measured.append(json.loads((tmp_path / "json").read_text())["results"])
    assert measured[0] == measured[1]
    assert measured[0]["weights_sha256"] == script("mini_quality").fingerprint(Path(MINI))
    assert "generated, told by captions" in measured[0]["systems"]


def test_the_sheet_is_chosen_by_index(model, tmp_path, monkeypatch):
    quality = script("mini_quality")
    shown = []
    monkeypatch.setattr(quality, "SHEET_ITEMS", 3)
    monkeypatch.setattr(quality, "sheet", lambda triples: shown.extend(triples) or PIL.Image.new("RGB", (1, 1)))
    arguments = ["--model", model, "--count", "5", "--train-count", "2", "--steps", "1", "--batch-size", "5"]
    quality.main([*arguments, "--sheet", str(tmp_path / "sheet.png")])
    rows = load_pairs("wardrobe", split="test", size=64, count=5)
    assert [triple[0] for triple in shown] == [rows[index]["back"] for index in (0, 2, 4)]
    assert [triple[2] for triple in shown] == [rows[index]["front"] for index in (0, 2, 4)]
    assert all(triple[1] not in triple[::2] for triple in shown)


def test_the_nearest_front_is_sought_among_all_pairs_of_the_recipe():
    recipe = yaml.safe_load((BENCHMARKS.parent / "examples" / "configs" / "mini-crisp.yaml").read_text())
    _, options = script("mini_quality").parse([])
    assert options.train_count == recipe["train_pairs"]


def test_a_verdict_needs_an_interval_without_zero_and_knows_the_direction():
    cell = script("mini_quality").difference_cell
    win_rate = {"mean": 0.9}
    lower = {"mean": -0.05, "low": -0.06, "high": -0.04, "win_rate": win_rate}
    assert cell("person_l1", lower, True) == "-0.0500 [-0.0600, -0.0400] better, 90%"
    assert cell("person_ssim", lower, False) == "-0.050 [-0.060, -0.040] worse"
    across = {"mean": 0.05, "low": -0.01, "high": 0.11, "win_rate": win_rate}
    assert cell("person_l1", across, False) == "+0.0500 [-0.0100, +0.1100] undecided"
    higher = {"mean": 0.05, "low": 0.01, "high": 0.11, "win_rate": win_rate}
    assert cell("person_l1", higher, False).endswith("worse")
    assert cell("person_ssim", higher, False).endswith("better")


def test_subsets_hold_what_they_say():
    quality = script("mini_quality")
    reader = Wardrobe("test", 64)
    rows = [{"item_id": index, "attributes": describe(*reader.scene(index)[:3])} for index in range(40)]
    chosen = {
        name: {row["item_id"] for row in rows if holds(row["attributes"])} for name, holds in quality.SUBSETS.items()
    }
    everything = {row["item_id"] for row in rows}
    for family in (
        ("top is plain", "top is patterned"),
        ("dress", "top worn open", "top closed, with a bottom"),
        ("plain backdrop", "gradient backdrop", "cluttered backdrop"),
    ):
        assert set.union(*(chosen[name] for name in family)) == everything
        assert sum(len(chosen[name]) for name in family) == 40
        assert all(chosen[name] for name in family)
    one = {"item_id": "a", "group_id": "a", "attributes": rows[0]["attributes"]}
    assert quality.subsets([one] * (quality.SMALLEST_SUBSET - 1), seed=0) == {}


def test_framing_end_to_end(model, tmp_path, capsys, monkeypatch):
    framing = script("framing")
    monkeypatch.setattr(framing, "SHOWN", 1)
    paths = {name: tmp_path / f"framing.{name}" for name in ("json", "sheet")}
    arguments = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    framing.main(["--model", model, "--count", "2", "--seed", "7", *arguments])
    report = json.loads(paths["json"].read_text())
    results = report["results"]
    assert results["weights_sha256"] == script("mini_quality").fingerprint(Path(model))
    assert list(results["framings"]) == list(framing.FRAMINGS)
    rows = load_pairs("wardrobe", split="test", size=64, count=2)
    mirrored = [METRICS["head_l1"].of(np.asarray(row["back"])[:, ::-1], row) for row in rows]
    first = results["framings"]["as wardrobe draws it"]["systems"]
    assert first["mirrored back"]["head_l1"]["mean"] == pytest.approx(np.mean(mirrored))
    made = [GeneratedFront(tiny_pipeline(), 7)([row])[0] for row in rows]
    ours = np.mean([METRICS["person_l1"].of(front, row) for front, row in zip(made, rows)])
    assert first["generated"]["person_l1"]["mean"] == pytest.approx(ours, abs=1e-4)
    assert report["tables"][0]["title"] in capsys.readouterr().out
    assert all(len(row) == len(report["tables"][0]["columns"]) for row in report["tables"][0]["rows"])
    with PIL.Image.open(paths["sheet"]) as sheet:
        assert sheet.width == 3 * 64 + 4 * 4
        assert sheet.height > len(framing.FRAMINGS) * 64
    assert "--count: must be at least 2" in refused("framing", capsys, "--model", model, "--count", "1")


def test_a_framing_moves_both_views_and_their_masks():
    framing = script("framing")
    drawn = Wardrobe("test", 64).row(0)
    assert framing.Reframed("test", 64, framing.Framing()).row(0) == drawn
    moved = framing.Reframed("test", 64, framing.Framing(0.5, right=0.125, down=-0.0625)).row(0)

    def box(mask):
        return np.array(mask.point(lambda level: 255 * (level > 127)).getbbox())

    for view, right in (("back", 8), ("front", -8)):
        expected = 32 + (box(drawn[f"{view}_person"]) - 32) / 2 + [right, -4, right, -4]
        assert np.abs(box(moved[f"{view}_person"]) - expected).max() <= 1
        corners = np.asarray(drawn[view])[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert np.array_equal(np.asarray(moved[view])[[0, 0, -1, -1], [0, -1, 0, -1]], corners)
    inside = np.asarray(moved["front_person"]) > 127
    flipped = np.asarray(moved["back_person"])[:, ::-1] > 127
    assert (inside & flipped).sum() > 0.8 * (inside | flipped).sum()


def test_generate_speed_end_to_end(model, tmp_path, capsys):
    path = tmp_path / "speed.json"
    arguments = [
        "--model",
        model,
        "--steps",
        "1",
        "4",
        "--batch-sizes",
        "1",
        "2",
        "--repeats",
        "2",
        "--json",
        str(path),
    ]
    script("generate_speed").main(arguments)
    results = json.loads(path.read_text())["results"]
    assert [(each["steps"], each["batch_size"]) for each in results["timings"]] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    for timing in results["timings"]:
        assert 0 < timing["fastest_s"] <= timing["median_s"] <= timing["slowest_s"] < 60
    assert results["timings"][2]["fastest_s"] > results["timings"][0]["fastest_s"]
    assert 50 < results["peak_memory_before_loading_mib"] <= results["peak_memory_mib"] < 50_000
    printed = capsys.readouterr().out
    assert "median / first" in printed
    assert len(printed.splitlines()) == 7


def test_the_first_call_is_not_counted(drawn_backs):
    assert len(script("generate_speed").time_calls(tiny_pipeline(), drawn_backs[:1], 1, 2)) == 2


def test_times_are_for_one_image():
    values = script("generate_speed").per_image([8.0, 2.0, 4.0], 4)
    assert values == {"median_s": 1.0, "fastest_s": 0.5, "slowest_s": 2.0}


@pytest.mark.parametrize("name", ["mini_quality", "generate_speed"])
def test_unusable_arguments_are_refused_before_anything_is_measured(name, model, tmp_path, capsys):
    assert "is not a whole number from 1 up" in refused(name, capsys, "--steps", "0")
    assert "is not a whole number from 1 up" in refused(name, capsys, "--steps", "ten")
    assert "name a file in a folder that exists" in refused(name, capsys, "--json", str(tmp_path / "no" / "file.json"))
    assert "name a file in a folder that exists" in refused(name, capsys, "--json", str(tmp_path))
    assert "give the folder of a saved pipeline" in refused(name, capsys, "--model", str(tmp_path))
    assert "unrecognized arguments" in refused(name, capsys, "--colour")


def test_unusable_counts_are_refused(model, capsys):
    assert "--count: must be at least 2" in refused("mini_quality", capsys, "--model", model, "--count", "1")
    assert "count must be" in refused("mini_quality", capsys, "--model", model, "--count", "999999999")
    assert "choose from" in refused("mini_quality", capsys, "--model", model, "--split", "train")


def test_a_stock_controlnet_is_refused(tmp_path, capsys):
    pipeline = tiny_pipeline()
    channels = pipeline.controlnet.config.conditioning_embedding_out_channels
    stock = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=channels)
    pipeline.register_modules(controlnet=stock)
    pipeline.save_pretrained(tmp_path)
    assert "does not record how it reads a picture" in refused("generate_speed", capsys, "--model", str(tmp_path))


def test_a_model_is_measured_with_its_adapters(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "plain")
    pipeline.save_pretrained(tmp_path / "adapted")
    adapters = add_lora(pipeline.unet, 2)
    for weight in adapters.parameters():
        torch.nn.init.normal_(weight)
    save_lora(pipeline.unet, tmp_path / "adapted")
    parser = script("report").parser_of_fronts("any.py", "", 2)
    (plain, _), (adapted, _) = (
        script("report").open_pipeline(parser, str(tmp_path / name)) for name in ("plain", "adapted")
    )
    assert (plain.get_active_adapters(), len(adapted.get_active_adapters())) == ([], 1)
    fingerprint = script("mini_quality").fingerprint
    assert fingerprint(tmp_path / "plain") != fingerprint(tmp_path / "adapted")


def test_scripts_run_from_a_shell():
    environment = dict(os.environ, PYTHONPATH=str(BENCHMARKS.parent), OMP_NUM_THREADS="1")
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "update_docs.py"), "no-such-file.md"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr == "update_docs.py: no-such-file.md is not a file: name Markdown files.\n"


def test_wardrobe_speed_counts_every_pair_it_drew(tmp_path, capsys):
    path = tmp_path / "speed.json"
    arguments = ["--sizes", "64", "--processes", "1", "2", "--pairs", "5", "--repeats", "2"]
    script("wardrobe_speed").main([*arguments, "--json", str(path)])
    rounds = json.loads(path.read_text())["results"]["rounds"]
    assert [(each["size_px"], each["processes"]) for each in rounds] == [(64, 1), (64, 2)]
    assert all(len(each["pairs_per_second"]) == 2 and min(each["pairs_per_second"]) > 0 for each in rounds)
    assert "medians of 2 rounds of 5 pairs" in capsys.readouterr().out


def test_wardrobe_speed_refuses_a_size_that_cannot_be_drawn(capsys):
    assert "size must be a whole number from 64 to 1024" in refused("wardrobe_speed", capsys, "--sizes", "2000")


def test_reading_speed_counts_every_pair_it_read(tmp_path, capsys, drawn_backs):
    (tmp_path / "train").mkdir()
    for item, angle in (("a", 0), ("b", 180)):
        for view, picture in zip(("back", "front"), drawn_backs, strict=False):
            picture.rotate(angle).save(tmp_path / "train" / f"{item}_{view}.png")
    arguments = ["--source", "folder", "--path", str(tmp_path), "--size", "32", "--processes", "1", "--repeats", "2"]
    (tmp_path / "out").mkdir()
    script("reading_speed").main([*arguments, "--json", str(tmp_path / "out" / "speed.json")])
    results = json.loads((tmp_path / "out" / "speed.json").read_text())["results"]
    assert (results["source"], results["size_px"]) == ("folder", 32)
    (measured,) = results["rounds"]
    assert measured["processes"] == 1 and len(measured["pairs_per_second"]) == 2
    assert "folder at 32 px, medians of 2 rounds of 2 pairs" in capsys.readouterr().out


def test_reading_speed_refuses_what_load_pairs_refuses(capsys):
    assert "folder needs a path" in refused("reading_speed", capsys, "--source", "folder", "--size", "32")


def test_step_cost_measures_variants_beside_the_public_step(capsys, tmp_path, monkeypatch):
    target, benchmark = tmp_path / "cost.json", script("step_cost")
    monkeypatch.setattr(benchmark, "VARIANTS", {name: benchmark.VARIANTS[name] for name in ("public", "mse")})
    options = ["--model", "mini", "--batch-size", "2", "--rounds", "1", "--precision", "no"]
    benchmark.main([*options, "--json", str(target)])
    variants = json.loads(target.read_text())["results"]["variants"]
    assert list(variants) == ["public", "mse"]
    assert all(each["peak_memory_mib"] > 100 and each["median_s"] > 0 for each in variants.values())
    # the public step encodes picture and prompt every time
    assert variants["mse"]["gigaflops"] < variants["public"]["gigaflops"]
    assert "of the public step" in capsys.readouterr().out


def test_step_cost_counts_what_each_of_our_variants_computes():
    benchmark = script("step_cost")
    options = benchmark.parse(["--model", "mini", "--batch-size", "2", "--precision", "no"])
    names = [name for name in benchmark.VARIANTS if name != "public"]
    operations = {name: benchmark.gigaflops(benchmark.our_step(options, name)) for name in names}
    assert names == ["mse", "paper", "backshan", "watched"]
    assert operations["mse"] < operations["watched"] < operations["backshan"] <= operations["paper"]


@pytest.mark.parametrize("conditioning", ["canny+rgb", "latents"])
def test_a_random_step_gives_a_controlnet_what_it_reads(conditioning):
    trainer = script("training_step").random_trainer(
        tiny_pipeline(conditioning), PRESETS["backshan"], None, "no", batch_size=2
    )
    assert trainer.advance()[0]["loss"].isfinite()


def test_full_size_runs_both_shipped_stages_from_folders_as_they_are_published(capsys, tmp_path):
    pipeline = tiny_pipeline()
    parts = {name: part for name, part in pipeline.components.items() if name not in ("controlnet", "image_encoder")}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path / "base")
    controlnet = ControlNetModel.from_unet(pipeline.unet)
    controlnet.save_pretrained(tmp_path / "controlnet")
    target = tmp_path / "full.json"
    folders = ["--base", str(tmp_path / "base"), "--controlnet", str(tmp_path / "controlnet")]
    script("full_size").main(["--steps", "2", *folders, "--json", str(target)])
    stages = json.loads(target.read_text())["results"]["stages"]
    assert [(each["max_steps"], each["batch_size"]) for each in stages.values()] == [(50_000, 8), (4_000, 8)]
    for each in stages.values():
        assert each["pairs_per_second"] > 0 and each["peak_memory_mib"] > 100
        assert each["hours"]["A100"] * 3600 * 312e12 * 0.4 == pytest.approx(each["step_flops"] * each["max_steps"])
    assert stages["sd15-stage1"]["step_flops"] < stages["sd15-stage2"]["step_flops"]  # where the decoder learns too
    printed = capsys.readouterr().out
    assert "hours of one A100" in printed and "pairs a second" in printed
    assert "belong together" in refused("full_size", capsys, *folders[:2])


def test_contrast_memory_compares_all_pairs_both_ways(capsys, tmp_path):
    target = tmp_path / "memory.json"
    script("contrast_memory").main(["--pairs", "4", "--micro-batch", "2", "--json", str(target)])
    steps = json.loads(target.read_text())["results"]["steps"]
    assert [(each["pairs"], each["way"]) for each in steps] == [(4, "one batch"), (4, "cached")]
    assert all(each["peak_mib"] >= each["before_mib"] > 0 for each in steps)
    assert "peak in MiB" in capsys.readouterr().out


def test_contrast_memory_needs_whole_micro_batches(capsys):
    assert "--pairs 6 is no multiple of --micro-batch 4" in refused(
        "contrast_memory", capsys, "--pairs", "6", "--micro-batch", "4"
    )


MAKEFILE = """
demo test: .venv/ready
	test ! -e result
	test -d a.egg-info
	test "$$PIP_NO_CACHE_DIR [$$PYTHONPATH]" = "1 []"
	touch result
	echo $@ >> {log}
.venv/ready:
	mkdir .venv a.egg-info
	sleep 0.5
	{python} -c 'b"1" * (200 << 20)'
	echo install >> {log}
	touch $@
"""


@pytest.fixture
def repository(tmp_path):
    """A folder with the script and a Makefile, both committed, and without one afterwards."""
    folder = tmp_path / "repository"
    (folder / "benchmarks").mkdir(parents=True)
    for name in ("fresh_clone.py", "report.py"):
        shutil.copy(BENCHMARKS / name, folder / "benchmarks")
    (folder / "Makefile").write_text(MAKEFILE.format(log=tmp_path / "log", python=sys.executable))
    for command in (["init", "-q"], ["add", "."], [*IDENTITY, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "Makefile").write_text("")  # what is not committed is not in a clone
    return folder


def fresh_clone(repository, *arguments, **variables):
    """Run the script of a repository as from a shell; nothing may be left in the folder for temporary files."""
    temporary = repository.parent / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": "/elsewhere", **variables}
    command = [sys.executable, str(repository / "benchmarks" / "fresh_clone.py"), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert os.listdir(temporary) == []
    return run


def test_fresh_clone_measures_the_commit_with_and_without_the_installation(repository, tmp_path):
    path = tmp_path / "clone.json"
    run = fresh_clone(repository, "--targets", "demo", "test", "--json", str(path))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "log").read_text().split() == ["install", "demo", "demo", "install", "test", "test"]

    report = json.loads(path.read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout
    assert report["results"]["commit"] == report["commit"] == commit.strip()
    runs = report["results"]["runs"]
    assert [(each["target"], each["installs"]) for each in runs] == [
        *(("demo", True), ("demo", False)),
        *(("test", True), ("test", False)),
    ]
    for each in runs:
        assert (0.5 if each["installs"] else 0) < each["seconds"] < 60
        assert (each["peak_memory_mib"] > 200) is each["installs"]  # so one run's peak is not in the next one's
    (table,) = report["tables"]
    assert [row[:2] for row in table["rows"]][:2] == [["demo", "with downloads"], ["demo", "there already"]]
    assert "largest single process" in table["columns"][3]
    assert run.stdout.splitlines()[0] == f"`make` in a fresh clone of {commit[:7]}"
    assert len(run.stdout.splitlines()) == 7


def test_fresh_clone_leaves_other_repositories_alone(repository, tmp_path):
    """As where it is started from a hook: git then names the repository in variables."""
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    subprocess.run(["git", *IDENTITY, "commit", "-q", "--allow-empty", "-m", "mine"], cwd=other, check=True)
    (other / "untracked").touch()
    head = (other / ".git" / "HEAD").read_text()
    clone = ["import sys; sys.path.insert(0, 'benchmarks'); import fresh_clone, pathlib"]
    clone += ["commit = fresh_clone.git_state()[0]", f"import os; os.environ.update(GIT_DIR={str(other / '.git')!r})"]
    clone += [f"os.environ.update(GIT_WORK_TREE={str(other)!r})"]
    clone += ["print(len(list(fresh_clone.measure(fresh_clone.ROOT, commit, 'demo'))))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(clone)], cwd=repository, capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr
    assert (other / ".git" / "HEAD").read_text() == head and (other / "untracked").exists()


def test_fresh_clone_says_what_failed(repository, tmp_path):
    subprocess.run(["git", *IDENTITY, "commit", "-q", "-a", "-m", "no rules"], cwd=repository, check=True)
    path = tmp_path / "clone.json"
    run = fresh_clone(repository, "--json", str(path))
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == "fresh_clone.py: `make demo` ended with 2: what it printed above says why."
    assert len(run.stderr.splitlines()) > 1
    assert not path.exists()


def test_fresh_clone_needs_a_commit_and_make(repository, tmp_path, capsys):
    (tmp_path / "git").symlink_to(shutil.which("git"))
    run = fresh_clone(repository, PATH=str(tmp_path))
    assert (run.returncode, run.stderr) == (2, "fresh_clone.py: make was not found: install it.\n")
    (tmp_path / "temporary").rmdir()
    shutil.rmtree(repository / ".git")
    run = fresh_clone(repository, GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert run.returncode == 2
    assert "has no commit to clone: run this in a git repository" in run.stderr
    assert "choose from" in refused("fresh_clone", capsys, "--targets", "clean")


def test_a_report_says_how_it_came_about_and_names_no_folder_elsewhere(tmp_path, monkeypatch, capsys):
    report = script("report")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(BENCHMARKS / "mini_quality.py"), raising=False)
    target = tmp_path / "report.json"
    table = report.Table("numbers", "some numbers", ["name", "value"], [["one", "1"], ["eleven", "11"]])
    inside = str(BENCHMARKS / "results" / "x y.json")
    report.publish(
        [table], {"eleven": 11}, ["--json", inside, "--model", "/nowhere/mine/model", "--count", "4"], None, target
    )
    written = json.loads(target.read_text())
    command = "python benchmarks/mini_quality.py --json 'benchmarks/results/x y.json' --model model --count 4"
    assert written["command"] == command
    assert written["results"] == {"eleven": 11}
    assert written["date"].endswith("+00:00")
    assert written["machine"]["cores"] >= 1
    assert os.uname().nodename not in json.dumps(written["machine"])
    assert capsys.readouterr().out == "some numbers\nname    value\n------  -----\none         1\neleven     11\n"


def test_a_commit_is_recorded_only_where_there_is_one(tmp_path, monkeypatch):
    report = script("report")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.git_state() == (None, None)
    results = tmp_path / "benchmarks" / "results" / "one.json"
    results.parent.mkdir(parents=True)
    for file in (tmp_path / "file", results):
        file.write_text("1")
    for command in (["init", "-q"], ["add", "."], [*IDENTITY, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit, modified = report.git_state()
    assert len(commit) == 40
    assert modified is False
    (tmp_path / "untracked").write_text("1")
    results.write_text("2")  # by the benchmark before this one
    assert report.git_state() == (commit, False)
    (tmp_path / "file").write_text("2")
    assert report.git_state() == (commit, True)


@pytest.fixture
def docs(tmp_path):
    """A page with two blocks, and the results for both."""
    results = tmp_path / "results"
    results.mkdir()
    tables = [
        {"name": name, "title": f"{name} title", "columns": ["a", "b"], "rows": [["x", name]]}
        for name in ("one", "two")
    ]
    report = {
        "command": "python x.py",
        "date": "2024-05-06T07:08:09+00:00",
        "machine": {"processor": "P"},
        "tables": tables,
    }
    (results / "speed.json").write_text(json.dumps(report))
    page = tmp_path / "page.md"
    block = "<!-- results:{} -->\nold\n<!-- /results -->\n"
    page.write_text(f"before\n{block.format('speed')}between\n{block.format('speed:two')}after\n")
    return page, results


def test_update_docs_fills_the_blocks_and_nothing_else(docs, capsys):
    page, results = docs
    update = script("update_docs").main
    with pytest.raises(SystemExit) as stop:
        update([str(page), "--results", str(results), "--check"])
    assert stop.value.code == 1
    assert capsys.readouterr().out == "page.md is out of date: run benchmarks/update_docs.py\n"
    assert "old" in page.read_text()
    update([str(page), "--results", str(results)])
    text = page.read_text()
    one = "**one title**\n\n| a | b |\n| --- | ---: |\n| x | one |\n"
    two = one.replace("one", "two")
    origin = "From `python x.py`, 2024-05-06, P.\n"
    assert text == (
        f"before\n<!-- results:speed -->\n\n{one}\n{two}\n{origin}\n<!-- /results -->\n"
        f"between\n<!-- results:speed:two -->\n\n{two}\n{origin}\n<!-- /results -->\nafter\n"
    )
    update([str(page), "--results", str(results), "--check"])
    assert page.read_text() == text


def test_update_docs_makes_the_figures_of_weights_that_have_none_yet(tmp_path, capsys):
    """As embedding leaves them: those of the weights before went with these."""
    script("update_docs").main([str(tmp_path / "evaluation.json")])
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(
        Path(MINI, "evaluation.json").read_text()
    )
    assert capsys.readouterr().out == "evaluation.json updated\n"


def test_update_docs_says_what_is_missing(docs, capsys):
    page, results = docs
    page.write_text(page.read_text().replace("speed:two", "speed:three"))
    assert "has no table 'three'" in refused("update_docs", capsys, str(page), "--results", str(results))
    page.write_text("<!-- results:memory -->\n<!-- /results -->\n")
    script("update_docs").main([str(page), "--results", str(results)])
    assert "Not measured yet: `memory.json` does not exist." in page.read_text()


def test_lint_looks_for_stale_tables():
    run = subprocess.run(["make", "--dry-run", "lint"], cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "benchmarks/update_docs.py --check" in run.stdout
