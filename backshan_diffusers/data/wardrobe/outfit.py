"""What is worn and who wears it: plain data, sampled from seeds, no drawing."""

from dataclasses import dataclass

from .draws import Draws
from .fabric import COLORS, DENIMS, HAIR_COLORS, SKINS, Cloth, mixed, scaled


@dataclass(frozen=True)
class TopSpec:
    """How a kind of top is cut. Heights and widths are fractions of the figure's height."""

    sleeve: float = 1.0  # share of the arm that is covered
    hem: float = 0.5  # height of the hem below the crown
    ease: float = 0.012  # room between body and cloth
    flare: float = 0.0  # extra half width at the hem
    neck: str = "crew"
    neck_back: str = "nape"
    collar: str = "none"
    closure: str = "none"
    details: tuple[str, ...] = ()
    opens: bool = False  # may be worn open over an inner top
    dress: bool = False
    patterns: tuple[str, ...] = ("plain", "horizontal stripes", "vertical stripes", "checks", "dots", "gradient")
    weight: float = 1.0


TOPS: dict[str, TopSpec] = {
    "t-shirt": TopSpec(0.34, 0.5, 0.012, details=("print",), patterns=(*TopSpec.patterns, "colour block"), weight=1.4),
    "v-neck t-shirt": TopSpec(0.3, 0.5, 0.009, neck="v", details=("pocket",)),
    "polo": TopSpec(0.36, 0.5, 0.012, collar="fold", closure="placket", details=("logo",), weight=1.2),
    "shirt": TopSpec(
        1.0, 0.52, 0.014, collar="fold", closure="buttons", details=("pocket", "yoke", "cuff"), weight=1.3
    ),
    "hoodie": TopSpec(
        1.0,
        0.51,
        0.022,
        collar="hood",
        closure="zip",
        details=("kangaroo", "rib"),
        patterns=("plain", "gradient", "knit"),
        weight=1.4,
    ),
    "sweatshirt": TopSpec(1.0, 0.51, 0.02, details=("rib", "print"), patterns=("plain", "colour block", "gradient")),
    "sweater": TopSpec(
        1.0, 0.51, 0.018, details=("rib",), patterns=("knit", "horizontal stripes", "plain"), weight=1.2
    ),
    "turtleneck": TopSpec(
        1.0, 0.51, 0.012, collar="roll", details=("rib",), patterns=("plain", "knit", "horizontal stripes")
    ),
    "cardigan": TopSpec(
        1.0,
        0.53,
        0.018,
        neck="v",
        closure="buttons",
        details=("rib", "hip pockets"),
        opens=True,
        patterns=("knit", "plain"),
    ),
    "blazer": TopSpec(
        1.0,
        0.545,
        0.02,
        neck="deep v",
        collar="lapels",
        closure="two buttons",
        details=("hip pockets", "vent", "waist"),
        opens=True,
        patterns=("plain", "plain", "plaid", "vertical stripes"),
        weight=1.3,
    ),
    "denim jacket": TopSpec(
        1.0,
        0.49,
        0.02,
        collar="fold",
        closure="buttons",
        details=("yoke", "two pockets", "cuff", "band"),
        opens=True,
        patterns=("denim",),
    ),
    "puffer": TopSpec(
        1.0, 0.5, 0.036, collar="stand", closure="zip", details=("quilt",), opens=True, patterns=("plain", "gradient")
    ),
    "bomber": TopSpec(
        1.0,
        0.485,
        0.028,
        collar="band",
        closure="zip",
        details=("rib", "hip pockets"),
        opens=True,
        patterns=("plain",),
    ),
    "coat": TopSpec(
        1.0,
        0.73,
        0.024,
        0.02,
        neck="deep v",
        collar="lapels",
        closure="two buttons",
        details=("hip pockets", "vent", "cuff"),
        opens=True,
        patterns=("plain", "plain", "plaid"),
    ),
    "tank top": TopSpec(0.0, 0.5, 0.006, neck="scoop", neck_back="scoop"),
    "one-shoulder top": TopSpec(0.0, 0.49, 0.005, neck="one shoulder", neck_back="one shoulder", weight=0.9),
    "tunic": TopSpec(0.6, 0.58, 0.016, 0.015, neck="v", neck_back="keyhole", details=("slit",)),
    "summer dress": TopSpec(
        0.0,
        0.68,
        0.004,
        0.05,
        neck="sweetheart",
        neck_back="low",
        details=("waist", "seam"),
        dress=True,
        patterns=("dots", "plain", "gradient", "checks"),
    ),
    "wrap dress": TopSpec(
        0.55,
        0.7,
        0.006,
        0.04,
        neck="wrap",
        details=("waist", "sash"),
        dress=True,
        patterns=("plain", "dots", "gradient"),
    ),
    "shirt dress": TopSpec(
        0.5,
        0.69,
        0.01,
        0.03,
        collar="fold",
        closure="buttons",
        details=("waist", "yoke", "seam"),
        dress=True,
        patterns=("vertical stripes", "plain", "checks"),
    ),
    "evening dress": TopSpec(
        0.0,
        0.93,
        0.004,
        0.04,
        neck="one shoulder",
        neck_back="one shoulder",
        details=("waist", "slit"),
        dress=True,
        patterns=("plain", "gradient"),
        weight=0.8,
    ),
}


@dataclass(frozen=True)
class BottomSpec:
    """How a kind of bottom is cut: `hem` is a height below the crown, `widths` the room at thigh, knee and hem."""

    kind: str  # "trousers" or "skirt"
    hem: float
    widths: tuple[float, float, float]
    details: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ("plain",)
    weight: float = 1.0


BOTTOMS: dict[str, BottomSpec] = {
    "jeans": BottomSpec("trousers", 0.945, (0.006, 0.008, 0.012), ("patch pockets", "fly", "seams"), ("denim",), 2.0),
    "chinos": BottomSpec("trousers", 0.93, (0.006, 0.008, 0.01), ("welt pockets", "fly")),
    "wide trousers": BottomSpec(
        "trousers", 0.96, (0.016, 0.03, 0.042), ("crease", "fly"), ("plain", "plain", "vertical stripes")
    ),
    "leggings": BottomSpec("trousers", 0.92, (0.001, 0.001, 0.002), ("side stripe",)),
    "joggers": BottomSpec("trousers", 0.925, (0.012, 0.014, 0.008), ("cuffs", "drawstring")),
    "suit trousers": BottomSpec(
        "trousers", 0.95, (0.008, 0.01, 0.012), ("crease", "welt pockets", "fly"), ("plain", "plaid")
    ),
    "shorts": BottomSpec(
        "trousers", 0.655, (0.012, 0.018, 0.018), ("welt pockets", "fly"), ("plain", "denim", "checks")
    ),
    "skirt": BottomSpec("skirt", 0.655, (0.01, 0.03, 0.03), ("pleats",), ("plain", "plaid", "dots", "denim")),
    "pencil skirt": BottomSpec("skirt", 0.72, (0.004, -0.008, -0.01), ("vent",), ("plain", "checks")),
    "long skirt": BottomSpec(
        "skirt", 0.9, (0.01, 0.05, 0.06), ("pleats",), ("plain", "gradient", "dots", "vertical stripes")
    ),
}

SHOES = ("sneakers", "high-tops", "boots", "heels", "sandals", "loafers")
BAGS = {"none": 5.0, "backpack": 1.6, "crossbody": 1.2, "shoulder": 1.0, "handbag": 0.7}
HAIR = {
    "masculine": (
        "bald",
        "buzz cut",
        "short",
        "short",
        "side parting",
        "side parting",
        "undercut",
        "mohawk",
        "afro",
        "curly",
        "quiff",
        "man bun",
        "shoulder length",
    ),
    "feminine": (
        "bob",
        "fringe bob",
        "long",
        "long",
        "wavy",
        "ponytail",
        "side ponytail",
        "bun",
        "afro",
        "curly",
        "braids",
        "pixie",
        "space buns",
        "shoulder length",
        "side braid",
    ),
}
FEMININE_ONLY = frozenset(
    name for name, spec in TOPS.items() if spec.dress or name in ("one-shoulder top", "tunic")
) | {"skirt", "pencil skirt", "long skirt", "leggings", "heels"}
BACKDROPS = {"plain": 5.0, "gradient": 3.0, "cluttered": 2.0}


@dataclass
class Outfit:
    """Clothes, shoes and accessories. Sides are the wearer's: +1 left, -1 right, 0 neither."""

    masculine: bool
    top: str
    top_color: str
    top_cloth: Cloth
    bottom: str
    bottom_color: str
    bottom_cloth: Cloth
    inner_color: str
    inner_cloth: Cloth
    shoes: str
    shoe_cloth: Cloth
    is_open: bool
    tucked: bool
    bag: str
    bag_side: int
    bag_cloth: Cloth
    belt: bool
    bare_shoulder: int
    hem_drop: float  # how much lower the top's hem hangs on the left than on the right
    rolled_sleeve: int
    watch: int
    back_print: str
    chest_print: str
    print_rgb: tuple[int, int, int]
    socks: bool

    @property
    def top_spec(self) -> TopSpec:
        return TOPS[self.top]

    @property
    def bottom_spec(self) -> BottomSpec:
        return BOTTOMS[self.bottom]

    @property
    def has_belt(self) -> bool:
        """Whether a belt is worn: `belt` is drawn by lot for every outfit, but not all take one."""
        elastic = self.bottom in ("leggings", "joggers")
        return self.belt and self.bottom_spec.kind == "trousers" and not elastic and not self.top_spec.dress


@dataclass
class Person:
    """Body, pose, hair and face of the wearer."""

    masculine: bool
    skin_name: str
    skin: Cloth
    hair: str
    hair_color: str
    hair_cloth: Cloth
    hair_side: int
    height: float  # of the figure, as a fraction of the picture's side
    width: float  # 1 is average
    lean: float
    turn: float
    head_tilt: float
    arms: tuple[tuple[float, float], tuple[float, float]]  # per side (right, left): angle of upper arm, of forearm
    arms_in_front: tuple[bool, bool]
    legs: tuple[float, float]  # per side (right, left): how far the foot stands out
    iris: tuple[int, int, int]
    beard: str
    glasses: bool
    mouth: str


@dataclass
class Scene:
    """Backdrop and light, fixed to the camera: the same in both pictures."""

    backdrop: str
    colors: tuple[tuple[int, int, int], tuple[int, int, int]]
    horizon: float
    blocks: tuple[tuple[float, float, float, float, tuple[int, int, int]], ...]
    light_side: int  # -1 from the picture's left, +1 from its right
    light_steps: int


def _jitter(draws: Draws, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    shift = int(draws.uniform(-9, 10))
    return tuple(max(0, min(255, c + shift + int(draws.uniform(-5, 6)))) for c in rgb)


def _cloth(draws: Draws, patterns: tuple[str, ...], plain_share: float = 0.45) -> tuple[str, Cloth]:
    """A colour name and a cloth in one of `patterns`, plain in at least `plain_share` of the cases where it may be."""
    pattern = draws.pick(patterns)
    if "plain" in patterns and draws.chance(plain_share):
        pattern = "plain"
    if pattern == "denim":
        name = draws.pick(tuple(DENIMS))
        rgb = _jitter(draws, DENIMS[name])
        return name, Cloth(rgb, scaled(rgb, 130), "denim")
    name = draws.pick(tuple(COLORS))
    rgb = _jitter(draws, COLORS[name])
    accent = draws.pick([color for color in COLORS.values() if contrast(color, rgb) > 150])
    if pattern == "knit":
        accent = scaled(rgb, 35) if sum(rgb) > 330 else mixed(rgb, (255, 255, 255), 70)
    return name, Cloth(rgb, accent, pattern, int(draws.uniform(58, 92)))


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> int:
    """City-block distance of two colours, 0 to 765."""
    return abs(first[0] - second[0]) + abs(first[1] - second[1]) + abs(first[2] - second[2])


def _different(draws: Draws, patterns: tuple[str, ...], other: Cloth, plain_share: float) -> tuple[str, Cloth]:
    """A cloth whose colour can be told from `other`."""
    for _ in range(4):
        name, cloth = _cloth(draws, patterns, plain_share)
        if contrast(cloth.rgb, other.rgb) > 110:
            break
    return name, cloth


def _worn_by(names: dict, masculine: bool) -> dict[str, float]:
    """The weight of each kind among those that are worn."""
    return {name: spec.weight for name, spec in names.items() if not (masculine and name in FEMININE_ONLY)}


TOP_WEIGHTS, BOTTOM_WEIGHTS = (
    {masculine: _worn_by(names, masculine) for masculine in (False, True)} for names in (TOPS, BOTTOMS)
)


def sample_outfit(seed: int) -> Outfit:
    """The outfit of a seed."""
    draws = Draws(seed)
    masculine = draws.chance(0.48)
    top = draws.weighted(TOP_WEIGHTS[masculine])
    spec = TOPS[top]
    top_color, top_cloth = _cloth(draws, spec.patterns)
    bottom = draws.weighted(BOTTOM_WEIGHTS[masculine])
    bottom_color, bottom_cloth = _different(draws, BOTTOMS[bottom].patterns, top_cloth, 0.3)
    inner_color, inner_cloth = _different(draws, ("plain", "horizontal stripes"), top_cloth, 0.5)
    shoes = draws.pick(tuple(shoe for shoe in SHOES if not (masculine and shoe in FEMININE_ONLY)))
    bag = draws.weighted(BAGS)
    bare = spec.neck == "one shoulder"
    long_sleeve = spec.sleeve == 1.0
    plain = top_cloth.pattern == "plain"
    printed = plain and "print" in spec.details
    return Outfit(
        masculine=masculine,
        top=top,
        top_color=top_color,
        top_cloth=top_cloth,
        bottom=bottom,
        bottom_color=bottom_color,
        bottom_cloth=bottom_cloth,
        inner_color=inner_color,
        inner_cloth=inner_cloth,
        shoes=shoes,
        shoe_cloth=Cloth(
            _jitter(draws, COLORS[draws.pick(("white", "black", "brown", "camel", "red", "navy", "grey"))])
        ),
        is_open=spec.opens and draws.chance(0.6),
        tucked=not spec.dress
        and spec.hem <= 0.52
        and "rib" not in spec.details
        and not spec.opens
        and draws.chance(0.4),
        bag=bag,
        bag_side=0 if bag in ("none", "backpack") else draws.pick((-1, 1)),
        bag_cloth=Cloth(
            _jitter(draws, COLORS[draws.pick(("brown", "camel", "black", "red", "mustard", "teal", "olive", "pink"))])
        ),
        belt=draws.chance(0.45),
        bare_shoulder=draws.pick((-1, 1)) if bare else 0,
        hem_drop=draws.pick((-0.05, 0.05))
        if draws.chance(0.12 if not spec.dress else 0.3) and spec.sleeve < 1
        else 0.0,
        rolled_sleeve=draws.pick((-1, 1)) if long_sleeve and "quilt" not in spec.details and draws.chance(0.15) else 0,
        watch=draws.pick((-1, 1)) if draws.chance(0.3) else 0,
        back_print=draws.pick(("circle", "bars", "diamond"))
        if plain and draws.chance(0.5) and _prints(spec)
        else "none",
        chest_print=draws.pick(("circle", "bars", "heart", "star")) if printed and draws.chance(0.8) else "none",
        print_rgb=top_cloth.accent,
        socks=draws.chance(0.5),
    )


def _prints(spec: TopSpec) -> bool:
    return "print" in spec.details or spec.collar == "hood" or spec.closure == "zip"


def _arm(draws: Draws) -> tuple[float, float]:
    """Angles of the upper arm and the forearm from straight down, radians, outwards positive."""
    manner = draws.weighted({"hanging": 5.0, "out": 2.0, "hip": 1.4, "bent": 1.2})
    if manner == "hanging":
        upper = draws.uniform(0.1, 0.26)
        return upper, upper + draws.uniform(-0.2, 0.05)
    if manner == "out":
        upper = draws.uniform(0.35, 0.75)
        return upper, upper + draws.uniform(-0.25, 0.25)
    if manner == "hip":
        return draws.uniform(0.62, 0.75), draws.uniform(-0.78, -0.66)
    return draws.uniform(0.3, 0.5), draws.uniform(-0.4, -0.25)


def sample_person(seed: int, masculine: bool) -> Person:
    """The wearer of a seed."""
    draws = Draws(seed)
    skin_name = draws.pick(tuple(SKINS))
    natural = ("black", "dark brown", "brown") if skin_name in ("brown", "deep") else tuple(HAIR_COLORS)
    hair_color = draws.pick(natural) if draws.chance(0.9) else draws.pick(tuple(HAIR_COLORS))
    hair_rgb = _jitter(draws, HAIR_COLORS[hair_color])
    skin_rgb = _jitter(draws, SKINS[skin_name])
    width = draws.uniform(0.88, 1.08) if draws.chance(0.75) else draws.uniform(1.08, 1.3)
    return Person(
        masculine=masculine,
        skin_name=skin_name,
        skin=Cloth(skin_rgb),
        hair=draws.pick(HAIR["masculine" if masculine else "feminine"]),
        hair_color=hair_color,
        hair_cloth=Cloth(hair_rgb),
        hair_side=draws.pick((-1, 1)),
        height=draws.uniform(0.875, 0.935),
        width=width,
        lean=draws.uniform(-0.035, 0.035),
        turn=draws.uniform(-0.15, 0.15),
        head_tilt=draws.uniform(-0.006, 0.006),
        arms=(_arm(draws), _arm(draws)),
        arms_in_front=(draws.chance(0.5), draws.chance(0.5)),
        legs=(draws.uniform(-0.012, 0.035), draws.uniform(-0.012, 0.035)),
        iris=draws.pick(((70, 50, 40), (60, 90, 120), (70, 100, 70), (90, 64, 40))),
        beard=draws.weighted({"none": 5, "full": 2, "moustache": 1, "stubble": 1.5}) if masculine else "none",
        glasses=draws.chance(0.2),
        mouth=draws.pick(("smile", "calm", "open")),
    )


def sample_scene(seed: int, outfit: Outfit) -> Scene:
    """Backdrop and light of a seed; the backdrop keeps away from the outfit's main colours."""
    draws = Draws(seed)
    backdrop = draws.weighted(BACKDROPS)
    for _ in range(6):
        tint = COLORS[draws.pick(tuple(COLORS))]
        if backdrop == "plain" and draws.chance(0.6):
            first = mixed(tint, (255, 255, 255), int(draws.uniform(90, 100)))
        else:
            first = mixed(tint, (246, 246, 246), int(draws.uniform(45, 85)))
        clothes = (outfit.top_cloth.rgb, outfit.bottom_cloth.rgb)
        if min(contrast(first, rgb) for rgb in clothes) > 90:
            break
    second = mixed(first, COLORS[draws.pick(tuple(COLORS))], int(draws.uniform(12, 40)))
    blocks = []
    for _ in range(2 + int(draws.uniform(0, 3)) if backdrop == "cluttered" else 0):
        left = draws.pick((draws.uniform(-0.1, 0.2), draws.uniform(0.65, 0.95)))
        wide, tall = draws.uniform(0.1, 0.28), draws.uniform(0.12, 0.5)
        base = draws.uniform(0.74, 0.86) if draws.chance(0.6) else draws.uniform(0.35, 0.6)
        rgb = mixed(COLORS[draws.pick(tuple(COLORS))], first, int(draws.uniform(35, 65)))
        blocks.append((left, base - tall, left + wide, base, rgb))
    return Scene(
        backdrop, (first, second), draws.uniform(0.76, 0.84), tuple(blocks), draws.pick((-1, 1)), draws.pick((4, 5, 6))
    )
