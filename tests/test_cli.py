"""`backshan generate`, in this process with a tiny pipeline, and as a command where the process matters."""

import argparse
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LCMScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import backshan_diffusers
from backshan_diffusers import BackToFrontPipeline, cli
from backshan_diffusers.commands import fronts, generate, inputs, messages, outputs
from backshan_diffusers.pictures import load_picture
from backshan_diffusers.sheets import picture_sheet

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch, capsys):
    """Runs `backshan generate` in a folder of its own and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def generate(*arguments, model=tiny_folder):
        capsys.readouterr()
        try:
            code = cli.main(["generate", "--model", str(model), "--device", "cpu", *map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return generate


@pytest.fixture
def backs(drawn_backs, tmp_path):
    """A folder with anna.png, ben.jpg and cleo.webp."""
    folder = tmp_path / "backs"
    folder.mkdir()
    for picture, name in zip(drawn_backs, ("anna.png", "ben.jpg", "cleo.webp"), strict=True):
        picture.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny_folder):
    pipeline = BackToFrontPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pixels(path):
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def written(folder="fronts"):
    return sorted(os.listdir(folder))


def refused(result, *words):
    """Exit code 2, nothing on stdout, and one sentence that holds these words."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("backshan: ")
    assert err.endswith(".\n")
    assert err.count("\n") == 1
    for word in words:
        assert str(word) in err
    return True


# what is written


def test_a_folder_gives_one_front_for_each_picture(run, backs, pipeline):
    code, out, err = run(backs)
    assert (code, out, err) == (0, "3 of 3 fronts were written to fronts\n", "")
    assert written() == ["anna_front.png", "ben_front.png", "cleo_front.png"]
    for name in ("anna.png", "ben.jpg", "cleo.webp"):
        expected = pipeline(backs / name, generator=seeded(0)).images[0]
        assert np.array_equal(pixels(f"fronts/{Path(name).stem}_front.png"), np.asarray(expected))
    assert len({pixels(f"fronts/{name}").tobytes() for name in written()}) == 3


def test_every_option_reaches_the_pipeline(run, backs, pipeline, drawn_backs, tmp_path):
    drawn_backs[0].resize((90, 150)).save(tmp_path / "tall.png")
    options = ("--steps", 2, "--guidance", 3, "--prompt", "a dress", "--negative-prompt", "a coat", "--seed", 5)
    code, _, err = run("tall.png", *options, "--num-images", 2, "--original-size")
    assert (code, err) == (0, "")
    for number in (0, 1):
        expected = pipeline(
            "tall.png",
            num_inference_steps=2,
            guidance_scale=3,
            prompt="a dress",
            negative_prompt="a coat",
            generator=seeded(5 + number),
            restore_size=True,
        ).images[0]
        assert expected.size == (90, 150)
        assert np.array_equal(pixels(f"fronts/tall_front_{number + 1}.png"), np.asarray(expected))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_and_values_have_the_type_asked_for(run, backs, tiny_folder, dtype):
    code, _, err = run(backs / "anna.png", "--dtype", dtype)
    assert (code, err) == (0, "")
    pipeline = BackToFrontPipeline.from_pretrained(tiny_folder, dtype=getattr(torch, dtype))
    expected = pipeline(backs / "anna.png", generator=seeded(0)).images[0]
    assert np.array_equal(pixels("fronts/anna_front.png"), np.asarray(expected))


def test_a_large_photo_is_decoded_as_the_pipeline_decodes_it(drawn_backs, pipeline, tmp_path):
    photo, bad = tmp_path / "photo.jpg", tmp_path / "bad.jpg"
    drawn_backs[0].resize((1200, 2000)).save(photo)
    bad.write_bytes(b"")
    jobs = [outputs.Job(path, number, tmp_path / "unused.png") for path in (bad, photo) for number in (0, 1)]
    for original_size in (False, True):
        failed, progress = set(), tqdm(total=4, file=io.StringIO())
        options = argparse.Namespace(original_size=original_size)
        usable = list(fronts._load_backs(pipeline, jobs, options, failed, progress))
        assert [job.number for job, _ in usable] == [0, 1]
        expected = load_picture(photo, None if original_size else 4 * 64)
        assert expected.size == ((1200, 2000) if original_size else (300, 500))
        assert all(back == expected for _, back in usable)
        assert failed == {bad}
        assert progress.n == 2


def test_settings_are_recorded(run, backs, tiny_folder):
    run(backs / "anna.png", "--seed", 7, "--num-images", 2, "--steps", 2, "--guidance", 1.5, "--prompt", "着物 front")
    with PIL.Image.open("fronts/anna_front_2.png") as front:
        assert front.info == {
            "Software": "backshan",
            "version": backshan_diffusers.__version__,
            "model": "tiny",
            "seed": "8",
            "steps": "2",
            "guidance": "1.5",
            "prompt": "着物 front",
            "dtype": "float32",
            "original_size": "False",
            "source": "anna.png",
        }


def test_the_size_that_was_asked_for_is_recorded(run, backs):
    run(backs / "anna.png", "--original-size")
    with PIL.Image.open("fronts/anna_front.png") as front:
        assert front.info["original_size"] == "True"


def test_the_commit_of_a_model_from_the_hub_is_recorded(run, backs, tiny_folder, monkeypatch):
    """The Hub is out of reach; what was downloaded before lies in the cache as huggingface_hub leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", os.path.abspath("cache"))
    shutil.copytree(tiny_folder, f"cache/models--org--tiny/snapshots/{commit}")
    os.mkdir("cache/models--org--tiny/refs")
    Path("cache/models--org--tiny/refs/main").write_text(commit)
    code, _, err = run(backs / "anna.png", "--sheet", model="org/tiny")
    assert code == 0, err
    for name in ("anna_front", "sheet"):
        with PIL.Image.open(f"fronts/{name}.png") as picture:
            assert (picture.info["model"], picture.info["commit"]) == ("org/tiny", commit)


def test_what_the_model_records_is_recorded(run, backs):
    run(backs / "anna.png", "--negative-prompt", "a coat", "--guidance", 2)
    with PIL.Image.open("fronts/anna_front.png") as front:
        recorded = {name: front.info[name] for name in ("seed", "steps", "guidance", "prompt", "negative_prompt")}
    prompt = "Front side of the person"
    assert recorded == {"seed": "0", "steps": "3", "guidance": "2.0", "prompt": prompt, "negative_prompt": "a coat"}


def test_recorded_guidance_is_the_default(run, backs):
    run(backs / "anna.png")
    with PIL.Image.open("fronts/anna_front.png") as front:
        assert front.info["guidance"] == "1.0"
    run(backs / "anna.png", "--guidance", 0)
    with PIL.Image.open("fronts/anna_front.png") as front:
        assert front.info["guidance"] == "0.0"


def test_an_empty_prompt_is_a_prompt(run, backs):
    run(backs / "anna.png", "--prompt", "")
    with PIL.Image.open("fronts/anna_front.png") as front:
        assert front.info["prompt"] == ""


def test_a_name_that_is_no_text_is_written_all_the_same(run, drawn_backs):
    name = os.fsdecode(b"caf\xe9.png")
    drawn_backs[0].save(name)
    code, _, _ = run(name, "-o", os.fsdecode(b"\xe9"))
    assert code == 0
    assert written(os.fsdecode(b"\xe9")) == [os.fsdecode(b"caf\xe9_front.png")]


def test_batches_change_nothing(run, backs, monkeypatch):
    run(backs, "--num-images", 2, "--seed", 3)
    sizes, call = [], BackToFrontPipeline.__call__

    def counted(self, back_image, **options):
        sizes.append(len(back_image))
        return call(self, back_image, **options)

    monkeypatch.setattr(BackToFrontPipeline, "__call__", counted)
    code, out, _ = run(backs, "--num-images", 2, "--seed", 3, "--batch-size", 4, "-o", "batched")
    assert (code, out) == (0, "6 of 6 fronts were written to batched\n")
    assert sizes == [4, 2]
    assert written("batched") == written("fronts")
    for name in written():
        assert np.abs(pixels(f"fronts/{name}").astype(int) - pixels(f"batched/{name}")).max() <= 1


def test_a_front_does_not_depend_on_the_other_pictures(run, backs):
    run(backs)
    run(backs / "cleo.webp", "-o", "alone")
    assert np.array_equal(pixels("fronts/cleo_front.png"), pixels("alone/cleo_front.png"))


def test_a_second_run_replaces_its_own_results(run, backs):
    run(backs, "--sheet")
    before = {name: Path("fronts", name).read_bytes() for name in written()}
    assert run(backs, "--sheet", "--seed", 1)[0] == 0
    assert written() == sorted(before)
    assert all(Path("fronts", name).read_bytes() != before[name] for name in written())


def test_a_sheet_of_more_pixels_than_pillow_opens_is_replaced(run, backs, monkeypatch):
    assert run(backs, "--sheet")[0] == 0
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PIL.Image.DecompressionBombError):
        PIL.Image.open("fronts/sheet.png")
    assert outputs.is_ours(Path("fronts/sheet.png"))
    Path("fronts/sheet.png").write_bytes(b"mine")
    assert not outputs.is_ours(Path("fronts/sheet.png"))


def test_the_sheet_shows_each_back_beside_its_fronts(run, backs):
    Path(backs, "bad.png").write_bytes(b"")
    code, _, _ = run(backs, "--sheet", "--num-images", 2, "--seed", 5)
    assert code == 1
    names = {"anna": "anna.png", "ben": "ben.jpg", "cleo": "cleo.webp"}
    rows = [
        [
            PIL.Image.open(path).convert("RGB").resize((256, 256), PIL.Image.Resampling.BICUBIC)
            for path in (backs / name, f"fronts/{stem}_front_1.png", f"fronts/{stem}_front_2.png")
        ]
        for stem, name in names.items()
    ]
    expected = picture_sheet(rows, ["back", "generated", "generated"], captions=list(names.values()))
    assert np.array_equal(pixels("fronts/sheet.png"), np.asarray(expected))
    with PIL.Image.open("fronts/sheet.png") as sheet, PIL.Image.open("fronts/anna_front_1.png") as front:
        assert sheet.info == {name: value for name, value in front.info.items() if name != "source"}
        assert sheet.info["seed"] == "5"


@pytest.mark.parametrize(
    ("stem", "caption"), [("two\nlines", "two\\nlines.png"), (os.fsdecode(b"caf\xe9"), "caf\\udce9.png")]
)
def test_a_name_that_is_no_line_of_text_is_one_caption(run, drawn_backs, stem, caption):
    drawn_backs[0].save(f"{stem}.png")
    assert run(f"{stem}.png", "-o", "fronts", "--sheet")[0] == 0
    row = [PIL.Image.open(path).convert("RGB") for path in (f"{stem}.png", f"fronts/{stem}_front.png")]
    row = [PIL.ImageOps.contain(picture, (256, 256)) for picture in row]
    expected = picture_sheet([row], ["back", "generated"], captions=[caption])
    assert np.array_equal(pixels("fronts/sheet.png"), np.asarray(expected))


def test_no_sheet_unless_asked_for(run, backs):
    run(backs / "anna.png")
    assert written() == ["anna_front.png"]


def test_one_front_to_one_file(run, backs):
    code, out, _ = run(backs / "anna.png", "-o", "new/deep/her.PNG", "--sheet")
    assert (code, out) == (0, "1 of 1 fronts were written to new/deep\n")
    assert written("new/deep") == ["her.PNG", "her_sheet.png"]


def test_a_folder_may_look_like_a_file(run, backs):
    for folder in ("odd.png", ".png"):
        Path(folder).mkdir()
    for out in ("odd.png", ".png", "new.png/", "also.jpg/", "dot.png/."):
        assert run(backs / "anna.png", "-o", out)[:2] == (0, f"1 of 1 fronts were written to {Path(out)}\n")
        assert written(Path(out)) == ["anna_front.png"]


def test_the_longest_names_that_the_file_system_takes(run, drawn_backs):
    longest = os.pathconf(".", "PC_NAME_MAX")
    back = "b" * outputs.LONGEST_STEM + ".png"
    drawn_backs[0].save(back)
    assert run(back)[0] == 0
    assert written() == [back.replace(".png", "_front.png")]
    one = "o" * (longest - len(".png")) + ".png"
    assert run(back, "-o", f"one/{one}")[0] == 0
    assert written("one") == [one]
    longer = ["\u3042" * ((longest - 4) // 3) + ".png", "b" + back, back.replace(".png", "c.png")]
    for name in longer:
        drawn_backs[0].save(name)
    assert run(*longer, "-o", "cut")[0] == 0
    cut = "b" * outputs.LONGEST_STEM
    other = f"{Path.cwd().name}_{cut}"[: outputs.LONGEST_STEM]
    assert written("cut") == sorted(f"{stem}_front.png" for stem in (cut, other, "\u3042" * 76))
    assert refused(run(back, "-o", f"new/{one}", "--sheet"), one.replace(".png", "_sheet.png"), "is too long")
    assert not Path("new").exists()


# which pictures are meant


def test_a_folder_stands_for_its_pictures_sorted(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "c.tiff"):
        Path(tmp_path, name).touch()
    Path(tmp_path, "folder.png").mkdir()
    Path(tmp_path, "sub").mkdir()
    Path(tmp_path, "sub", "d.png").touch()
    assert inputs.find_backs([str(tmp_path)]) == ([tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "c.tiff"], [])


def test_every_kind_of_picture_is_found_by_its_suffix(tmp_path):
    read = ["avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "png", "ppm", "tga", "tif", "tiff", "webp"]
    unread = ["cr2", "dng", "heic", "heif", "jxl", "nef", "svg"]
    for suffix in (*read, *unread, "pdf"):
        Path(tmp_path, f"a.{suffix}").touch()
    found, (sentence,) = inputs.find_backs([str(tmp_path)])
    assert found == [tmp_path / f"a.{suffix}" for suffix in read]
    assert sentence.startswith(f"{len(unread)} of the pictures in {tmp_path} cannot be opened (a.cr2, ...)")


def test_pictures_that_nothing_here_opens_are_named(run, backs):
    for name in ("b.HEIC", "a.heic", "c.svg", ".d.heic"):
        Path(backs, name).touch()
    code, out, err = run(backs)
    assert (code, out) == (1, "3 of 3 fronts were written to fronts\n")
    assert f"3 of the pictures in {backs} cannot be opened (a.heic, ...): convert to JPEG." in err
    Path("photos").mkdir()
    Path("photos", "a.heic").touch()
    assert refused(run("photos"), "1 of the pictures in photos cannot be opened (a.heic): convert to JPEG.")


def test_globs_are_expanded_and_pictures_come_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "a.jpg", "x[1].png"):
        Path(name).touch()
    Path("sub/deep").mkdir(parents=True)
    Path("sub/c.png").touch()
    Path("sub/deep/d.png").touch()
    Path("link.png").symlink_to("a.png")
    expected = [Path("b.png"), Path("a.png"), Path("x[1].png"), tmp_path / "a.jpg"]
    assert inputs.find_backs(["b.png", "*.png", str(tmp_path / "a.jpg")]) == (expected, [])
    assert inputs.find_backs(["x[1].png"]) == ([Path("x[1].png")], [])
    assert inputs.find_backs(["**/d.png"]) == ([Path("sub/deep/d.png")], [])
    assert inputs.find_backs(["su?"]) == ([Path("sub/c.png")], [])


def test_what_stands_for_no_picture_is_told_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("closed", "empty", "open"):
        Path(name).mkdir()
    Path("open/a.png").touch()
    Path("open/link.png").symlink_to("../nowhere.png")

    def iterdir(folder, really=Path.iterdir):  # root may read every folder, so that permissions cannot be tested
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied")
        return really(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    closed = "the folder closed cannot be read (Permission denied): give one that can."
    link = "open/link.png is a link that leads nowhere: point it to a picture, or remove it."
    assert inputs.find_backs(["open", "open/*.png", "open/link.png"]) == ([Path("open/a.png")], [link])
    assert inputs.find_backs(["[co]*"]) == ([Path("open/a.png")], [closed, link])
    told = inputs.find_backs(["no*.png", "empty", "", "open/a.png", "nobody.png", "closed", "nobody.png"])
    assert told[0] == [Path("open/a.png")]
    assert [sentence.partition(":")[0] for sentence in told[1]] == [
        "no*.png does not exist",
        "the folder empty holds no pictures",
        "one of the pictures has an empty name",
        "nobody.png does not exist",
        "the folder closed cannot be read (Permission denied)",
    ]
    assert all(sentence.endswith(".") for sentence in told[1])


def test_a_folder_that_may_be_listed_but_not_entered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("locked").mkdir()
    Path("a.png").touch()
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / "b.png"]))  # root may enter every folder
    told = "locked/b.png cannot be reached: give one that this user may read."
    assert inputs.find_backs(["a.png", "locked"]) == ([Path("a.png")], [told])


def test_equal_names_get_different_results():
    backs = [Path(name) for name in ("/a/x.png", "/b/x.png", "/b/X.jpg", "/b/x.gif", "/b/y.png", "/c/b_x.png")]
    backs += [Path("/d/STRASSE.png"), Path("/d/straße.png")]  # equal where capitals do not count
    jobs, _ = outputs.plan(backs, "out", 1, False)
    assert [job.result.name for job in jobs] == [
        "x_front.png",
        "b_x_front.png",
        "X_2_front.png",
        "x_3_front.png",
        "y_front.png",
        "c_b_x_front.png",
        "STRASSE_front.png",
        "d_straße_front.png",
    ]


# pictures that cannot be used, and unusual ones that can


def png(width, height, data=b""):
    """A PNG file that promises this many px."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data or zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def truncated(picture, path):
    picture.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "text.png": lambda picture, path: path.write_text("not a picture"),
    "empty.png": lambda picture, path: path.write_bytes(b""),
    "truncated.jpg": truncated,
    "truncated.png": truncated,
    "pixel.png": lambda picture, path: picture.resize((1, 1)).save(path),
    "ribbon.png": lambda picture, path: picture.resize((30_000, 10)).save(path),
    "bomb.png": lambda picture, path: path.write_bytes(png(30_000, 30_000)),
}


def test_bad_pictures_are_reported_and_the_others_are_done(run, backs, drawn_backs):
    for name, make in BAD.items():
        make(drawn_backs[0], backs / name)
    code, out, err = run(backs, "--num-images", 2, "--batch-size", 3)
    assert code == 1
    assert out == f"6 of {2 * (3 + len(BAD))} fronts were written to fronts\n"
    assert written() == [f"{stem}_front_{k}.png" for stem in ("anna", "ben", "cleo") for k in (1, 2)]
    lines = err.splitlines()
    assert len(lines) == len(BAD)
    for name in BAD:
        assert sum(line.startswith("backshan: ") and str(backs / name) in line for line in lines) == 1


def test_missing_pictures_are_reported_and_the_others_are_done(run, backs):
    Path(backs, "lost.png").symlink_to("nowhere.png")
    code, out, err = run("nobody.png", backs, "--sheet")
    assert (code, out) == (1, "3 of 3 fronts were written to fronts\n")
    assert written() == ["anna_front.png", "ben_front.png", "cleo_front.png", "sheet.png"]
    nobody, lost = err.splitlines()
    assert nobody == "backshan: nobody.png does not exist: give a picture, a folder or a glob that matches some."
    assert lost.startswith(f"backshan: {backs / 'lost.png'} is a link that leads nowhere: ")


def test_a_bad_picture_alone(run, backs):
    Path(backs, "text.png").write_text("not a picture")
    code, out, err = run(backs / "text.png", "--sheet")
    assert (code, out) == (1, "0 of 1 fronts were written to fronts\n")
    assert err.count("\n") == 1
    assert written() == []


def test_unusual_pictures_are_read(run, drawn_backs, pipeline):
    back = drawn_backs[0].resize((60, 90))
    sideways = PIL.Image.Exif()
    sideways[0x0112] = 6
    alpha = back.copy()
    alpha.putalpha(PIL.Image.linear_gradient("L").resize(back.size))
    os.mkdir("odd")
    back.convert("CMYK").save("odd/cmyk.jpg")
    PIL.Image.fromarray(np.asarray(back.convert("L")).astype(np.uint16) * 257).save("odd/grey16.png")
    back.convert("P").save("odd/palette.png", transparency=3)
    back.save("odd/animated.gif", save_all=True, append_images=drawn_backs[1:])
    back.transpose(PIL.Image.Transpose.ROTATE_90).save("odd/rotated.png", exif=sideways)
    alpha.save("odd/alpha.png")
    code, _, err = run("odd")
    assert (code, err) == (0, "")
    assert len(written()) == 6
    sizes = {PIL.Image.open(f"fronts/{name}").size for name in written()}
    assert sizes == {pipeline(back).images[0].size}
    on_white = PIL.Image.alpha_composite(PIL.Image.new("RGBA", back.size, "white"), alpha).convert("RGB")
    for name, same in (("rotated", back), ("alpha", on_white), ("grey16", back.convert("L"))):
        expected = pipeline(same, generator=seeded(0)).images[0]
        assert np.array_equal(pixels(f"fronts/{name}_front.png"), np.asarray(expected))


# arguments that cannot be used


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["BACK"]),
        (("nobody.png",), ["nobody.png", "does not exist"]),
        (("no*.png",), ["no*.png", "does not exist"]),
        (("",), ["empty name"]),
        (("nobody.png", "noone.png"), ["nobody.png", "does not exist"]),
        (("anna.png", "nobody.png", "--steps", "1001"), ["1000 timesteps"]),
        (("anna.png", "--steps", "0"), ["--steps", "'0'", "a whole number from 1 to"]),
        (("anna.png", "--steps", "2.5"), ["--steps"]),
        (("anna.png", "--steps", "٣"), ["--steps", "a whole number from 1 to"]),
        (("anna.png", "--seed", "1" * 5000), ["--seed", "is not a whole number from 0 to"]),
        (("anna.png", "--steps", "1001"), ["1000 timesteps"]),
        (("anna.png", "--num-images", "0"), ["--num-images"]),
        (("anna.png", "--batch-size", "-1"), ["--batch-size"]),
        (("anna.png", "--batch-size", str(2**63)), ["--batch-size"]),
        (("anna.png", "ben.png", "--num-images", "500001"), ["1000002 fronts are more than the 1000000 of one run"]),
        (("anna.png", "--seed", "-1"), ["--seed"]),
        (("anna.png", "--seed", str(2**63)), ["--seed"]),
        (("anna.png", "--seed", str(2**63 - 1), "--num-images", "2"), ["--seed"]),
        (("anna.png", "--guidance", "nan"), ["--guidance"]),
        (("anna.png", "--guidance", "inf"), ["--guidance"]),
        (("anna.png", "--guidance", "-1"), ["--guidance"]),
        (("anna.png", "--guidance", "much"), ["--guidance"]),
        (("anna.png", "--guidance", "1_0"), ["--guidance"]),
        (("anna.png", "--guidance", " 3"), ["--guidance"]),
        (("anna.png", "--guidance", "٣"), ["--guidance"]),
        (("anna.png", "--device", "toaster"), ["toaster"]),
        (("anna.png", "--device", ""), ["device"]),
        (("anna.png", "--device", "cpu:1"), ["cpu:1"]),
        (("anna.png", "--device", "meta"), ["meta", "not on this machine"]),
        (("anna.png", "--device", "cuda:99"), ["cuda:99", "not on this machine"]),
        (("anna.png", "--dtype", "int8"), ["--dtype", "float32"]),
        (("anna.png", "--num", "2"), ["--num"]),
        (("anna.png", "-o", "front.jpg"), ["front.jpg", "PNG"]),
        (("anna.png", "-o", "front.HEIC"), ["front.HEIC", "PNG"]),
        (("anna.png", "-o", "-"), ["stdout", "give a folder"]),
        (("anna.png", "-o", "front.png", "--num-images", "2"), ["front.png", "2 fronts"]),
        (("anna.png", "ben.png", "-o", "front.png"), ["front.png", "2 fronts"]),
        (("anna.png", "-o", "ben.png"), ["ben.png", "not written by backshan"]),
        (("anna.png", "-o", "anna.png"), ["anna.png", "one of the backs"]),
        (("anna.png", "-o", "anna.png/below"), ["anna.png/below", "written"]),
        (("anna.png", "-o", "notes"), ["notes", "written"]),
        (("anna.png", "-o", "/proc/fronts"), ["/proc/fronts"]),
        (("anna.png", "-o", "anna.png/"), ["the folder anna.png", "Not a directory"]),
        (("anna.png", "-o", ""), ["--out is empty"]),
        (("anna.png", "-o", "http://a.b/x.png"), ["is an address", "give a folder"]),
        (("anna.png", "-o", ".png"), ["a suffix without a name", "give a folder"]),
        (("anna.png", "-o", ".heic"), ["a suffix without a name", "give a folder"]),
        (("anna.png", "-q"), ["unrecognized arguments: -q: see backshan generate --help."]),
        (("anna.png", "-o", "x" * 300), ["x" * 300, "is too long"]),
        (("anna.png", "-o", "x" * 300 + ".png"), ["x" * 300, "is too long"]),
        (("anna.png", "-o", "new/" + "x" * 300), ["x" * 300, "is too long"]),
        (("anna.png", "-o", "/".join(["x" * 200] * 25)), ["path", "is too long"]),
        (("anna.png", "--prompt", os.fsdecode(b"caf\xe9")), ["--prompt", "not in UTF-8"]),
        (("anna.png", "--prompt", "\ud800"), ["--prompt", "not in UTF-8"]),
        (("anna.png", "--negative-prompt", os.fsdecode(b"caf\xe9")), ["--negative-prompt", "not in UTF-8"]),
    ],
)
def test_unusable_arguments_are_refused_before_anything_is_done(run, drawn_backs, arguments, words):
    drawn_backs[0].save("anna.png")
    drawn_backs[1].save("ben.png")
    Path("notes").write_text("mine")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert refused(run(*arguments), *words)
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


def test_the_largest_arguments_are_usable(run, backs, pipeline, monkeypatch):
    assert run(backs / "anna.png", "--seed", 2**63 - 1)[0] == 0
    with PIL.Image.open("fronts/anna_front.png") as front:
        assert front.info["seed"] == str(2**63 - 1)
    options = argparse.Namespace(prompt=None, negative_prompt=None, steps=1000, guidance=None)
    assert generate.settings_of(pipeline, options)["num_inference_steps"] == 1000
    monkeypatch.setattr(outputs, "MOST_FRONTS", 4)
    assert len(outputs.plan([Path("a.png"), Path("b.png")], "out", 2, False)[0]) == 4


@pytest.mark.parametrize(
    "option", ["--seed", "--steps", "--num-images", "--batch-size", "--guidance", "--dtype", "--x"]
)
def test_a_long_argument_is_not_repeated_in_full(run, drawn_backs, option):
    drawn_backs[0].save("anna.png")
    result = run("anna.png", f"{option}={'1' * 5000}")
    assert refused(result, option, "1 ... 1", " --help.")
    assert len(result[2]) < 700


def test_a_long_name_is_not_repeated_in_full(run):
    result = run("b" * 5000)
    assert refused(result, "bbb ... bbb", "does not exist")
    assert len(result[2]) < 700


def test_no_character_breaks_a_line():
    broken = "a\nb\x1bc\u2028d\u2029e\x85f\ud800g 前"
    assert messages.on_one_line(broken) == "a\\nb\\x1bc\\u2028d\\u2029e\\x85f\\ud800g 前"


def test_a_refusal_loses_its_middle_where_it_is_too_long():
    half = messages.LONGEST_REFUSAL // 2
    assert messages.shortened("a" * half + "b" * half) == "a" * half + "b" * half
    assert messages.shortened("a" * half + "?" + "b" * half) == "a" * half + " ... " + "b" * half


def test_an_error_is_told_in_one_line_or_by_its_name():
    assert messages.first_sentence(ValueError("\nno room.\nmore")) == "no room."
    assert messages.first_sentence(MemoryError()) == "MemoryError."
    assert messages.first_sentence(OSError(errno.EACCES, "denied", "a.json")) == "a.json cannot be read (denied)."


def test_a_prompt_is_utf8_whatever_the_locale(run, backs):
    """Under an ASCII locale, Python hands over each byte beyond it as half of a surrogate pair."""
    prompt = "着物".encode().decode("ascii", "surrogateescape")
    assert run(backs / "anna.png", "--prompt", prompt)[0] == 0
    with PIL.Image.open("fronts/anna_front.png") as front:
        assert front.info["prompt"] == "着物"


def test_the_folder_is_judged_before_a_model_is_sought(run, backs):
    Path("notes").write_text("mine")
    assert refused(run(backs, "-o", "notes", model="./nowhere"), "the folder notes", "Not a directory")


def test_an_empty_folder_is_refused(run):
    os.mkdir("empty")
    assert refused(run("empty"), "empty", "no pictures")
    Path("empty", "notes.txt").write_text("no picture")
    assert refused(run("empty"), "empty", "no pictures")
    assert refused(run("emp*"), "emp*")
    Path("empty", "lost.png").symlink_to("nowhere.png")
    assert refused(run("empty"), "lost.png", "leads nowhere")


def test_nothing_of_others_is_replaced(run, backs, drawn_backs):
    os.mkdir("fronts")
    drawn_backs[0].save("fronts/ben_front.png")
    before = Path("fronts/ben_front.png").read_bytes()
    assert refused(run(backs), "ben_front.png", "not written by backshan")
    assert Path("fronts/ben_front.png").read_bytes() == before
    assert written() == ["ben_front.png"]
    os.remove("fronts/ben_front.png")
    Path("fronts/sheet.png").mkdir()
    assert refused(run(backs, "--sheet"), "sheet.png")
    assert run(backs)[0] == 0


def test_a_back_is_never_replaced(run, backs):
    shutil.copy(backs / "anna.png", backs / "ben_front.png")
    assert refused(run(backs, "-o", backs), "ben_front.png", "one of the backs")


@pytest.mark.parametrize("out", ["backs", "backs/fronts"])
def test_a_second_run_among_its_backs_does_what_the_first_did(run, backs, out):
    arguments = ("backs/**", "-o", out, "--sheet", "--num-images", 2)
    assert run(*arguments) == (0, f"6 of 6 fronts were written to {out}\n", "")
    before = {path: path.is_file() and path.read_bytes() for path in backs.rglob("*")}
    code, stdout, err = run(*arguments)
    assert (code, stdout) == (0, f"6 of 6 fronts were written to {out}\n")
    first = f"{out}/anna_front_1.png"
    assert err == f"backshan: 7 of the pictures are left out, because backshan wrote them itself ({first}, ...).\n"
    assert {path: path.is_file() and path.read_bytes() for path in backs.rglob("*")} == before


def test_a_front_is_no_back(run, backs):
    run(backs / "anna.png")
    told = "backshan wrote these pictures itself (fronts/anna_front.png): give pictures of backs."
    assert refused(run("fronts/anna_front.png", "-o", "again"), told)
    assert not Path("again").exists()


def test_a_device_of_this_machine_is_found_by_default(backs, tiny_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", str(backs / "anna.png"), "--model", str(tiny_folder)]) == 0


def test_a_negative_prompt_without_guidance_is_noticed(run, backs):
    code, _, err = run(backs / "anna.png", "--negative-prompt", "a coat")
    assert code == 0
    assert err.count("\n") == 1
    assert "the negative prompt does nothing at guidance 1" in err


def test_a_prompt_of_500_words_is_cut_with_one_sentence(run, backs, pipeline):
    words = " ".join(["coat"] * 500)
    code, _, err = run(backs / "anna.png", "--prompt", words, "--guidance", 2)
    assert code == 0
    assert err == "backshan: the prompt has 2000 tokens: only the first 75 are used.\n"
    expected = pipeline(backs / "anna.png", prompt=words[:500], guidance_scale=2, generator=seeded(0)).images[0]
    assert np.array_equal(pixels("fronts/anna_front.png"), np.asarray(expected))
    code, _, err = run(backs / "anna.png", "--negative-prompt", "x" * 76, "--guidance", 2)
    assert (code, err) == (0, "backshan: the negative prompt has 76 tokens: only the first 75 are used.\n")
    assert run(backs / "anna.png", "--prompt", "x" * 75)[2] == ""


# models that cannot be used


@pytest.mark.parametrize("model", ["./nowhere", "nowhere", "/nowhere/at/all", "bad id/!!", "", "a/b/c"])
def test_a_model_folder_that_does_not_exist(run, backs, model):
    assert refused(run(backs, model=model), "does not exist")


def test_a_repository_out_of_reach(run, backs):
    assert refused(run(backs, model="nobody/nothing"), "nobody/nothing", "HF_HUB_OFFLINE")


def test_a_folder_that_is_no_pipeline(run, backs):
    assert refused(run(backs, model=backs), backs, "model_index.json")


@pytest.mark.parametrize(
    ("damaged", "content", "words"),
    [
        ("tokenizer", None, "the folder model/tokenizer is missing"),
        ("tokenizer/tokenizer.json", None, "model/tokenizer/tokenizer.json is missing"),
        ("unet/config.json", "{", "model/unet/config.json is damaged ("),
        ("unet/config.json", "{}", "model/unet cannot be loaded ("),
        ("vae/diffusion_pytorch_model.safetensors", None, "model/vae has no weights"),
        (
            "vae/diffusion_pytorch_model.safetensors",
            "half",
            "model/vae/diffusion_pytorch_model.safetensors is damaged",
        ),
    ],
)
def test_a_model_that_is_not_whole(run, backs, tiny_folder, damaged, content, words):
    path = Path(shutil.copytree(tiny_folder, "model")) / damaged
    if content is not None:
        path.write_text(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert refused(run(backs, model="model"), "the model model cannot be loaded: ", words, "copy or download")
    assert not Path("fronts").exists()


def test_a_model_that_lacks_a_weight(run, backs, tiny_folder):
    weights = Path(shutil.copytree(tiny_folder, "model")) / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensors[name] for name in tensors if name != "conv_in.bias"}, weights, {"format": "pt"})
    assert refused(run(backs, model="model"), "model/unet has no weight conv_in.bias", "copy or download")


def test_a_text_encoder_that_lacks_a_weight(run, backs, tiny_folder):
    """transformers would draw it at random."""
    weights = Path(shutil.copytree(tiny_folder, "model")) / "text_encoder/model.safetensors"
    tensors = load_file(weights)
    del tensors["final_layer_norm.bias"]
    save_file(tensors, weights, {"format": "pt"})
    told = "model/text_encoder has no weight final_layer_norm.bias: copy or download"
    assert refused(run(backs, model="model"), f"the model model cannot be loaded: {told}")
    assert not Path("fronts").exists()


@pytest.mark.parametrize("recorded", [{"image_size": "large"}, {"image_size": 63}, {"canny_low_threshold": "low"}])
def test_a_model_that_records_nonsense(run, backs, tiny_folder, recorded):
    config = Path(shutil.copytree(tiny_folder, "model")) / "controlnet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | recorded))
    (name, value), *_ = recorded.items()
    assert refused(run(backs, model="model"), f"the model model cannot be loaded: {name} is {value!r}: give")


def test_a_file_is_no_model(run, backs):
    assert refused(run(backs, model=backs / "anna.png"), f"{backs / 'anna.png'} is a file: give the folder")


def test_a_model_that_may_not_be_read(run, backs, tiny_folder, monkeypatch):
    def open_text(path, *args, really=Path.read_text, **kwargs):  # root may read every file
        if path.name == "scheduler_config.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, *args, **kwargs)

    shutil.copytree(tiny_folder, "model")
    monkeypatch.setattr(Path, "read_text", open_text)
    assert refused(
        run(backs, model="model"), "model/scheduler/scheduler_config.json cannot be read (Permission denied)"
    )


def test_a_model_whose_name_is_no_text(run, backs, tiny_folder):
    name = os.fsdecode(b"caf\xe9")
    shutil.copytree(tiny_folder, name)
    assert refused(run(backs, model=name), r"caf\udce9 is not in UTF-8", "rename it")


def test_a_model_with_a_pickle_only(run, backs, tiny_folder, pipeline):
    shutil.copytree(tiny_folder, "model")
    os.remove("model/unet/diffusion_pytorch_model.safetensors")
    torch.save(pipeline.unet.state_dict(), "model/unet/diffusion_pytorch_model.bin")
    assert refused(run(backs, model="model"), "unet", "pickle")


def test_a_model_in_a_variant_alone(run, backs, pipeline):
    pipeline.save_pretrained("model", variant="fp16")
    code, _, err = run(backs / "anna.png", model="model")
    assert (code, err) == (0, "")
    expected = pipeline(backs / "anna.png", generator=seeded(0)).images[0]
    assert np.array_equal(pixels("fronts/anna_front.png"), np.asarray(expected))


def test_a_model_with_a_stock_controlnet(run, backs, tiny_folder, pipeline):
    from diffusers import ControlNetModel

    shutil.copytree(tiny_folder, "model")
    stock = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 4, 4, 8))
    stock.save_pretrained("model/controlnet")
    assert refused(run(backs, model="model"), "does not record how it reads a picture")


# what happens to files when something goes wrong


def test_files_that_may_not_be_so_large_are_reported_one_by_one(run, backs):
    os.mkdir("fronts")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        code, out, err = run(backs, "--sheet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, out) == (1, "0 of 3 fronts were written to fronts\n")
    assert err.count("cannot be written (File too large).") == 3
    assert written() == []


def test_a_sheet_that_cannot_be_written_is_a_failure(run, backs):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a front of 64 px has 12 kB at most
    try:
        code, out, err = run(backs, "--sheet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, out) == (1, "3 of 3 fronts were written to fronts\n")
    assert err == "backshan: fronts/sheet.png cannot be written (File too large).\n"
    assert written() == ["anna_front.png", "ben_front.png", "cleo_front.png"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT])
def test_a_folder_that_takes_no_more_ends_the_run(run, backs, monkeypatch, error):
    tried = []

    def save(picture, path, really=PIL.Image.Image.save, **options):
        tried.append(path)
        if len(tried) > 1:
            really(PIL.Image.new("RGB", (1, 1)), path, format="PNG")  # what there was still room for
            raise OSError(error, os.strerror(error))
        really(picture, path, **options)

    monkeypatch.setattr(PIL.Image.Image, "save", save)
    code, out, err = run(backs, "--num-images", 2, "--sheet")
    assert (code, out) == (1, "")
    assert err == (
        f"backshan: nothing more can be written to the folder fronts ({os.strerror(error)}):"
        " 1 of 6 fronts were written.\n"
    )
    assert len(tried) == 2
    assert written() == ["anna_front_1.png"]


def accelerator_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    "ask",
    [lambda: torch.empty(2**60), lambda: bytearray(2**60), accelerator_out_of_memory],
    ids=["torch", "python", "gpu"],
)
def test_a_device_without_enough_memory_ends_the_run(run, backs, monkeypatch, ask):
    def decode(vae, *args, really=AutoencoderKL.decode, **options):
        if os.path.exists("fronts/anna_front.png"):
            ask()
        return really(vae, *args, **options)

    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    code, out, err = run(backs)
    assert (code, out) == (1, "")
    told = "backshan: the device ran out of memory after 1 of 3 fronts: give "
    assert err == f"{told}another --device or --model.\n"
    assert written() == ["anna_front.png"]
    assert run(backs, "--batch-size", "2")[2] == f"{told.replace('1 of', '0 of')}a smaller --batch-size.\n"


def test_another_error_is_not_taken_for_a_lack_of_memory(run, backs, monkeypatch):
    def decode(*args, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    with pytest.raises(RuntimeError, match="something else"):
        run(backs)


def test_fronts_that_are_not_finite_are_not_written(run, backs):
    code, out, err = run(backs / "anna.png", "--guidance", "1e30", "--sheet")
    assert (code, out) == (1, "0 of 1 fronts were written to fronts\n")
    assert err == (
        f"backshan: the front of {backs / 'anna.png'} with seed 0 has values that are not finite, so it is not"
        " written: give a smaller --guidance.\n"
    )
    assert written() == []
    err = run(backs / "anna.png", "--guidance", "1e30", "--dtype", "bfloat16")[2]
    assert err.endswith(" written: give a smaller --guidance, or --dtype float32.\n")


def test_damaged_weights_are_not_mended_by_other_options(run, backs, tiny_folder):
    weights = Path(shutil.copytree(tiny_folder, "model")) / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.weight"].fill_(torch.nan)
    save_file(tensors, weights, {"format": "pt"})
    code, _, err = run(backs / "anna.png", "--guidance", "1", model="model")
    assert code == 1
    assert err.endswith(" written: the model's weights may be damaged, so give another one.\n")


@pytest.mark.parametrize(
    ("scheduler", "steps", "told"),
    [
        (LCMScheduler, 51, "LCMScheduler, cannot take 51 steps (The combination of"),
        (PNDMScheduler, 2, "PNDMScheduler, cannot take 2 steps ("),
        (FlowMatchEulerDiscreteScheduler, 2, "FlowMatchEulerDiscreteScheduler, is none of Stable Diffusion: give"),
    ],
)
def test_steps_that_the_scheduler_refuses(run, backs, tiny_folder, scheduler, steps, told):
    pipe = BackToFrontPipeline.from_pretrained(tiny_folder)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained("model")
    assert refused(run(backs, "--steps", steps, model="model"), told)
    assert not os.path.exists("fronts")


def test_a_model_in_the_current_folder_is_recorded_by_that_folders_name(run, drawn_backs, tiny_folder, monkeypatch):
    shutil.copytree(tiny_folder, "ours")
    drawn_backs[0].save("anna.png")
    monkeypatch.chdir("ours")
    assert run("../anna.png", "-o", "../front.png", model=".")[0] == 0
    with PIL.Image.open("../front.png") as front:
        assert front.info["model"] == "ours"


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_front_that_is_not_finite_does_not_spoil_its_batch(run, drawn_backs, tiny_folder, batch_size):
    """A ControlNet that overflows unless all is black."""
    weights = Path(shutil.copytree(tiny_folder, "model")) / "controlnet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["controlnet_cond_embedding.conv_in.weight"] *= 1e38
    save_file(tensors, weights, {"format": "pt"})
    os.mkdir("people")
    for name in ("a.png", "c.png"):
        PIL.Image.new("RGB", (64, 64)).save(f"people/{name}")
    drawn_backs[0].save("people/b.png")
    code, out, err = run("people", "--batch-size", batch_size, "--sheet", model="model")
    assert (code, out) == (1, "2 of 3 fronts were written to fronts\n")
    assert err.startswith("backshan: the front of people/b.png with seed 0 has values that are not finite")
    assert written() == ["a_front.png", "c_front.png", "sheet.png"]
    run("people/a.png", "-o", "alone", model="model")
    assert np.array_equal(pixels("fronts/a_front.png"), pixels("alone/a_front.png"))


# the process


def start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    """A process of this package, started here."""
    # where Python does not hold back what it writes, what it still has to write is no problem at its end
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=stdout,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        # a shell that starts the tests in the background makes its children deaf to Ctrl-C, and nohup to SIGHUP
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
    )


def command(*arguments, **options):
    """The command as a process."""
    return start("-m", "backshan_diffusers", *arguments, **options)


def closed_pipe():
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_is_finished(backs, tiny_folder, tmp_path, number):
    out = tmp_path / "fronts"
    process = command("generate", backs, "-o", out, "--model", tiny_folder, "--num-images", 500, "--steps", 20)
    deadline = time.monotonic() + 400
    while process.poll() is None and not list(out.glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    assert stdout == ""
    names = written(out)
    assert stderr == f"backshan: interrupted: {len(names)} of 1500 fronts were written to {out}.\n"
    assert 1 <= len(names) < 1500
    for name in names:
        assert pixels(out / name).shape == (64, 64, 3)


def test_a_signal_that_is_ignored_stays_ignored(backs, tiny_folder, tmp_path):
    """As under nohup."""
    program = (
        "import os, signal, sys\nfrom backshan_diffusers import cli\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "def at_import(event, arguments):\n"
        "    if event == 'import' and arguments[0] == 'torch': os.kill(os.getpid(), signal.SIGHUP)\n"
        "sys.addaudithook(at_import)\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    out = tmp_path / "fronts"
    process = start("-c", program, "generate", backs / "anna.png", "-o", out, "--model", tiny_folder)
    stdout, _ = process.communicate(timeout=200)
    assert (process.returncode, stdout) == (0, f"1 of 1 fronts were written to {out}\n")


def test_a_run_outside_the_main_thread_leaves_signals_alone(backs, tiny_folder, tmp_path):
    arguments = ["generate", str(backs / "anna.png"), "-o", str(tmp_path / "fronts"), "--model", str(tiny_folder)]
    codes = []
    running = threading.Thread(target=lambda: codes.append(cli.main(arguments)))
    running.start()
    running.join(200)
    assert codes == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_front(backs, tiny_folder, tmp_path, number):
    program = (
        "import os, sys\nfrom backshan_diffusers import cli\n"
        "def at_import(event, arguments):\n"
        f"    if event == 'import' and arguments[0] == 'torch': os.kill(os.getpid(), {int(number)})\n"
        "sys.addaudithook(at_import)\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = start("-c", program, "generate", backs, "-o", tmp_path / "fronts", "--model", tiny_folder)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    assert stderr == "backshan: interrupted before anything was written.\n"
    assert not (tmp_path / "fronts").exists()


@pytest.mark.parametrize("imported", ["backshan_diffusers.cli", "argparse"])
def test_ctrl_c_while_the_command_is_imported(imported):
    """As the console script that pip makes runs it."""
    (module,) = re.findall(r"backshan = ([\w.]+):main", (ROOT / "setup.py").read_text(encoding="utf-8"))
    program = (
        f"import os, signal, sys\nfrom {module} import main\n"
        "def at_import(event, arguments):\n"
        f"    if event == 'import' and arguments[0] == '{imported}': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(at_import)\n"
        "sys.exit(main())\n"
    )
    process = start("-c", program, "--help")
    assert process.communicate(timeout=200) == ("", "backshan: interrupted before anything was written.\n")
    assert process.returncode == 130


def test_what_a_killed_run_left_unfinished_is_cleared_by_the_next(run, backs, tiny_folder):
    program = (
        "import os, signal, sys\nfrom backshan_diffusers import cli\n"
        "def at_open(event, arguments):\n"
        "    if event == 'open' and '.unfinished-' in str(arguments[0]) and os.path.exists('fronts/anna_front.png'):\n"
        "        if os.listdir('fronts') != ['anna_front.png']: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(at_open)\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = start("-c", program, "generate", backs, "--model", tiny_folder)
    process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL
    left, front = written()
    assert left.startswith(".unfinished-")
    assert front == "anna_front.png"
    assert run(backs / "anna.png")[0] == 0
    assert written() == ["anna_front.png"]


def test_signals_mean_afterwards_what_they_meant_before(run, backs):
    before = [signal.getsignal(number) for number in cli.ENDING_SIGNALS]
    run(backs / "anna.png")
    assert [signal.getsignal(number) for number in cli.ENDING_SIGNALS] == before


@pytest.mark.parametrize("where", ["/dev/full", "a closed pipe"])
def test_a_summary_that_stdout_cannot_take_goes_to_stderr(backs, tiny_folder, tmp_path, where):
    with closed_pipe() if where == "a closed pipe" else open(where, "w") as stdout:
        process = command("generate", backs, "-o", tmp_path / "fronts", "--model", tiny_folder, stdout=stdout)
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0
    assert stderr == f"backshan: 3 of 3 fronts were written to {tmp_path / 'fronts'}.\n"


@pytest.mark.parametrize("asked", [("generate", "--help"), ("--version",)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("where", ["/dev/full", "a closed pipe"])
def test_help_that_cannot_be_written_is_no_success(where, unbuffered, asked):
    with closed_pipe() if where == "a closed pipe" else open(where, "w") as stdout:
        process = command(*asked, stdout=stdout, PYTHONUNBUFFERED=unbuffered)
        _, stderr = process.communicate(timeout=200)
    assert (process.returncode, stderr) == (1, "")


def test_a_report_that_nobody_can_read_changes_nothing(backs, tiny_folder, tmp_path):
    arguments = ("generate", backs / "anna.png", "nobody.png", "-o", tmp_path / "fronts", "--model", tiny_folder)
    with open("/dev/full", "w") as stderr:
        process = command(*arguments, stderr=stderr)
        stdout, _ = process.communicate(timeout=200)
    assert (process.returncode, stdout) == (1, f"1 of 1 fronts were written to {tmp_path / 'fronts'}\n")


def test_streams_that_are_closed(run, backs, monkeypatch):
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", None)  # as Python has it then
        code, _, err = run(backs / "anna.png")
    assert (code, err) == (0, "backshan: 1 of 1 fronts were written to fronts.\n")
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stderr", None)
        code, out, _ = run(backs / "anna.png", "nobody.png")
    assert (code, out) == (1, "1 of 1 fronts were written to fronts\n")


def test_characters_that_stdout_lacks_are_written_as_escapes(backs, tiny_folder, tmp_path):
    out = tmp_path / "着物"
    arguments = ("generate", backs / "anna.png", "無.png", "-o", out, "--model", tiny_folder)
    stdout, stderr = command(*arguments, PYTHONIOENCODING="ascii").communicate(timeout=200)
    assert stdout == f"1 of 1 fronts were written to {tmp_path}/\\u7740\\u7269\n"
    assert stderr.startswith("backshan: \\u7121.png does not exist: ")
    assert written(out) == ["anna_front.png"]


def test_a_name_cannot_move_the_cursor(run, backs):
    code, out, err = run(backs / "anna.png", "no\x1b[2J.png", "-o", "two\nlines " + os.fsdecode(b"\xe9") + " 前")
    assert code == 1
    assert out == "1 of 1 fronts were written to two\\nlines \\udce9 前\n"
    assert err.startswith("backshan: no\\x1b[2J.png does not exist: ")


def test_two_runs_at_once_into_one_folder(run, backs, tiny_folder, tmp_path):
    out = tmp_path / "shared"
    options = ("--sheet", "--prompt", "x" * 500)
    processes = [command("generate", backs, "-o", out, "--model", tiny_folder, *options) for _ in range(2)]
    for process in processes:
        _, stderr = process.communicate(timeout=400)
        assert process.returncode == 0
        assert stderr == "backshan: the prompt has 500 tokens: only the first 75 are used.\n"  # and no library's
    run(backs, *options)
    assert written(out) == written()
    for name in written():
        assert np.array_equal(pixels(out / name), pixels(f"fronts/{name}"))


# the command itself


def test_help_and_version_import_nothing_heavy():
    check = (
        "import sys\nfrom backshan_diffusers import cli\n"
        "for arguments in (['--help'], ['generate', '--help'], ['--version']):\n"
        "    try: cli.main(arguments)\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'cv2', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"backshan {backshan_diffusers.__version__}"


def test_the_command_is_installed():
    program = Path(sys.executable).with_name("backshan")
    assert program.exists(), "the package is not installed here: run make test, or pip install -e ."
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"backshan {backshan_diffusers.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["draw"], ["--model", "mini"]])
def test_a_command_is_required(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_libraries_are_as_loud_afterwards_as_before(run, backs):
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    run(backs / "anna.png")
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries] == before
    for library in libraries:
        library.disable_progress_bar()
    run(backs / "anna.png")
    assert not any(library.is_progress_bar_enabled() for library in libraries)
    for library, (_, with_bar) in zip(libraries, before, strict=True):
        if with_bar:
            library.enable_progress_bar()


def test_a_pipe_of_a_fronts_name_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "front.png")
    found = []
    # one that opens it would wait for ever
    asking = threading.Thread(target=lambda: found.append(outputs.is_ours(tmp_path / "front.png")), daemon=True)
    asking.start()
    asking.join(60)
    assert found == [False]
