"""The control tensor: channels, mirroring, edges."""

import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_autoencoder, tiny_pipeline

from backshan_diffusers.conditioning import (
    CONDITIONINGS,
    blank_control,
    conditioning_channels,
    control_image,
    control_latents,
    control_picture,
    picture_latents,
)

PICTURES = ("canny", "rgb", "canny+rgb")


def drawing(width=96, height=64):
    """An asymmetric drawing with a strong and a faint shape."""
    pixels = np.full((height, width, 3), (200, 190, 180), np.uint8)
    cv2.circle(pixels, (25, 30), 14, (20, 60, 160), -1)
    cv2.rectangle(pixels, (55, 10), (85, 50), (180, 172, 164), -1)
    pixels[::7, ::5] += np.uint8(9)
    return PIL.Image.fromarray(pixels)


def edges(pixels, low=100, high=200):
    return cv2.Canny(np.ascontiguousarray(pixels), low, high)


def test_channels():
    assert (*PICTURES, "latents") == CONDITIONINGS
    assert [conditioning_channels(name, 8) for name in CONDITIONINGS] == [3, 3, 6, 8]
    for name in PICTURES:
        control = control_image(drawing(), name, mirror=False)
        assert control.shape == (conditioning_channels(name, 8), 64, 96)
        assert control.dtype == torch.float32 and control.is_contiguous()
        assert control.min() >= 0 and control.max() <= 1


@pytest.mark.parametrize("mirror", [False, True])
def test_rgb_is_the_picture(mirror):
    pixels = np.asarray(drawing())
    expected = (pixels[:, ::-1] if mirror else pixels).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(control_image(drawing(), "rgb", mirror).numpy(), expected)


@pytest.mark.parametrize("mirror", [False, True])
def test_canny_is_three_equal_channels_of_the_mirrored_picture(mirror):
    pixels = np.asarray(drawing())
    expected = edges(pixels[:, ::-1] if mirror else pixels) / 255
    control = control_image(drawing(), "canny", mirror).numpy()
    assert 0.01 < expected.mean() < 0.5 and set(np.unique(control)) == {0.0, 1.0}
    for channel in control:
        np.testing.assert_array_equal(channel, expected)


def test_mirroring_is_flipping_the_picture_first():
    flipped = drawing().transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    for name in PICTURES:
        torch.testing.assert_close(
            control_image(drawing(), name, mirror=True), control_image(flipped, name, mirror=False), rtol=0, atol=0
        )
        assert not torch.equal(control_image(drawing(), name, True), control_image(drawing(), name, False))


@pytest.mark.parametrize("mirror", [False, True])
def test_canny_and_rgb_stand_in_the_order_of_the_name(mirror):
    both = control_image(drawing(), "canny+rgb", mirror)
    assert torch.equal(both[:3], control_image(drawing(), "canny", mirror))
    assert torch.equal(both[3:], control_image(drawing(), "rgb", mirror))


def test_thresholds_are_used():
    pixels = np.asarray(drawing())
    for low, high in ((100, 200), (20, 60), (20, 200), (180, 200), (300, 900), (900, 2500)):
        control = control_image(drawing(), "canny", False, low, high)
        np.testing.assert_array_equal(control[0].numpy(), edges(pixels, low, high) / 255)
    counts = [control_image(drawing(), "canny", False, *each).sum() for each in ((100, 200), (20, 60), (900, 2500))]
    assert counts[2] < counts[0] < counts[1]


def test_default_thresholds_are_those_of_controlnet_aux():
    pixels = np.random.default_rng(0).integers(80, 140, (200, 300, 3), dtype=np.uint8)  # gradients of every strength
    found = control_image(PIL.Image.fromarray(pixels), "canny", False)[0].numpy()
    np.testing.assert_array_equal(found, edges(pixels) / 255)
    for others in ((98, 200), (102, 200), (100, 198), (100, 202)):
        assert not np.array_equal(found, edges(pixels, *others) / 255)


def test_edges_are_looked_for_in_red_first():
    """Where two channels change equally OpenCV takes the first one's direction, so the channels' order matters."""
    pixels = np.random.default_rng(0).choice(np.uint8([0, 255]), (64, 96, 3))
    found = control_image(PIL.Image.fromarray(pixels), "canny", False)[0].numpy()
    np.testing.assert_array_equal(found, edges(pixels) / 255)
    assert not np.array_equal(found, edges(pixels[:, :, ::-1]) / 255)


def test_edges_equal_those_of_controlnet_aux(tmp_path):
    """In a process of its own, because importing controlnet_aux imports a dozen other detectors."""
    pixels = np.asarray(drawing(128, 128))
    np.save(tmp_path / "pixels.npy", pixels)
    script = (
        "import sys, numpy; from controlnet_aux import CannyDetector\n"
        "pixels = numpy.load(sys.argv[1] + '/pixels.npy')\n"
        "found = CannyDetector()(pixels, 60, 150, detect_resolution=128, image_resolution=128)\n"
        "numpy.save(sys.argv[1] + '/edges.npy', found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    if "No module named 'controlnet_aux'" in done.stderr:
        pytest.skip("controlnet_aux is not installed")
    assert done.returncode == 0, done.stderr
    expected = np.load(tmp_path / "edges.npy").transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(
        control_image(PIL.Image.fromarray(pixels), "canny", False, 60, 150).numpy(), expected
    )


@pytest.mark.parametrize("name", PICTURES)
def test_control_picture_shows_what_entered(name):
    control = control_image(drawing(), name, mirror=True)
    pixels = np.asarray(control_picture(control, name))
    flipped = np.asarray(drawing())[:, ::-1]
    parts = {"canny": edges(flipped)[:, :, None].repeat(3, axis=2), "rgb": flipped}
    np.testing.assert_array_equal(pixels, np.concatenate([parts[part] for part in name.split("+")], axis=1))


def test_control_picture_rounds():
    values = torch.tensor([0.0, 0.4, 0.6, 254.4, 254.6, 255.0]) / 255
    pixels = np.asarray(control_picture(values.expand(3, 1, 6), "rgb"))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]


def test_bad_arguments_are_refused():
    for call in (
        lambda: conditioning_channels("depth", 4),
        lambda: control_image(drawing(), "rgb+canny", False),
        lambda: control_picture(torch.zeros(3, 8, 8), "edges"),
    ):
        with pytest.raises(ValueError, match="choose one of canny, rgb, canny\\+rgb, latents\\."):
            call()
    for picture in (drawing().convert("L"), drawing().convert("RGBA"), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="load_picture"):
            control_image(picture, "rgb", False)
    for shape in ((3, 8, 8), (6, 8), (6, 8, 8, 1)):
        with pytest.raises(ValueError, match="6 x H x W"):
            control_picture(torch.zeros(shape), "canny+rgb")
    for call in (
        lambda: control_image(drawing(), "latents", False),
        lambda: control_picture(torch.zeros(4, 8, 8), "latents"),
    ):
        with pytest.raises(ValueError, match="^latents are no picture: make one as rgb, .*\\.$"):
            call()


@torch.no_grad()
def test_latents_are_the_scaled_means_of_the_posterior():
    vae = tiny_pipeline().vae
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae.register_to_config(scaling_factor=0.25)
    latents = picture_latents(pixels, vae)
    assert latents.shape == (2, 4, 8, 8) and not latents.requires_grad
    torch.testing.assert_close(latents, vae.encode(pixels).latent_dist.mode() / 4)
    halved = picture_latents(pixels, vae.bfloat16())
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, latents, atol=0.1, rtol=0)


@torch.no_grad()
def test_a_tiny_autoencoder_gives_latents_too():
    vae = tiny_autoencoder()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae.register_to_config(scaling_factor=0.25)
    torch.testing.assert_close(picture_latents(pixels, vae), vae.encode(pixels).latents / 4)


def test_latents_are_repeated_over_the_pixels_they_stand_for():
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    control = control_latents(latents, 64)
    assert torch.equal(control, torch.from_numpy(np.kron(latents.numpy(), np.ones((8, 8), np.float32))))


def test_a_blank_control_is_that_of_a_white_picture():
    vae, white = tiny_pipeline().vae, np.full((64, 64, 3), 255, np.uint8)
    for name in PICTURES:
        assert torch.equal(blank_control(name, 64, vae), control_image(white, name, mirror=False))
    expected = control_latents(picture_latents(control_image(white, "rgb", mirror=False)[None] * 2 - 1, vae), 64)[0]
    assert expected.std() > 0.01
    assert torch.equal(blank_control("latents", 64, vae), expected)
