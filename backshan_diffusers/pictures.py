"""Pictures in and out: any file, array or tensor becomes an upright RGB picture, and goes back to its own shape.

Whatever enters the package enters through [`load_picture`], so that bad input is refused here, once, with one
sentence.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin

from .files import complete_file

MINIMUM_SIDE = 16
"""Shorter side in px under which a picture is refused."""

MAXIMUM_ELONGATION = 8
"""Longer side divided by shorter side above which a picture is refused."""

BAND_PIXELS = 2**20
"""Pixels that are converted at a time, so that beside a large picture nothing large is in memory but its copy."""

WHITE = (255, 255, 255)

PICTURE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp")
)
"""What counts as a picture in a folder."""

UNREAD_SUFFIXES = frozenset((".cr2", ".dng", ".heic", ".heif", ".jxl", ".nef", ".svg"))
"""What people keep pictures in and Pillow does not open."""


class PictureError(ValueError):
    """A picture that cannot be used; the message is one sentence that names it and says what to do."""


def load_picture(source: Any, enough_pixels: int | None = None) -> PIL.Image.Image:
    """Read a picture, whatever it is, as an upright RGB picture without metadata.

    The camera's EXIF rotation is applied, transparency is composited on white, 16-bit grey is scaled to 8 bit, and of
    an animation the first frame is taken. Grey in 32-bit integers is taken for 8 bits where no value exceeds 255, else
    for 16.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`):
            A file, the bytes of one, a PIL picture of any mode, an array `(H, W)` or `(H, W, C)` of `bool`, `uint8`,
            `uint16` or floats in [0, 1], or a tensor `(C, H, W)` or `(1, C, H, W)` of the same types; `C` is 1 (grey),
            2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha).
        enough_pixels (`int`, *optional*):
            A large JPEG file may be decoded at a half, a quarter or an eighth of its size, as long as its longer side
            keeps at least this many px. By default it is decoded as it is.

    Returns:
        `PIL.Image.Image`: mode `RGB`.

    Raises:
        PictureError: if `source` is not a picture, is damaged, has more pixels than PIL's limit for decompression
            bombs, has a side of less than 16 px, or is longer than 8 times its width (or the other way round).
    """
    if isinstance(source, PIL.Image.Image):
        name = getattr(source, "filename", "") or "the picture"
        _check_size(source.size, name)
        return _decode(source, os.fspath(name))
    if isinstance(source, str) and not source:  # Path would make it the present folder
        raise PictureError("the path is empty: give the path of a picture, such as a JPEG or PNG file.")
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        raise PictureError(f"{source} is not on this machine: download the picture first, and give its path.")
    if isinstance(source, str | os.PathLike):
        return _load_file(Path(source), enough_pixels)
    if isinstance(source, bytes):
        return _load_encoded(BytesIO(source), "the file", enough_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, "the array")
    if type(source).__module__.partition(".")[0] == "torch" and hasattr(source, "detach"):
        return _from_array(_channels_last(source), "the tensor")
    raise PictureError(
        f"a picture cannot be read from {type(source).__name__}: give a path, bytes, a PIL picture, an array"
        " or a tensor."
    )


def pixels_to_decode(side: int, restore_size: bool) -> int | None:
    """`enough_pixels` for a picture that goes on a square of `side` px; `None` (all) where its size is restored."""
    return None if restore_size else 4 * side


def _load_file(path: Path, enough_pixels: int | None) -> PIL.Image.Image:
    try:
        is_file = path.is_file()
    except OSError as error:  # such as a name that is too long
        raise PictureError(f"{path} cannot be opened ({error.strerror}): give the path of a picture.") from error
    if not is_file:
        raise PictureError(f"{path} is not a file: give the path of a picture, such as a JPEG or PNG file.")
    if path.stat().st_size == 0:
        raise PictureError(f"{path} is empty: copy or download the picture again.")
    return _load_encoded(path, path, enough_pixels)


def _load_encoded(file: Path | BytesIO, name: Any, enough_pixels: int | None) -> PIL.Image.Image:
    try:
        with warnings.catch_warnings():
            # between one and two times its limit for bombs PIL only warns: such a picture is decoded in bounded memory
            warnings.simplefilter("ignore")
            image = PIL.Image.open(file)
    except PIL.Image.DecompressionBombError as error:
        raise _bomb(name) from error
    except PIL.UnidentifiedImageError as error:
        raise PictureError(f"{name} is not a picture that PIL can read: convert it to JPEG or PNG.") from error
    except PermissionError as error:
        raise PictureError(f"{name} may not be read by this user: change its permissions.") from error
    except Exception as error:  # damaged headers make PIL's readers raise nearly anything
        raise PictureError(
            f"{name} cannot be opened as a picture ({error}): copy it again, or convert it to JPEG or PNG."
        ) from error
    with image:
        if image.format == "EPS":  # PIL would let Ghostscript run it
            raise PictureError(f"{name} is a PostScript program, not a picture: convert it to JPEG or PNG.")
        _check_size(image.size, name)
        if enough_pixels is not None:
            share = enough_pixels / max(image.size)
            image.draft(None, tuple(max(1, round(side * share)) for side in image.size))
        return _decode(image, name)


def _bomb(name: Any) -> PictureError:
    return PictureError(f"{name} has too many pixels to be decoded safely: make it smaller and give it again.")


def _check_size(size: tuple[int, int], name: Any) -> None:
    width, height = size
    if min(size) < MINIMUM_SIDE:
        raise PictureError(
            f"{name} has {width} x {height} px, which is too small: both sides must have at least {MINIMUM_SIDE} px."
        )
    if max(size) > MAXIMUM_ELONGATION * min(size):
        raise PictureError(
            f"{name} has {width} x {height} px, which is too long: crop it to at most {MAXIMUM_ELONGATION}:1."
        )


def _decode(image: PIL.Image.Image, name: Any) -> PIL.Image.Image:
    try:
        with warnings.catch_warnings():
            # notes about palettes, EXIF and TIFF tags: nothing that a caller could act on
            warnings.simplefilter("ignore")
            image.load()
            return _upright(_to_rgb(image, name), image.getexif())
    except PictureError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise _bomb(name) from error
    except Exception as error:  # damaged data makes PIL's readers raise nearly anything
        # PIL has no class of error for it, and none at all where the file was not read before
        if str(error) == "Operation on closed image" or getattr(image, "fp", image) is None:
            raise PictureError(f"{name} was closed: give it while it is open, or give its path.") from error
        raise PictureError(f"{name} is damaged ({error}): copy or download the picture again.") from error


def _upright(picture: PIL.Image.Image, exif: PIL.Image.Exif) -> PIL.Image.Image:
    """The picture, rotated as the EXIF of what it was made from says."""
    orientation = PIL.ExifTags.Base.Orientation
    if orientation in exif:
        picture.getexif()[orientation] = exif[orientation]
        PIL.ImageOps.exif_transpose(picture, in_place=True)
        picture.getexif().clear()
    return picture


def _to_rgb(image: PIL.Image.Image, name: Any) -> PIL.Image.Image:
    if image.mode == "F":
        return _from_array(np.asarray(image), name)
    if image.mode == "I":  # PIL's 32 bits: nothing says which of them are used
        darkest, brightest = image.getextrema()
        if darkest < 0 or brightest > 65535:
            raise PictureError(f"{name} has grey values from {darkest} to {brightest}: save it with 8 or 16 bits.")
        if brightest <= 255:
            image = image.convert("L")
    picture, rows = PIL.Image.new("RGB", image.size), BAND_PIXELS // image.width
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        picture.paste(_band_to_rgb(band), (0, top))
    return picture


def _band_to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = _eight_bit(values.astype(np.uint16))
        if isinstance(image.info.get("transparency"), int):
            grey = np.where(values == image.info["transparency"], 255, grey).astype(np.uint8)
        return PIL.Image.fromarray(grey).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # the only way out of premultiplied grey
    if image.has_transparency_data:
        canvas = PIL.Image.new("RGBA", image.size, WHITE + (255,))
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image.convert("RGB")


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """0...65535 to 0...255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _channels_last(tensor: Any) -> np.ndarray:
    if tensor.is_meta:
        raise PictureError("the tensor is on the device meta, which holds no values: give one that is on the CPU.")
    if str(tensor.layout) != "torch.strided":
        raise PictureError(f"the tensor has the layout {tensor.layout}: give its to_dense().")
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 2, 3, 4):
        raise PictureError(
            f"the tensor has the shape {tuple(tensor.shape)}: give one picture as (C, H, W) with C of 1, 2, 3 or 4."
        )
    tensor = tensor.detach().cpu().permute(1, 2, 0)
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _from_array(array: np.ndarray, name: Any) -> PIL.Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)):
        raise PictureError(
            f"{name} has the shape {array.shape}: give one picture as (H, W) or (H, W, C) with C of 1, 2, 3 or 4."
        )
    _check_size((array.shape[1], array.shape[0]), name)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = _eight_bit(array)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise PictureError(f"{name} holds NaN or infinite values: give finite values in [0, 1].")
        if array.min() < 0 or array.max() > 1:
            raise PictureError(
                f"{name} holds floats from {array.min():g} to {array.max():g}: give floats in [0, 1], or 8 bits a"
                " channel."
            )
        array = (array.astype(np.float64) * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PictureError(f"{name} is of type {array.dtype}: give bool, uint8, uint16, or floats in [0, 1].")
    return _to_rgb(PIL.Image.fromarray(np.ascontiguousarray(array)), name)


@dataclass(frozen=True)
class Letterbox:
    """Puts pictures of one size on a square, and takes the content out of the square again.

    The aspect ratio is kept (the content's shorter side is rounded half up to whole px), the content lies in the
    middle (the odd pixel goes to the right or the bottom), and the padding has the median colour of the picture's
    border.

    Args:
        picture_size (`tuple[int, int]`): width and height of the pictures, in px.
        side (`int`): side of the square, in px.

    Raises:
        ValueError: if a size is not positive, or if a method gets a picture of another size than it is for.
    """

    picture_size: tuple[int, int]
    side: int

    def __post_init__(self):
        if min(self.picture_size) < 1 or self.side < 1:
            raise ValueError(f"a {self.picture_size} px picture cannot be put on {self.side} px: give positive sizes.")

    @property
    def content_size(self) -> tuple[int, int]:
        """Width and height of the content on the square, in px."""
        longer = max(self.picture_size)
        width, height = (max(1, (2 * length * self.side + longer) // (2 * longer)) for length in self.picture_size)
        return width, height

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the content on the square, in px."""
        width, height = self.content_size
        left, top = (self.side - width) // 2, (self.side - height) // 2
        return left, top, left + width, top + height

    def apply(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """The `picture` (of `picture_size`, RGB) on a square of `side` px, RGB."""
        content = self._content(picture)
        return self._on_square(content, border_colour(content))

    def apply_to_mask(self, mask: PIL.Image.Image) -> PIL.Image.Image:
        """The `mask` of a picture (of `picture_size`, `L`) on a square of `side` px, `L`, 0 in the padding."""
        return self._on_square(self._content(mask), 0)

    def _content(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        if picture.size != self.picture_size:
            raise ValueError(
                f"this letterbox is for {self.picture_size} px pictures: make another for {picture.size}."
            )
        return picture.resize(self.content_size, PIL.Image.Resampling.LANCZOS)

    def _on_square(self, content: PIL.Image.Image, padding: int | tuple[int, int, int]) -> PIL.Image.Image:
        square = PIL.Image.new(content.mode, (self.side, self.side), padding)
        square.paste(content, self.box[:2])
        return square

    def invert(self, square: PIL.Image.Image, size: tuple[int, int] | None = None) -> PIL.Image.Image:
        """The content of a `square` of `side` px, resized to `size` (width and height in px) if that is given."""
        if square.size != (self.side, self.side):
            raise ValueError(
                f"this letterbox is for squares of {self.side} px: it cannot invert one of {square.size}."
            )
        content = square.crop(self.box)
        return content if size is None else content.resize(size, PIL.Image.Resampling.LANCZOS)


def border_colour(picture: PIL.Image.Image) -> tuple[int, int, int]:
    """The median, channel by channel, of the outermost pixels of an RGB picture; each pixel counts once."""
    pixels = np.asarray(picture)
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[1:-1, 1:-1] = True
    red, green, blue = np.median(pixels[~inside], axis=0).round().astype(int).tolist()
    return red, green, blue


def save_picture(picture: PIL.Image.Image, path: str | os.PathLike, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a PNG file; it appears under its name only when it is complete.

    Args:
        picture: the picture, of any mode that PNG knows.
        path: the file to write; its folder must exist.
        metadata: written as text chunks, keys of 1 to 79 Latin-1 characters, values as `str`; `None` is left out.

    Raises:
        OSError: if the file cannot be written; nothing is left behind then.
    """
    chunks = PIL.PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        if value is not None:
            chunks.add_text(key, str(value))
    with complete_file(Path(path)) as pending:
        picture.save(pending, format="PNG", pnginfo=chunks)
