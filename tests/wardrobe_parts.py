"""Small scenes for the drawn pairs: a plain one that a test adds to, and some for each part that can be drawn, with
the recorded digests of their pixels.

`python tests/wardrobe_parts.py` prints the table of the digests anew, to replace the one below when the drawing was
changed on purpose and `DRAWING` was raised.
"""

import dataclasses
import hashlib

from backshan_diffusers.data.wardrobe import DRAWING
from backshan_diffusers.data.wardrobe.fabric import PATTERNS, Cloth
from backshan_diffusers.data.wardrobe.outfit import (
    BACKDROPS,
    BAGS,
    BOTTOMS,
    HAIR,
    SHOES,
    TOPS,
    Outfit,
    Person,
    Scene,
    sample_outfit,
    sample_person,
    sample_scene,
)
from backshan_diffusers.data.wardrobe.painter import paint_pair

GREEN = Cloth((30, 220, 40))  # no other thing in these tests is green
GREY = Cloth((150, 150, 150))
HAIR_STYLES = tuple(sorted({style for styles in HAIR.values() for style in styles}))
LIGHT, DARK = Cloth((226, 186, 112)), Cloth((46, 58, 80))
Worn = tuple[Outfit, Person, Scene]


def plain_scene() -> Worn:
    """A person and an outfit without anything lopsided, to which a test adds what it is about."""
    outfit = dataclasses.replace(
        sample_outfit(5),
        masculine=False,
        top="t-shirt",
        top_cloth=GREY,
        bottom="shorts",
        bottom_cloth=GREY,
        shoes="loafers",
        shoe_cloth=GREY,
        is_open=False,
        tucked=False,
        bag="none",
        bag_side=0,
        belt=False,
        bare_shoulder=0,
        hem_drop=0.0,
        rolled_sleeve=0,
        watch=0,
        back_print="none",
        chest_print="none",
        socks=False,
    )
    person = dataclasses.replace(
        sample_person(6, False),
        skin=GREY,
        hair="bald",
        hair_cloth=GREY,
        hair_side=1,
        lean=0.0,
        turn=0.0,
        head_tilt=0.0,
        arms=((0.2, 0.2), (0.2, 0.2)),
        arms_in_front=(True, True),
        legs=(0.0, 0.0),
        beard="none",
        glasses=False,
    )
    scene = dataclasses.replace(sample_scene(7, outfit), backdrop="plain", colors=((250, 250, 250), (250, 250, 250)))
    return outfit, person, scene


def changed(worn: Worn, **changes) -> Worn:
    """The scene with other fields; a field that several have, as `masculine`, changes in all of them."""
    assert all(any(hasattr(each, name) for each in worn) for name in changes)
    return tuple(
        dataclasses.replace(each, **{name: value for name, value in changes.items() if hasattr(each, name)})
        for each in worn
    )


def dressed(**changes) -> Worn:
    """The plain scene with other fields."""
    return changed(plain_scene(), **changes)


def exchanged(worn: Worn) -> Worn:
    """The scene with left and right exchanged in everything that has a side, light and backdrop too."""
    outfit, person, scene = worn
    sides = (
        "bag_side",
        "bare_shoulder",
        "hem_drop",
        "rolled_sleeve",
        "watch",
        "hair_side",
        "lean",
        "turn",
        "head_tilt",
    )
    turned = {name: -getattr(each, name) for each in (outfit, person) for name in sides if hasattr(each, name)}
    swapped = {name: getattr(person, name)[::-1] for name in ("arms", "arms_in_front", "legs")}
    blocks = tuple((1 - right, top, 1 - left, bottom, rgb) for left, top, right, bottom, rgb in scene.blocks)
    return changed(worn, **turned, **swapped, light_side=-scene.light_side, blocks=blocks)


def top_worn(name: str, side: int) -> list[dict]:
    """The changes that show a top: closed, and open, tucked in or with its sash away from a bag where it may be."""
    spec = TOPS[name]
    shape = {
        "top": name,
        "bare_shoulder": side if spec.neck == "one shoulder" else 0,
        "hem_drop": 0.05 * side if spec.sleeve < 1 else 0.0,
        "rolled_sleeve": side if spec.sleeve == 1.0 and "quilt" not in spec.details else 0,
    }
    tucked = not spec.dress and spec.hem <= 0.52 and "rib" not in spec.details and not spec.opens
    others = {"is_open": spec.opens, "tucked": tucked, "bag": "sash" in spec.details and "handbag"}
    return [shape, *(shape | {name: value, "bag_side": side} for name, value in others.items() if value)]


def clothes(side: int) -> dict[str, list[dict]]:
    """For each thing to wear, the changes of the scene that show it."""
    waist = {"top": "t-shirt", "tucked": True}
    belted = ((LIGHT, False), (LIGHT, True), (DARK, True))
    shod = ((LIGHT, True), (GREY, False))
    watched = {"watch": side}
    return {
        **{f"top: {top}": top_worn(top, side) for top in TOPS},
        **{
            f"bottom: {name}": [
                waist | {"bottom": name, "bottom_cloth": cloth, "belt": belt} for cloth, belt in belted
            ]
            for name in BOTTOMS
        },
        **{
            f"shoes: {name}": [{"shoes": name, "shoe_cloth": cloth, "socks": on} for cloth, on in shod]
            for name in SHOES
        },
        **{f"bag: {bag}": [{"bag": bag, "bag_side": side, "bag_cloth": DARK}] for bag in BAGS if bag != "none"},
        "watch": [watched, watched | {"masculine": True}, watched | {"top": "shirt", "rolled_sleeve": side}],
    }


def cloth_patterns() -> dict[str, list[dict]]:
    """For each pattern and print, the changes of the scene that show it."""
    cream = (240, 240, 200)
    cloths = {name: (Cloth((150, 60, 60), cream, name), Cloth((60, 60, 150), cream, name, 78)) for name in PATTERNS}
    prints = ("circle", "bars", "heart", "star", "diamond")
    return {
        **{f"pattern: {name}": [{"top_cloth": top, "bottom_cloth": low}] for name, (top, low) in cloths.items()},
        **{f"print: {name}": [{"chest_print": name, "back_print": name, "print_rgb": cream}] for name in prints},
    }


def looks() -> dict[str, list[dict]]:
    """For each thing about a person, and each backdrop, the changes of the scene that show it."""
    builds = [{"masculine": masculine, "width": wide} for masculine in (False, True) for wide in (0.9, 1.25)]
    blocks = ((0.02, 0.3, 0.2, 0.7, (20, 60, 200)), (0.7, 0.5, 0.95, 0.8, (200, 60, 20)))
    return {
        **{f"hair: {hair}": [{"hair": hair, "hair_cloth": cloth} for cloth in (LIGHT, DARK)] for hair in HAIR_STYLES},
        **{f"beard: {name}": [{"beard": name}] for name in ("none", "full", "moustache", "stubble")},
        **{f"mouth: {name}": [build | {"mouth": name} for build in builds] for name in ("smile", "calm", "open")},
        "glasses": [{"glasses": True}],
        "body": builds,
        **{f"backdrop: {name}": [{"backdrop": name, "blocks": blocks}] for name in BACKDROPS},
    }


def parts(side: int) -> dict[str, list[dict]]:
    """For each part by name, the changes of the scene that show it, on the left (1) or right (-1) if it has a side."""
    return clothes(side) | cloth_patterns() | looks()


def posed_scenes(side: int) -> dict[str, list[Worn]]:
    """For each part, scenes that show it on a person who stands so that no side is like the other."""
    pose = {
        "hair_side": side,
        "light_side": side,
        "lean": 0.02,
        "turn": 0.2,
        "head_tilt": 0.004,
        "arms": ((0.5, 0.75), (0.3, 0.05)),
        "arms_in_front": (True, False),
        "legs": (0.03, -0.005),
    }
    colors = {
        "skin": Cloth((242, 202, 174)),
        "hair_cloth": Cloth((116, 76, 50)),
        "top_cloth": Cloth((70, 142, 86), (240, 240, 200)),
        "bottom_cloth": Cloth((112, 76, 152)),
        "shoe_cloth": Cloth((118, 78, 52)),
        "colors": ((225, 225, 215), (180, 200, 210)),
    }
    start = dressed(**pose, **colors)
    return {name: [changed(start, **change) for change in changes] for name, changes in parts(side).items()}


def part_digests(scenes: list[Worn]) -> tuple[str, str]:
    """The beginnings of the SHA-256 of all pictures and masks, of the back's and of the front's.

    At 192 px, since at 64 px thin lines may grow by half without another sample being drawn.
    """
    totals = hashlib.sha256(), hashlib.sha256()
    for worn in scenes:
        for total, canvas in zip(totals, paint_pair(192, *worn), strict=True):
            for picture in (canvas.picture(), *canvas.masks().values()):
                total.update(picture.tobytes())
    back, front = (total.hexdigest()[:12] for total in totals)
    return back, front


def recorded_parts() -> dict[str, str]:
    """For each part its digests: on the left from the back and the front, on the right from the back and the front."""
    left, right = posed_scenes(1), posed_scenes(-1)
    return {name: " ".join(part_digests(left[name]) + part_digests(right[name])) for name in left}


GOLDEN_PARTS = {
    3: {
        "top: t-shirt": "5cecf864d187 b115bdffe604 1591f9c0ceee 22a59fb16a40",
        "top: v-neck t-shirt": "0b87e5f53491 01cb8da41c10 c0402545841d 6fda1ce76430",
        "top: polo": "6cb976b8aa36 edc895bef791 bd4c2b85fbdb 31f9bffac734",
        "top: shirt": "8b0a21c3f24e 1c1452963add ac9dbd9239e7 b46e49daa207",
        "top: hoodie": "d7be07346481 5780460caff5 f712290519fd 304279ae3da8",
        "top: sweatshirt": "f92ac821323c 577d98659050 b37646ba3894 d45f53fd7362",
        "top: sweater": "e0ba563ad27c 4a15b734cbe7 3644837a4b8a 7ef5cb714474",
        "top: turtleneck": "eaba7fe0a20f cdef14aa0258 afe10eae48aa fda7753804eb",
        "top: cardigan": "fbea14e85e2e d116a6c15d90 66c12aee3e05 2aeb95627bdf",
        "top: blazer": "723ca4a79b23 f7f43cdeb3d1 f0fb6fecc9e4 cf5ba79c9454",
        "top: denim jacket": "184f250271b3 4054fa7d94db 19c1d80dc223 94767a7b4388",
        "top: puffer": "041771dbf075 d1b424a5f640 86832b3cea18 1e5687b96c36",
        "top: bomber": "693ed0982d82 c5e57e3027e1 83b2abdeb19d a5e5130880e4",
        "top: coat": "8fc1073f7a70 8da82f9bb62b 9e628645d7db 913f569a7c7b",
        "top: tank top": "35a5d7941087 fa6a889a80e2 f391c1a66f60 4352222f94c7",
        "top: one-shoulder top": "4a625fbafd61 9d77f45f3998 8b3d3d9c6709 7d9bb1a6d64a",
        "top: tunic": "58c8ddf0d9c3 1257339c282f fb064b1ecac2 abad7db94d70",
        "top: summer dress": "64cb5bf715bf 619964c034ca 989f108c57d3 06d00d8bc7a1",
        "top: wrap dress": "a31b751a57a5 cfa17c324611 005ceca4d583 4a459f2cadfc",
        "top: shirt dress": "c414c86cbb86 c105617da912 fa8d1338317c 3de32b2c991e",
        "top: evening dress": "ce54983fcfe9 39857680b4c3 2e6f37ef0c9b 6897717fde9d",
        "bottom: jeans": "daa8591cf4c3 a62c12a74a28 8422cba5dc5b 2e50fe746919",
        "bottom: chinos": "7e951468c958 2130270d0354 d95a551e3069 bb0337f05c65",
        "bottom: wide trousers": "692820c9dc4e 1534d082ccee 556c41b33ed4 12bf50189a86",
        "bottom: leggings": "62b218335c85 85c3e285d51f ac7e19216e9f 9888893b4970",
        "bottom: joggers": "ac7f54ac8954 8b0fc7fae2c3 81a4c1571ee3 e40771dd481d",
        "bottom: suit trousers": "fc115b36c6f3 90d623e50a65 d2eb98a29c36 1eb780fbe22f",
        "bottom: shorts": "d23282e94cdd 7cf130999a2c 799fcb714203 80b1c6501617",
        "bottom: skirt": "bae541dbc425 29b69e6f976e 27f4ff72350d e79b681b4c94",
        "bottom: pencil skirt": "568b425148b3 4c20f68df8f2 c2ef83b229be f71e3799e1bf",
        "bottom: long skirt": "9474fe1f92fe c4ba7bc1ce42 9dc33e3a587b ab12c12e5c02",
        "shoes: sneakers": "ab04217043f4 69f33087e1ab 53414d0f1051 511cf812b649",
        "shoes: high-tops": "97bc6ac8ba4e e008c8fb97ec 5ba71dc7dcce bdf149b52db3",
        "shoes: boots": "4c6458c0532b 60a52d250c26 0a781a6f8efa be26ddcf9209",
        "shoes: heels": "e69392adc6bd 6480e420a0c4 df91ab18cc00 74a4be5bdfbe",
        "shoes: sandals": "c80d8a2e2554 81ff585cc8ff 28f02350b86f 5dd27f484171",
        "shoes: loafers": "37e8eaa194de 9a9bbc5b8924 593003eb287d 4a84d3485f5a",
        "bag: backpack": "b023d4c8e261 ba7bef1bf331 ca42a8f5a002 877711ba19fd",
        "bag: crossbody": "db2978c277cf de02c86fa558 775f34f76592 0299099330e1",
        "bag: shoulder": "223bf917f052 77d6ae4080cc 845eed52c0b6 34130abcc9e4",
        "bag: handbag": "6f7814d381ab 70ea9648d8c8 c107d6986086 067600bae7cc",
        "watch": "41002a5760ef a44d1b83572f 6b56ce9b6042 1bd826309663",
        "pattern: plain": "07b1150ab546 0fb1ab3e58fd 13ce9887ed23 a9dbc0e79074",
        "pattern: horizontal stripes": "372233afb6ac 59ffa2ccc62d 3ccddef1f8fc a83e4bcd9460",
        "pattern: vertical stripes": "11b4a782e43f e49ada3bd40c f182e27490f2 bf2f195676bd",
        "pattern: checks": "38d5acf76b47 a33382f3315c c0c36f6b2754 4da5fec47bbd",
        "pattern: plaid": "197583b63a34 988900df9fff f6b6df9bee6c ce5b77843565",
        "pattern: dots": "fd29a1e974ad 91500063649d 85a748645e54 69f9b4051226",
        "pattern: gradient": "b719bb7bb58b 5869ee2ca43b 83124e66791b 0627c04d2fd5",
        "pattern: denim": "1d4864531c60 15a99beea16d 086239973995 92a93e49c4eb",
        "pattern: knit": "a888c074ae5d fca551f020b3 7cb907c9256c 5bde267c20bb",
        "pattern: colour block": "fdf2e70d83ad cb8cb456b70d e6e519e432ee 8a1a240cf9f6",
        "print: circle": "75a0498c6672 1837c10aebae 78412adab040 909382bdd57f",
        "print: bars": "0fd4898c4363 0d23706d5dd4 f712b9aab9fa 7fd4569a36a9",
        "print: heart": "771b42783fb8 1b80bb581deb dd4497c92071 346dd0374b3e",
        "print: star": "260c749bcf19 ff491f85d651 475e1fd40081 43dc25b024af",
        "print: diamond": "dbf739a422fc 01f875eb80ac 1d4a786432c7 1ed025916890",
        "hair: afro": "96865500af13 36dff51b5b5a 46fb93939a66 4ae6e5fd39a8",
        "hair: bald": "f2616580cb5a 2003082b3d3b 62dd605778cc f6e82da73145",
        "hair: bob": "b20e667fc77a edd62885a83d 3bb29b4fdab3 7eb6ad3031ed",
        "hair: braids": "b424e832a471 21c02ce1ca65 634bc0ac9798 d662ef384000",
        "hair: bun": "1d4b0ecb5cb6 b0ff112a4033 b5cbc8b0cd7c 477c7487fe6b",
        "hair: buzz cut": "ca3316582286 65c2f0a0e69d 265a06d5af68 2b487898eaa3",
        "hair: curly": "073409fc50f5 edefddc3e515 9dce8a94f22c 496287d39391",
        "hair: fringe bob": "e2591a41bd05 d78c8287882d 0ad9538ebb10 dfb0be4b01a5",
        "hair: long": "95d64287d06a 8cb5b99c13d4 92786007c423 18785c797151",
        "hair: man bun": "628fc4a321fe bc177351c4be c45c3f521fcb 587eb918f6d9",
        "hair: mohawk": "7cf2255cee2e 2c40967b6cdf 7634f6e049de 16364b42f676",
        "hair: pixie": "faad60a92b99 2e6a8296276a 310e9b1baa8e b824a862e949",
        "hair: ponytail": "d519e9767812 ce036b78a2b0 0bf08e725de6 109e5d410af9",
        "hair: quiff": "f61f2094616f 14bb93e8b1fb 59d468033c46 b4f5f8807777",
        "hair: short": "69c137c4bdfc e1129c35b5ac 05633715cd85 549b06596fd0",
        "hair: shoulder length": "3351577e64c6 4178e3d40f91 3a19825e81a6 2f05cf0b6abc",
        "hair: side braid": "d83b40338400 97e194001b59 0a26decbb745 3d40756a45d1",
        "hair: side parting": "2e493b935a87 db097de369db 20398b465f84 0dc648edbc5d",
        "hair: side ponytail": "e3859a92c199 86af9e4b23c1 34643bfce95b 3ec55615374c",
        "hair: space buns": "2744f849a42d 0104006c987b 8b3bd2c18712 652085155a8e",
        "hair: undercut": "d3ce95304f7f a08628ca7f09 fed24d1a9597 61206ea8afdb",
        "hair: wavy": "0377a5518f35 127b432824ff db201d884a72 40522aa21b18",
        "beard: none": "1398c45a6df9 ec698a7df670 44e6717c3ad9 090464ab0836",
        "beard: full": "1398c45a6df9 30f3c5a80d21 44e6717c3ad9 acdc74e1955b",
        "beard: moustache": "1398c45a6df9 82a061b49df3 44e6717c3ad9 55bd5a08d0b4",
        "beard: stubble": "1398c45a6df9 ec6d79706132 44e6717c3ad9 f666d62c296f",
        "mouth: smile": "1b5828afa4fc 58f41177791d 18787214da88 b53023240676",
        "mouth: calm": "1b5828afa4fc 5951f03208af 18787214da88 6bff36794a21",
        "mouth: open": "1b5828afa4fc 14de8df4c72e 18787214da88 ff1797d3c640",
        "glasses": "1398c45a6df9 c6de044eca3c 44e6717c3ad9 f619c17245dd",
        "body": "1b5828afa4fc 58f41177791d 18787214da88 b53023240676",
        "backdrop: plain": "1398c45a6df9 ec698a7df670 44e6717c3ad9 090464ab0836",
        "backdrop: gradient": "2e42d57335f8 ddd57ef4be45 9bb90a804bf1 a9fb976c599a",
        "backdrop: cluttered": "b92f74d59327 c84e826f40ed 3504f656582b 34426720cfb3",
    }
}[DRAWING]


if __name__ == "__main__":
    for name, digests in recorded_parts().items():
        print(f'        "{name}": "{digests}",')
