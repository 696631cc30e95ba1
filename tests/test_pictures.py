"""Reading pictures, the letterbox and its inverse, and what is written."""

import os
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch

from backshan_diffusers.pictures import (
    Letterbox,
    PictureError,
    border_colour,
    load_picture,
    save_picture,
)


def noise(width, height, channels=3, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def quadrants(width=32, height=48):
    """Red, green / blue, yellow: every flip and rotation of it looks different."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 0)
    return pixels


def png_header(width, height):
    """A PNG file that promises `width` x `height` px and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def read(source, **options):
    picture = load_picture(source, **options)
    assert picture.mode == "RGB" and not picture.info and not picture.getexif()
    return np.asarray(picture)


# what is read


def test_the_same_picture_from_every_source(tmp_path):
    pixels = noise(20, 30)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(read(opened), pixels)
    sources = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        PIL.Image.fromarray(pixels),
        pixels,
        pixels[:, ::-1][:, ::-1],
        pixels.astype(np.uint16) * 257,
        pixels.astype(np.float32) / 255,
        pixels.astype(np.float64) / 255,
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        torch.from_numpy(pixels).permute(2, 0, 1).float().requires_grad_() / 255,
    ]
    for source in sources:
        np.testing.assert_array_equal(read(source), pixels)
    half = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.bfloat16) / 255
    assert np.abs(read(half).astype(int) - pixels).max() <= 2


def test_grey_arrays():
    grey = noise(20, 30, channels=1)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    for source in (grey, grey[:, :, None], torch.from_numpy(grey)[None], PIL.Image.fromarray(grey)):
        np.testing.assert_array_equal(read(source), expected)
    np.testing.assert_array_equal(read(grey > 127), np.where(expected > 127, 255, 0))


def test_floats_are_rounded_not_truncated():
    assert read(np.full((16, 16, 3), 0.999))[0, 0, 0] == 255
    assert read(np.full((16, 16, 3), 100.4 / 255))[0, 0, 0] == 100
    assert read(np.full((16, 16, 3), 100.6 / 255))[0, 0, 0] == 101


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("form", ["array", "tensor", "png"])
def test_alpha_is_composited_on_white(tmp_path, channels, form):
    pixels = noise(24, 16, channels)
    source = pixels
    if form == "tensor":
        source = torch.from_numpy(pixels).permute(2, 0, 1)
    if form == "png":
        source = tmp_path / "alpha.png"
        PIL.Image.fromarray(pixels).save(source)
    alpha = pixels[:, :, -1:] / 255
    expected = np.broadcast_to(pixels[:, :, :-1], (16, 24, 3)) * alpha + 255 * (1 - alpha)
    assert np.abs(read(source) - expected).max() <= 1


def test_16_bit_alpha_arrays():
    pixels = np.zeros((16, 16, 4), np.uint16)
    pixels[:, :, 3] = 65535 // 2
    assert abs(int(read(pixels)[0, 0, 0]) - 128) <= 1


def test_palette_with_transparency(tmp_path):
    picture = PIL.Image.new("P", (20, 20), 1)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.paste(0, (0, 0, 10, 20))
    picture.save(tmp_path / "palette.png", transparency=0)
    pixels = read(tmp_path / "palette.png")
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, 19].tolist() == [200, 100, 50]
    picture.save(tmp_path / "bytes.png", transparency=bytes([128, 255]))
    assert np.abs(read(tmp_path / "bytes.png")[0, 0] - np.array([132, 137, 142])).max() <= 1


def test_transparent_colour_of_an_rgb_file(tmp_path):
    PIL.Image.fromarray(quadrants()).save(tmp_path / "key.png", transparency=(255, 0, 0))
    pixels = read(tmp_path / "key.png")
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, -1].tolist() == [0, 255, 0]


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    expected = np.rint(values / 257)[:, :, None].repeat(3, axis=2)
    PIL.Image.fromarray(values).save(tmp_path / "grey.png")
    PIL.Image.fromarray(values).save(tmp_path / "grey.tif")
    as_int32 = PIL.Image.fromarray(values.astype(np.int32))
    assert as_int32.mode == "I"
    for source in (tmp_path / "grey.png", tmp_path / "grey.tif", values, as_int32, PIL.Image.fromarray(values)):
        np.testing.assert_array_equal(read(source), expected)


@pytest.mark.parametrize(("brightest", "read_as"), [(255, [0, 100, 255]), (256, [0, 0, 1]), (65535, [0, 0, 255])])
def test_32_bit_grey_is_of_8_or_of_16_bits(tmp_path, brightest, read_as):
    values = np.zeros((16, 16), np.int32)
    values[0, :3] = 0, 100, brightest
    PIL.Image.fromarray(values).save(tmp_path / "grey.tif")
    for source in (tmp_path / "grey.tif", PIL.Image.fromarray(values)):
        assert read(source)[0, :3, 0].tolist() == read_as


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_grey_beyond_16_bits_is_refused(value):
    values = np.full((16, 16), 257, np.int32)
    values[3, 5] = value
    words = f"has grey values from {min(value, 257)} to {max(value, 257)}: save it with 8 or 16 bits."
    with pytest.raises(PictureError, match=words):
        load_picture(PIL.Image.fromarray(values))


def test_16_bit_grey_with_a_transparent_value():
    picture = PIL.Image.fromarray(np.full((16, 16), 1000, np.uint16))
    picture.putpixel((3, 2), 5000)
    picture.info["transparency"] = 1000
    pixels = read(picture)
    assert pixels[0, 0].tolist() == [255] * 3 and pixels[2, 3].tolist() == [19] * 3


def test_float_pictures():
    values = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    np.testing.assert_array_equal(read(PIL.Image.fromarray(values))[:, :, 1], np.rint(values * 255))
    with pytest.raises(PictureError, match=r"floats in \[0, 1\]"):
        load_picture(PIL.Image.fromarray(values * 200))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_is_read(mode):
    source = PIL.Image.fromarray(noise(18, 17))
    if mode in ("La", "RGBa"):
        source = source.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    if mode == "LAB":
        source = PIL.Image.new("LAB", (18, 17), (200, 128, 128))
    assert read(source.convert(mode)).shape == (17, 18, 3)


def test_cmyk_jpeg(tmp_path):
    PIL.Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red, green, blue = read(tmp_path / "cmyk.jpg")[16, 16].astype(int)
    assert red > 220 and green < 30 and blue < 30


def test_first_frame_of_an_animation(tmp_path):
    frames = [PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "lime")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
        red, green, blue = read(tmp_path / name)[10, 10].astype(int)
        assert red > 230 and green < 25 and blue < 25, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    upright = quadrants()
    stored = {  # how a camera stores the upright picture, from the EXIF standard's table
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.jpg"):
        PIL.Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif, quality=95, subsampling=0)
        with PIL.Image.open(tmp_path / name) as opened:
            read_both = [read(source).astype(int) for source in (tmp_path / name, opened)]
        for pixels in read_both:
            assert pixels.shape == upright.shape
            for y, x in ((6, 6), (6, 25), (41, 6), (41, 25)):
                assert np.abs(pixels[y, x] - upright[y, x]).max() < 12
    twice = load_picture(load_picture(tmp_path / "a.jpg"))
    assert np.abs(np.asarray(twice).astype(int)[6, 6] - upright[6, 6]).max() < 12


def test_reading_leaves_the_source_alone(tmp_path):
    source = PIL.Image.fromarray(noise(20, 20))
    source.info["comment"] = "kept"
    load_picture(source).putpixel((0, 0), (1, 2, 3))
    assert source.info == {"comment": "kept"} and source.getpixel((0, 0)) == tuple(noise(20, 20)[0, 0].tolist())


def test_large_jpeg_is_decoded_at_a_fraction(tmp_path):
    PIL.Image.fromarray(quadrants(1000, 1600)).save(tmp_path / "large.jpg")
    assert load_picture(tmp_path / "large.jpg").size == (1000, 1600)
    assert load_picture(tmp_path / "large.jpg", enough_pixels=400).size == (250, 400)
    assert load_picture(tmp_path / "large.jpg", enough_pixels=401).size == (500, 800)
    assert load_picture((tmp_path / "large.jpg").read_bytes(), enough_pixels=401).size == (500, 800)
    assert load_picture(tmp_path / "large.jpg", enough_pixels=5000).size == (1000, 1600)
    PIL.Image.fromarray(quadrants(60, 94)).save(tmp_path / "small.jpg")
    assert load_picture(tmp_path / "small.jpg", enough_pixels=47).size == (30, 47)
    assert load_picture(tmp_path / "small.jpg", enough_pixels=48).size == (60, 94)  # 94 * (48 / 94) is below 48
    assert np.abs(read(tmp_path / "large.jpg", enough_pixels=200)[10, 10].astype(int) - [255, 0, 0]).max() < 12
    PIL.Image.fromarray(quadrants(1600, 200)).save(tmp_path / "long.jpg")
    assert load_picture(tmp_path / "long.jpg", enough_pixels=3).size == (200, 25)  # an eighth is the least there is


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from /proc")


def mebibytes_to_read(path: Path) -> float:
    """By how much a process grows that puts a picture on a square. Its `ru_maxrss` would begin with its parent's."""
    script = (
        "import re, sys; from pathlib import Path\n"
        "from backshan_diffusers.pictures import Letterbox, load_picture\n"
        "def peak(): return int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak(); picture = load_picture(sys.argv[1], enough_pixels=512)\n"
        "square = Letterbox(picture.size, 128).apply(picture); assert square.size == (128, 128)\n"
        "print((peak() - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    return float(done.stdout)


@needs_proc
def test_panorama_in_bounded_memory(tmp_path):
    PIL.Image.new("RGB", (20_000, 4_000), (120, 60, 30)).save(tmp_path / "panorama.jpg")
    assert load_picture(tmp_path / "panorama.jpg", enough_pixels=512).size == (2500, 500)
    assert mebibytes_to_read(tmp_path / "panorama.jpg") < 60, "for a picture of 229 MiB"


@needs_proc
def test_of_a_large_picture_there_is_one_copy(tmp_path):
    """Of 61 MiB as it is read and 244 MiB as RGB; what lies between them is made in bands."""
    large = PIL.Image.new("P", (8000, 8000), 3)
    large.putpalette([value for value in range(256) for _ in range(3)])
    large.paste(200, (0, 7990, 8000, 8000))
    large.save(tmp_path / "large.png", transparency=3)
    picture = load_picture(tmp_path / "large.png")
    assert picture.getpixel((7999, 7989)) == (255, 255, 255) and picture.getpixel((0, 7990)) == (200, 200, 200)
    assert mebibytes_to_read(tmp_path / "large.png") < 340


# what is refused

TEXT = b"this is not a picture at all, only some text that is long enough to be looked at"


def refused(source, *words):
    """The one sentence with which a source is refused; it holds these words, and nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError) as caught:
            load_picture(source)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message, message
    return message


def test_not_a_picture(tmp_path):
    for name, content in {"notes.txt": TEXT, "fake.jpg": TEXT, "zero.png": bytes(500)}.items():
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name, name, "convert it to JPEG or PNG")
        assert refused(content, "the file", "convert it to JPEG or PNG")
    (tmp_path / "nothing.png").write_bytes(b"")
    assert refused(tmp_path / "nothing.png", "nothing.png", "is empty")


def test_no_file(tmp_path):
    assert refused(tmp_path / "missing.png", "missing.png", "give the path")
    assert refused(str(tmp_path), str(tmp_path), "is not a file", "give the path")
    assert refused("", "the path is empty", "give the path")
    assert refused("a" * 5000, "cannot be opened", "too long", "give the path")
    for address in ("https://example.org/back.png", "http://example.org/back.png", "HTTPS://EXAMPLE.ORG/BACK.PNG"):
        assert refused(address, address, "download the picture first")


def test_a_closed_picture(tmp_path):
    PIL.Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as unread:
        pass
    made = PIL.Image.new("RGB", (20, 20))
    made.close()
    for closed in (unread, made):
        assert refused(closed, "was closed", "give it while it is open")


def test_arrays_of_the_other_byte_order():
    for kind in ("u2", "f4"):
        values = (noise(20, 20) / 255 * (65535 if kind == "u2" else 1)).astype(kind)
        assert np.array_equal(read(values.astype(f">{kind}")), read(values))
        assert np.array_equal(read(values.astype(f"<{kind}")), read(values))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif"])
def test_truncated(tmp_path, name):
    PIL.Image.fromarray(noise(64, 64)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert read(tmp_path / name).shape == (64, 64, 3)
    for share in (0.9, 0.5, 0.2):
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        message = refused(tmp_path / name, name)
        assert "is damaged" in message or "cannot be opened as a picture" in message
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    if name != "a.webp":  # which PIL decodes when it opens it
        with PIL.Image.open(tmp_path / name) as opened:
            assert refused(opened, name, "is damaged", "copy or download the picture again")


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "a.gif", "a.tif", "a.webp"):
        PIL.Image.fromarray(noise(40, 40)).save(tmp_path / name)
        content = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(30):
            damaged = content.copy()
            damaged[generator.integers(0, min(len(content), 300), 6)] = generator.integers(0, 256, 6)
            (tmp_path / name).write_bytes(damaged.tobytes())
            try:
                load_picture(tmp_path / name)
            except PictureError as error:
                assert name in str(error)


@pytest.mark.parametrize("size", [(1, 1), (15, 200 - 100), (100, 15), (15, 15)])
def test_too_small(tmp_path, size):
    PIL.Image.new("RGB", size).save(tmp_path / "small.png")
    for source in (tmp_path / "small.png", PIL.Image.new("RGB", size), np.zeros((*size[::-1], 3), np.uint8)):
        assert refused(source, f"{size[0]} x {size[1]} px", "too small")
    assert load_picture(PIL.Image.new("RGB", (16, 16))).size == (16, 16)


def test_too_long(tmp_path):
    PIL.Image.new("L", (30_000, 10)).save(tmp_path / "long.png")
    assert refused(tmp_path / "long.png", "30000 x 10 px")
    for size in ((16 * 8 + 1, 16), (16, 16 * 8 + 1)):
        assert refused(PIL.Image.new("L", size), "too long", "8:1")
    assert load_picture(PIL.Image.new("L", (16 * 8, 16))).size == (128, 16)
    assert load_picture(PIL.Image.new("L", (16, 16 * 8))).size == (16, 128)


def test_decompression_bomb(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(tmp_path / "bomb.png", "bomb.png", "too many pixels")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_bomb_within_an_icon(tmp_path):
    """The size that the icon's header tells is small; its picture is opened when it is decoded."""
    bomb = png_header(60_000, 60_000)
    entry = struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 32, len(bomb), 22)
    (tmp_path / "bomb.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + bomb)
    assert refused(tmp_path / "bomb.ico", "bomb.ico", "too many pixels")


def test_between_one_and_two_limits_nothing_leaks(tmp_path, monkeypatch):
    PIL.Image.new("RGB", (30, 30), "red").save(tmp_path / "large.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_picture(tmp_path / "large.png").size == (30, 30)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 400)
    assert refused(tmp_path / "large.png", "too many pixels")


def test_arrays_that_are_no_picture():
    assert refused(np.full((20, 20, 3), np.nan), "NaN")
    assert refused(np.full((20, 20, 3), np.inf, np.float32), "NaN or infinite")
    assert refused(np.full((20, 20, 3), 7.0), "floats from 7 to 7")
    assert refused(np.full((20, 20, 3), -0.1), "floats from -0.1")
    assert refused(np.zeros((20, 20, 3), np.int64), "int64")
    assert refused(np.zeros((0, 20, 3), np.uint8), "shape")
    assert refused(np.zeros(20, np.uint8), "(20,)")
    assert refused(np.zeros((20, 20, 5), np.uint8), "(20, 20, 5)")
    assert refused(np.zeros((3, 20, 20), np.uint8), "(3, 20, 20)")
    assert refused(np.zeros((1, 20, 20, 3), np.uint8), "(1, 20, 20, 3)")
    assert refused(torch.zeros(20, 20, 3), "(20, 20, 3)")
    assert refused(torch.zeros(2, 3, 20, 20), "(2, 3, 20, 20)")
    assert refused(torch.zeros(20, 20), "(20, 20)")
    assert refused(torch.zeros(3, 20, 0), "shape")
    assert refused(torch.full((3, 20, 20), torch.nan), "NaN")
    assert refused(torch.zeros(3, 20, 20, dtype=torch.int64), "int64")
    assert refused(torch.zeros(3, 20, 20, device="meta"), "meta", "no values")
    assert refused(torch.zeros(3, 20, 20).to_sparse(), "sparse_coo", "to_dense()")
    assert refused(7, "int")
    assert refused(None, "NoneType")


# the letterbox


def content_size(width, height, side):
    """Independent of the implementation: exact fractions, rounded half up."""
    from fractions import Fraction
    from math import floor

    scale = Fraction(side, max(width, height))
    return tuple(max(1, floor(length * scale + Fraction(1, 2))) for length in (width, height))


@pytest.mark.parametrize("side", [64, 127, 128, 512])
def test_content_box_is_exact_for_every_aspect_ratio(side):
    for width in [*range(16, 300, 7), 333, 500, 1024, 4001]:
        for height in [*range(16, 300, 11), 401, 512, 3000]:
            letterbox = Letterbox((width, height), side)
            left, top, right, bottom = letterbox.box
            assert (right - left, bottom - top) == content_size(width, height, side) == letterbox.content_size
            assert max(right - left, bottom - top) == side
            assert 0 <= side - right - left <= 1 and 0 <= side - bottom - top <= 1
            assert 0 <= left < right <= side and 0 <= top < bottom <= side


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (41, 97), (97, 41), (64, 64), (63, 64), (17, 130), (300, 200)])
def test_letterbox_keeps_the_content_where_invert_finds_it(size):
    picture = PIL.Image.fromarray(noise(*size))
    letterbox = Letterbox(size, 64)
    square = letterbox.apply(picture)
    assert square.size == (64, 64) and square.mode == "RGB"
    expected = picture.resize(content_size(*size, 64), PIL.Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(letterbox.invert(square)), np.asarray(expected))

    left, top, right, bottom = letterbox.box
    inside = np.zeros((64, 64), bool)
    inside[top:bottom, left:right] = True
    padding = np.asarray(square)[~inside]
    content = np.asarray(expected)
    ring = np.concatenate([content[0], content[-1], content[1:-1, 0], content[1:-1, -1]])
    assert (padding == np.rint(np.median(ring, axis=0))).all()


def test_letterbox_of_a_square_at_native_size_changes_nothing():
    picture = PIL.Image.fromarray(noise(64, 64))
    letterbox = Letterbox((64, 64), 64)
    np.testing.assert_array_equal(np.asarray(letterbox.apply(picture)), np.asarray(picture))
    np.testing.assert_array_equal(np.asarray(letterbox.invert(picture)), np.asarray(picture))


def test_invert_resizes_when_asked():
    letterbox = Letterbox((90, 30), 60)
    square = PIL.Image.new("RGB", (60, 60), "white")
    square.paste((200, 10, 20), letterbox.box)
    assert letterbox.invert(square).size == (60, 20)
    restored = letterbox.invert(square, (90, 30))
    assert restored.size == (90, 30) and (np.asarray(restored) == (200, 10, 20)).all()
    square = PIL.Image.fromarray(noise(60, 60))
    expected = square.crop(letterbox.box).resize((90, 30), PIL.Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(letterbox.invert(square, (90, 30))), np.asarray(expected))


def test_resizing_down_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    content = np.asarray(Letterbox((256, 256), 64).apply(PIL.Image.fromarray(stripes)))[8:-8, 8:-8]
    assert abs(content.mean() - 127.5) < 2 and content.std() < 3


def test_border_colour_is_the_median_of_the_outermost_pixels():
    pixels = np.full((20, 30, 3), 99, np.uint8)
    pixels[0] = pixels[-1] = (10, 20, 30)
    pixels[:, 0] = pixels[:, -1] = (10, 20, 30)
    pixels[0, 3:12] = (255, 0, 255)
    assert border_colour(PIL.Image.fromarray(pixels)) == (10, 20, 30)


def test_letterbox_refuses_what_is_not_its_own():
    letterbox = Letterbox((30, 40), 64)
    with pytest.raises(ValueError, match=r"\(40, 30\)"):
        letterbox.apply(PIL.Image.new("RGB", (40, 30)))
    with pytest.raises(ValueError, match="64 px"):
        letterbox.invert(PIL.Image.new("RGB", (64, 63)))
    with pytest.raises(ValueError, match="positive"):
        Letterbox((0, 40), 64)
    with pytest.raises(ValueError, match="positive"):
        Letterbox((3, 40), 0)
    with pytest.raises(AttributeError):
        letterbox.side = 3


# files


def test_postscript_is_never_run(tmp_path):
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.png")
    with pytest.raises(PictureError, match="is a PostScript program, not a picture"):
        load_picture(tmp_path / "a.png")


def test_a_picture_that_may_not_be_read(tmp_path, monkeypatch):
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")

    def forbidden(path):  # root may read every file, so that permissions cannot be tested
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(PIL.Image, "open", forbidden)
    with pytest.raises(PictureError, match="a.png may not be read by this user: change its permissions"):
        load_picture(tmp_path / "a.png")


def test_saved_picture_comes_back_with_its_metadata(tmp_path):
    pixels = noise(20, 30)
    metadata = {"seed": 7, "model": "mini", "prompt": "前から見た人", "empty": None}
    save_picture(PIL.Image.fromarray(pixels), tmp_path / "a.png", metadata)
    with PIL.Image.open(tmp_path / "a.png") as again:
        assert again.format == "PNG"
        assert again.text == {"seed": "7", "model": "mini", "prompt": "前から見た人"}
        np.testing.assert_array_equal(np.asarray(again), pixels)
    save_picture(PIL.Image.fromarray(pixels[::-1]), str(tmp_path / "a.png"))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), pixels[::-1])
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path):
    save_picture(PIL.Image.new("RGB", (20, 20), "red"), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(OSError, match="cannot write mode"):
        save_picture(PIL.Image.new("HSV", (20, 20)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before and os.listdir(tmp_path) == ["a.png"]
    with pytest.raises(OSError, match="no_such_folder"):
        save_picture(PIL.Image.new("RGB", (20, 20)), tmp_path / "no_such_folder" / "a.png")


def test_nothing_is_left_behind_when_the_file_cannot_be_put_in_place(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError, match="a.png"):
        save_picture(PIL.Image.new("RGB", (20, 20)), tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_the_file_appears_only_when_it_is_complete(tmp_path, monkeypatch):
    replaced = []

    def replace(source, target, really=os.replace):
        with PIL.Image.open(source) as picture:
            picture.load()
        assert os.path.dirname(source) == str(tmp_path) and not os.path.exists(target)
        replaced.append(target)
        really(source, target)

    monkeypatch.setattr(os, "replace", replace)
    save_picture(PIL.Image.new("RGB", (20, 20)), tmp_path / "a.png")
    assert len(replaced) == 1
