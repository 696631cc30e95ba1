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
    2: {
        "top: t-shirt": "8f3dbe93b0e6 b115bdffe604 75ab93f1c1b9 22a59fb16a40",
        "top: v-neck t-shirt": "ad6d5068f288 01cb8da41c10 ba5dffc32ed1 6fda1ce76430",
        "top: polo": "2e46f320866e edc895bef791 79e5a4eef907 31f9bffac734",
        "top: shirt": "3c69968c7a0d 1c1452963add 901554e921b5 b46e49daa207",
        "top: hoodie": "120233222864 5780460caff5 4e48748de962 304279ae3da8",
        "top: sweatshirt": "d7db2ae89311 577d98659050 0802a931af64 d45f53fd7362",
        "top: sweater": "4bc3d7be9fa7 4a15b734cbe7 26e813c53675 7ef5cb714474",
        "top: turtleneck": "bfe1b83f9796 cdef14aa0258 48bdb10b1e85 fda7753804eb",
        "top: cardigan": "c3a3f1119992 d116a6c15d90 ada92c6237ba 2aeb95627bdf",
        "top: blazer": "61c82c003781 f7f43cdeb3d1 38ec1fe40368 cf5ba79c9454",
        "top: denim jacket": "4bdfc06a0cc1 4054fa7d94db 7b1002acc1b7 94767a7b4388",
        "top: puffer": "22d006a20b5f d1b424a5f640 65dcb561e42e 1e5687b96c36",
        "top: bomber": "05f7b09195f3 c5e57e3027e1 621c0829cd06 a5e5130880e4",
        "top: coat": "05fc41720cba 8da82f9bb62b ab58ad2f37bc 913f569a7c7b",
        "top: tank top": "04c7ccf3714e fa6a889a80e2 ec72453fb0b9 4352222f94c7",
        "top: one-shoulder top": "49b151264cd2 9d77f45f3998 6c93d1d62f6b 7d9bb1a6d64a",
        "top: tunic": "0e344d60a907 1257339c282f 2e4b15ff87b2 abad7db94d70",
        "top: summer dress": "d31bd78f7c4d 619964c034ca 6400b9dd704e 06d00d8bc7a1",
        "top: wrap dress": "289c34b45262 cfa17c324611 4a1f6bc21eb3 4a459f2cadfc",
        "top: shirt dress": "156d90946c5f c105617da912 dfb9f461d7e0 3de32b2c991e",
        "top: evening dress": "1ce28ab31c04 39857680b4c3 92f9fa72d512 6897717fde9d",
        "bottom: jeans": "344b0cf6df5b a62c12a74a28 2b742cc055b8 2e50fe746919",
        "bottom: chinos": "cc1f8650d83a 2130270d0354 7768a26b749a bb0337f05c65",
        "bottom: wide trousers": "16b443ba1b40 1534d082ccee 0e5f38b4787f 12bf50189a86",
        "bottom: leggings": "bbfbee88bd90 85c3e285d51f a75de698cc61 9888893b4970",
        "bottom: joggers": "4e94568080c9 8b0fc7fae2c3 1a39a1ed1992 e40771dd481d",
        "bottom: suit trousers": "aa1a7e4b624a 90d623e50a65 7fa6c165b1c7 1eb780fbe22f",
        "bottom: shorts": "9ffd90cb9811 7cf130999a2c 60671ca5f044 80b1c6501617",
        "bottom: skirt": "b7b4cac3eb2a 29b69e6f976e dd08b039be62 e79b681b4c94",
        "bottom: pencil skirt": "47e567148858 4c20f68df8f2 315438737cb2 f71e3799e1bf",
        "bottom: long skirt": "a41dd1bd9a05 c4ba7bc1ce42 c8246d8083ab ab12c12e5c02",
        "shoes: sneakers": "0e73d5a73b5e 69f33087e1ab 7e94e2d372e7 511cf812b649",
        "shoes: high-tops": "7870e6a42e1c e008c8fb97ec 3a5890c6baa3 bdf149b52db3",
        "shoes: boots": "b7b298632b14 60a52d250c26 acd7f3714c53 be26ddcf9209",
        "shoes: heels": "262f5df53123 6480e420a0c4 df8e8e815858 74a4be5bdfbe",
        "shoes: sandals": "0f84d73f8f5f 81ff585cc8ff 436697b99372 5dd27f484171",
        "shoes: loafers": "3a5aa03126f1 9a9bbc5b8924 aded8c7b34e5 4a84d3485f5a",
        "bag: backpack": "f41a88aee19b ba7bef1bf331 7ccf74443ffe 877711ba19fd",
        "bag: crossbody": "d800d34ba0e1 de02c86fa558 1647c2f90d0f 0299099330e1",
        "bag: shoulder": "35444053df21 77d6ae4080cc 7a44c601604e 34130abcc9e4",
        "bag: handbag": "025b567da10e 70ea9648d8c8 b4ff4b934137 067600bae7cc",
        "watch": "9856b22da991 a44d1b83572f 51dbcb4ed193 1bd826309663",
        "pattern: plain": "771ca37b8439 0fb1ab3e58fd faa9621e5e4f a9dbc0e79074",
        "pattern: horizontal stripes": "8c872f14959c 59ffa2ccc62d fdb721090133 a83e4bcd9460",
        "pattern: vertical stripes": "465a3ad9d57a e49ada3bd40c ef1a636e31d5 bf2f195676bd",
        "pattern: checks": "807a35f93b1f a33382f3315c 1f885936f879 4da5fec47bbd",
        "pattern: plaid": "b1b441438b0b 988900df9fff dbbbf3e5531f ce5b77843565",
        "pattern: dots": "3d125cf16097 91500063649d c18d34ad21e4 69f9b4051226",
        "pattern: gradient": "c20ee92db427 5869ee2ca43b 5f2851b20bda 0627c04d2fd5",
        "pattern: denim": "8e725ca53ad5 15a99beea16d 34ac223b0c16 92a93e49c4eb",
        "pattern: knit": "9ed28c65b41c fca551f020b3 b496b8e52977 5bde267c20bb",
        "pattern: colour block": "b6ecbcabf2e8 cb8cb456b70d 2298369bfa7a 8a1a240cf9f6",
        "print: circle": "f2a758fe6b36 1837c10aebae b4590389c990 909382bdd57f",
        "print: bars": "ce20224f8f01 0d23706d5dd4 b75a160eb79d 7fd4569a36a9",
        "print: heart": "e3cc8c76301f 1b80bb581deb 42bd5ab50bd9 346dd0374b3e",
        "print: star": "2245c8dd65cf ff491f85d651 91cccf82d8fd 43dc25b024af",
        "print: diamond": "9d40e08ca6d8 01f875eb80ac fb9309f9763a 1ed025916890",
        "hair: afro": "d6e678c40e5e 36dff51b5b5a 51f43c9f0dac 4ae6e5fd39a8",
        "hair: bald": "db15b32eba2e 2003082b3d3b 05b688a70b6b f6e82da73145",
        "hair: bob": "36471e05e2b2 edd62885a83d da3a233ec125 7eb6ad3031ed",
        "hair: braids": "f4319212f947 21c02ce1ca65 64687ceb1b63 d662ef384000",
        "hair: bun": "52bd379693d1 b0ff112a4033 ea0243f0dbee 477c7487fe6b",
        "hair: buzz cut": "2c38793d7e5a 65c2f0a0e69d 2a8c440ce710 2b487898eaa3",
        "hair: curly": "556deabc3ba5 edefddc3e515 2c8d06f72f75 496287d39391",
        "hair: fringe bob": "98647cd1982c d78c8287882d a1a2147aa9cc dfb0be4b01a5",
        "hair: long": "3fb3dd7e1eb0 8cb5b99c13d4 b81a23b8283c 18785c797151",
        "hair: man bun": "f6e8892a3cd9 bc177351c4be 829face023db 587eb918f6d9",
        "hair: mohawk": "72f96b355355 2c40967b6cdf a4a016645c00 16364b42f676",
        "hair: pixie": "25895adc4acb 2e6a8296276a 18201e7eac60 b824a862e949",
        "hair: ponytail": "750257a59b37 ce036b78a2b0 28c43dd7f04b 109e5d410af9",
        "hair: quiff": "e0a0b506ee75 14bb93e8b1fb 84dd39fe26fd b4f5f8807777",
        "hair: short": "1d68b99534f3 e1129c35b5ac 71217b2da59d 549b06596fd0",
        "hair: shoulder length": "8db21b08bafd 4178e3d40f91 12eb20951ad4 2f05cf0b6abc",
        "hair: side braid": "3b3fb5334f02 97e194001b59 83bf1197dbb5 3d40756a45d1",
        "hair: side parting": "d7a0d202be21 db097de369db ace6aef06b07 0dc648edbc5d",
        "hair: side ponytail": "2a37ab1f9d33 86af9e4b23c1 a9c52da61385 3ec55615374c",
        "hair: space buns": "fb84bb88a210 0104006c987b 22cbebe68fef 652085155a8e",
        "hair: undercut": "b84470022552 a08628ca7f09 917926da7d3a 61206ea8afdb",
        "hair: wavy": "ddbba4752155 127b432824ff 3e0769e607e4 40522aa21b18",
        "beard: none": "f2c58d36f607 ec698a7df670 64610b6bb206 090464ab0836",
        "beard: full": "f2c58d36f607 30f3c5a80d21 64610b6bb206 acdc74e1955b",
        "beard: moustache": "f2c58d36f607 82a061b49df3 64610b6bb206 55bd5a08d0b4",
        "beard: stubble": "f2c58d36f607 ec6d79706132 64610b6bb206 f666d62c296f",
        "mouth: smile": "fb2510f24d4e 58f41177791d f7defda704fa b53023240676",
        "mouth: calm": "fb2510f24d4e 5951f03208af f7defda704fa 6bff36794a21",
        "mouth: open": "fb2510f24d4e 14de8df4c72e f7defda704fa ff1797d3c640",
        "glasses": "f2c58d36f607 c6de044eca3c 64610b6bb206 f619c17245dd",
        "body": "fb2510f24d4e 58f41177791d f7defda704fa b53023240676",
        "backdrop: plain": "f2c58d36f607 ec698a7df670 64610b6bb206 090464ab0836",
        "backdrop: gradient": "af5c15bd2caa ddd57ef4be45 6f0d22951948 a9fb976c599a",
        "backdrop: cluttered": "6095d8b251e0 c84e826f40ed a9c12f88d618 34426720cfb3",
    }
}[DRAWING]


if __name__ == "__main__":
    for name, digests in recorded_parts().items():
        print(f'        "{name}": "{digests}",')
