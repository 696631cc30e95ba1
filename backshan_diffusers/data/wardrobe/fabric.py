"""Cloth, skin and hair as look-up tables: a colour for every (pattern step, amount of light)."""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .canvas import SHADES
from .draws import Draws

RGB = tuple[int, int, int]
UNITS = 1024  # pattern coordinates are integers: this many to the height of the figure
NOISE_SIDE = 64

COLORS: dict[str, RGB] = {
    "white": (240, 240, 238),
    "cream": (238, 226, 200),
    "beige": (212, 190, 158),
    "camel": (190, 142, 88),
    "brown": (118, 78, 52),
    "black": (52, 50, 56),
    "charcoal": (82, 84, 92),
    "grey": (150, 152, 158),
    "silver": (198, 202, 208),
    "navy": (46, 58, 100),
    "blue": (62, 108, 182),
    "sky": (138, 186, 226),
    "teal": (40, 132, 136),
    "mint": (158, 214, 192),
    "green": (70, 142, 86),
    "olive": (118, 122, 66),
    "yellow": (240, 202, 84),
    "mustard": (208, 158, 48),
    "orange": (232, 134, 58),
    "coral": (238, 122, 104),
    "red": (198, 54, 58),
    "burgundy": (128, 40, 62),
    "pink": (240, 168, 186),
    "magenta": (194, 66, 132),
    "lilac": (186, 164, 216),
    "purple": (112, 76, 152),
}
DENIMS: dict[str, RGB] = {
    "indigo": (56, 72, 112),
    "mid blue": (88, 118, 164),
    "light wash": (150, 176, 206),
    "black denim": (62, 62, 70),
}
SKINS: dict[str, RGB] = {
    "porcelain": (250, 220, 202),
    "fair": (242, 202, 174),
    "light": (228, 182, 148),
    "olive": (208, 160, 120),
    "tan": (184, 132, 92),
    "brown": (146, 98, 66),
    "deep": (108, 70, 50),
}
HAIR_COLORS: dict[str, RGB] = {
    "black": (46, 40, 44),
    "dark brown": (76, 52, 42),
    "brown": (116, 76, 50),
    "auburn": (146, 70, 42),
    "ginger": (204, 108, 50),
    "blonde": (226, 186, 112),
    "platinum": (236, 222, 190),
    "grey": (164, 164, 170),
    "dyed pink": (226, 120, 160),
    "dyed blue": (70, 116, 180),
}


def scaled(rgb: RGB, percent: int) -> RGB:
    """The colour made darker (below 100) or lighter (above 100)."""
    red, green, blue = rgb
    return min(255, red * percent // 100), min(255, green * percent // 100), min(255, blue * percent // 100)


def mixed(first: RGB, second: RGB, percent: int) -> RGB:
    """`percent` of the second colour in the first."""
    return tuple((a * (100 - percent) + b * percent) // 100 for a, b in zip(first, second, strict=True))


@lru_cache(maxsize=64)
def shade_curve(light_steps: int, roundness_steps: int) -> np.ndarray:
    """Light across a part from its lit side to its dark side, in 1/128 (SHADES, int32).

    Lambert's law on a cylinder: the normal turns from one side to the other, `roundness_steps` / 10 says how far, and
    the light comes from the lit side at `light_steps` / 10 of a right angle.
    """
    lamp = light_steps * math.pi / 20
    curve = []
    for step in range(SHADES):
        across = (2 * (step + 0.5) / SHADES - 1) * roundness_steps / 10
        facing = math.sqrt(1 - across * across) * math.cos(lamp) - across * math.sin(lamp)
        curve.append(int(128 * (0.56 + 0.52 * max(0.0, facing)) + 0.5))
    return np.array(curve, np.int32)


def _noise_table() -> np.ndarray:
    draws = Draws(20)
    rows = [[int(draws.uniform(0, 3)) for _ in range(NOISE_SIDE)] for _ in range(NOISE_SIDE)]
    return np.array(rows, np.int32)


_NOISE = _noise_table()


def _h_stripes(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    return ((2 * along) // period) & 1


def _v_stripes(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    return ((2 * across + period // 2) // period) & 1


def _checks(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    return _h_stripes(across, along, period) + _v_stripes(across, along, period)


def _plaid(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    rows = (along % period < period // 4).astype(np.int32)
    columns = ((across + period // 8) % period < period // 4).astype(np.int32)
    return rows + columns


def _dots(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    shift = ((along // period) & 1) * (period // 2)
    dx = (across + shift + period // 2) % period - period // 2
    dy = along % period - period // 2
    return ((dx * dx + dy * dy) * 12 < period * period).astype(np.int32)


def _gradient(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    return np.clip((along - 180) * 8 // 360, 0, 7)


def _speckle(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    return _NOISE[(along // 7) % NOISE_SIDE, (across // 7) % NOISE_SIDE]


def _knit(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    return ((2 * (along + np.abs(across % period - period // 2))) // period) & 1


def _block(across: np.ndarray, along: np.ndarray, period: int) -> np.ndarray:
    return (along > 320).astype(np.int32)


# name: (index function, what becomes of the two colours in the table's steps, in percent of the accent)
PATTERNS = {
    "plain": (None, (0,)),
    "horizontal stripes": (_h_stripes, (0, 100)),
    "vertical stripes": (_v_stripes, (0, 100)),
    "checks": (_checks, (0, 50, 100)),
    "plaid": (_plaid, (0, 65, 100)),
    "dots": (_dots, (0, 100)),
    "gradient": (_gradient, tuple(range(0, 101, 14))),
    "denim": (_speckle, (0, 12, 24)),
    "knit": (_knit, (0, 24)),
    "colour block": (_block, (0, 100)),
}


@dataclass
class Cloth:
    """A material: its colour, and a pattern towards an accent colour. `period` is in 1/1024 of the figure's height."""

    rgb: RGB
    accent: RGB = (255, 255, 255)
    pattern: str = "plain"
    period: int = 60
    _tables: dict = field(default_factory=dict, repr=False)

    def table(self, light_steps: int, roundness_steps: int) -> np.ndarray:
        """Colours by pattern step and shade (steps * SHADES, uint32 of four bytes: red, green, blue, 0)."""
        key = (light_steps, roundness_steps)
        if key not in self._tables:
            steps = [(*mixed(self.rgb, self.accent, percent), 0) for percent in PATTERNS[self.pattern][1]]
            colors = np.multiply.outer(np.array(steps, np.int32), shade_curve(light_steps, roundness_steps)) >> 7
            bytes_last = np.minimum(colors, 255).astype(np.uint8).transpose(0, 2, 1)
            self._tables[key] = np.ascontiguousarray(bytes_last).view(np.uint32).ravel()
        return self._tables[key]

    def steps(self, across: np.ndarray, along: np.ndarray) -> np.ndarray:
        """The pattern step at integer cloth coordinates (broadcast to h x w) of cloth that is not plain."""
        return PATTERNS[self.pattern][0](across, along, self.period)

    def dark(self, percent: int = 60) -> RGB:
        """The colour of its outlines and seams."""
        return scaled(self.rgb, percent)

    def trim(self, percent: int = 84) -> "Cloth":
        """Plain cloth of the same colour, a little darker: ribs, cuffs, collars."""
        return Cloth(scaled(self.rgb, percent))
