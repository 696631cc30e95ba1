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
    HAIR_STYLES,
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
    """The changes that show a top: closed, and open or tucked in where it may be."""
    spec = TOPS[name]
    shape = {
        "top": name,
        "bare_shoulder": side if spec.neck == "one shoulder" else 0,
        "hem_drop": 0.05 * side if spec.sleeve < 1 else 0.0,
        "rolled_sleeve": side if spec.sleeve == 1.0 and "quilt" not in spec.details else 0,
    }
    tucked = not spec.dress and spec.hem <= 0.52 and "rib" not in spec.details and not spec.opens
    return [shape, *[shape | {"is_open": True}] * spec.opens, *[shape | {"tucked": True}] * tucked]


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
    """The beginnings of the SHA-256 of all pictures and masks at 64 px: of the back's, and of the front's."""
    totals = hashlib.sha256(), hashlib.sha256()
    for worn in scenes:
        for total, canvas in zip(totals, paint_pair(64, *worn), strict=True):
            for picture in (canvas.picture(), *canvas.masks().values()):
                total.update(picture.tobytes())
    back, front = (total.hexdigest()[:12] for total in totals)
    return back, front


def recorded_parts() -> dict[str, str]:
    """For each part its digests: on the left from the back and the front, on the right from the back and the front."""
    left, right = posed_scenes(1), posed_scenes(-1)
    return {name: " ".join(part_digests(left[name]) + part_digests(right[name])) for name in left}


GOLDEN_PARTS = {
    1: {
        "top: t-shirt": "c90a1a6cf63b d841efe990fc 96909fdba819 b05488e7cdbf",
        "top: v-neck t-shirt": "07ad5dcd5246 df330a3be527 62626beec313 c3a1bc80d646",
        "top: polo": "41f5a95fed1c c571491a6b3d 735336bbd0f9 330779d74cbd",
        "top: shirt": "ac3727d7a932 97812b35f3c7 8dfd3c1d0216 0a49d31c8b0b",
        "top: hoodie": "872580b8a7a4 8da471369639 21c91a355d74 ef397f6cf321",
        "top: sweatshirt": "9b7d75eface6 bf9be734fac4 169d02319ce6 b997a1ae4cb4",
        "top: sweater": "92069c390368 ad1ff4f850ac aac556354fe2 f0c4e601ff30",
        "top: turtleneck": "789abd1508f4 c382fbe86e9c 6fc404fa61c9 6c5b43881a15",
        "top: cardigan": "98ce7ee94856 a319ee9933d7 46b54777a4b0 8336016c5ccf",
        "top: blazer": "a8e3e264062c bbef95a44233 0172ae017dda e369c1ed3640",
        "top: denim jacket": "880be0651167 d2aeb54c698d 06e4ac0df146 dbc8b0434eb7",
        "top: puffer": "a7175dc4d333 4b83e06f6ba4 f18fffbc4b61 07ac7f34dd0f",
        "top: bomber": "1677c33c7f69 837cfd492178 c5c01d9f4e65 64f5ef9ec302",
        "top: coat": "1722b82e9c02 bbb0c618d179 dd1d70df3945 b217dc4e79d0",
        "top: tank top": "662f4613d047 6d722e86f66f 954b0dd2c83b cae583378e44",
        "top: one-shoulder top": "a1194bec5090 b0203ceaa2ba 59c6ba52ca72 6dc603957e4f",
        "top: tunic": "ec38a55cf719 77e5fc6a5c75 98b952ae1559 e2e23d6fe4b0",
        "top: summer dress": "b6f1a57c567e 5dde31a9222a cf722915bf44 6d17d4da8420",
        "top: wrap dress": "01f29d76031b d9c3f43baf09 3ec808af9806 96e0698a87bd",
        "top: shirt dress": "76e05ef2bff1 6dbe78f5c74c 98b303567b24 fef874925ea9",
        "top: evening dress": "cc1b22bb27ac 4df032f7647f 595db00acc02 e346baab1909",
        "bottom: jeans": "a2b08974f5ab 391140eb0d32 bee2fd83293d 4f925aee8845",
        "bottom: chinos": "7e6fedb0faad 67e832328b90 90fe177154c3 47538fd9dc21",
        "bottom: wide trousers": "558173c747e6 d8224c52401e 43eeadcd3fee 72dcbf63937f",
        "bottom: leggings": "9286efa8a00f ac7a5b967b7b 2572d08eb3b4 36e2d843d192",
        "bottom: joggers": "4a98bd27eb66 41c1ac43d067 2e1d4f818eca ca7b74f11d40",
        "bottom: suit trousers": "fad24ee1d910 f78182a74631 bbfb595511d2 78f629d3785b",
        "bottom: shorts": "a837e28f92ae 550566088f4d 7a3b1ca3cd08 059891ba8ba3",
        "bottom: skirt": "7faee057bc01 05ec5c04f04d 7d3f404def5d 923cb768cf45",
        "bottom: pencil skirt": "29e30c50e4e1 37bf98d70d51 9f5367e6d859 919724a5a67e",
        "bottom: long skirt": "d5d7cb600891 0bd786011dbe cd7d7348a9e4 527597df46d4",
        "shoes: sneakers": "2c6d5484abb6 685b12371db4 f93e95761e93 286b6fec88d3",
        "shoes: high-tops": "664e297a80d6 0e32079fbbca 7d016a90144c 76dda03c2b37",
        "shoes: boots": "6aeb000bd21c e468bc04995a fdae76149ac6 94ad4d8f7ecb",
        "shoes: heels": "8c878a5b9fd1 e0fe350c5a0d 045565b2f644 f50bcd19a355",
        "shoes: sandals": "1e9c3ed70897 a4fe54cbf78c 762f94b9132a 5635656f98b4",
        "shoes: loafers": "2cb9daf6635d df63d75b3f14 b7d823114147 81ed74f2972f",
        "bag: backpack": "f5969156fa0a a7d16d42bbf0 ad2e17e22e50 d55453474fab",
        "bag: crossbody": "f9a1a40f7a81 45266664bc67 2e3f0cc28e9a 1001a1e40a42",
        "bag: shoulder": "65f483ece3b8 64884d6b6e08 ef5acb8bea48 d8a787589ed0",
        "bag: handbag": "a22cfbbb1c52 43c6abcd16ed 561c1100dc8e d56f03087245",
        "watch": "f1a1bc893665 c4e500ea1c62 886593507396 2864cd6672be",
        "pattern: plain": "56375015a89c 886f2dd80f88 ed6a566c24bd c85fdfc45c8e",
        "pattern: horizontal stripes": "93591c52f7d4 9c51c0fb5e52 bc3632ad8e80 2ae159803841",
        "pattern: vertical stripes": "49867da12df0 84b005c64ea2 8c745fab031d 440dbd74dc37",
        "pattern: checks": "77c027967436 4a0494370348 817513463efe 4356769faf41",
        "pattern: plaid": "1959836ee9ca 488a4492f329 dac918f92bd7 d5bc6fd9e681",
        "pattern: dots": "ab531c8b805a 430380150401 bf4eb81caa92 c839324ce126",
        "pattern: gradient": "31182ae5991d 819c202c4b2c 0aa1abc4ee78 40a103df40d3",
        "pattern: denim": "a05dd4aaee49 f89adc2719fd 3a8d87da14e9 1ae14cc4ee8d",
        "pattern: knit": "05e1c465927b b3fdd56c09f3 bcdb1329d623 fb29c5d151eb",
        "pattern: colour block": "98f61ba244e7 967acf5bd8bf fdcf3816e835 9fa261e679ee",
        "print: circle": "325ad1d6039f a8540b18b0e7 26637f08f7dc e2c700bf4274",
        "print: bars": "8abed153d216 30a9b6303d86 8d47df23503d d7b1ea4cbb49",
        "print: heart": "52701e2a712c d7ddef021a29 032df941c4fd 61ea6886e8d9",
        "print: star": "b75470611053 e908bbd32611 e61bed34ef05 f3f2495e4dfa",
        "print: diamond": "6e559ef3ff15 8eba08d6307d 36efbd36a452 2e6983b76b90",
        "hair: afro": "e500525f39b2 2fa3b15800c3 3080ed5c1acc 018868ddf816",
        "hair: bald": "4ba8d1bb7f33 db5638f8d991 fc3a72d7cecb 59b7d1db4937",
        "hair: bob": "e05a32b4f676 b0c2f8e54115 9ea2758bb5e0 23a69b236cf7",
        "hair: braids": "e37598de4470 fc689b648236 c108e21a2bd5 78a1642b4443",
        "hair: bun": "985d68e9413b 02e0ec5f9a40 f5b664675895 0325084f74d1",
        "hair: buzz cut": "ee86ce420055 58d701db377c cf3984d7be49 7564a7507625",
        "hair: curly": "32b33d422ac3 85afb5ea86af f0cc6a8d1eea 13590e778579",
        "hair: fringe bob": "fdae4d74d23d 8144cfe21773 d4d4d8ba72f6 d089d0347e94",
        "hair: long": "703957024dc4 18bd98d50991 72d75c5eb469 f6003df23cae",
        "hair: man bun": "b3af6647b3ea 0fb67b241e31 2a8f7b35e709 e996ec857079",
        "hair: mohawk": "a08e78ceaa46 22ca2c434323 3b6d8d4b74d1 749f4c6ad62d",
        "hair: pixie": "5a2da42116c9 90c781413851 a531ba9a1825 e873daa5955b",
        "hair: ponytail": "f0fbe4de8fc9 2f83ecda6815 571da2ca2558 5acdb013d937",
        "hair: quiff": "315b50c95cac 6530de92c4bb b028e45e2466 5538af234331",
        "hair: short": "d1a99cc706da e572dfeb2567 317550a021a5 0dc9ce953e1b",
        "hair: shoulder length": "4d320b3d4657 9b0eb408f6eb 0bf851db2d81 ec033b1b8e42",
        "hair: side braid": "03fe6206d340 0f76bf8a2514 64f98438d69e aa510fe67430",
        "hair: side parting": "508f1f10894e 0528b9a98993 1649efa149de 8e1dcfab2e37",
        "hair: side ponytail": "a7d16f80f855 53b69984b95f b31d54f4511e 9773386dbd71",
        "hair: space buns": "5a0723043eeb a0ea4c33e2b7 80ffd49c3b93 d98054371141",
        "hair: undercut": "913a86f5bfb0 ede69d2d7c76 4633c3802932 5ab090fd42ba",
        "hair: wavy": "3fb65f78bca8 ac8cde20a116 be3d7484a87d d262fd53247a",
        "beard: none": "c0389877f734 0bda432c34d7 2362f960fa83 5352dcd2dc44",
        "beard: full": "c0389877f734 0101d693d186 2362f960fa83 87ca46737468",
        "beard: moustache": "c0389877f734 63c81d626bc8 2362f960fa83 dfed3f7b4d7d",
        "beard: stubble": "c0389877f734 198182ef8e8b 2362f960fa83 9f79d85fa662",
        "mouth: smile": "938cf05b4af0 2cf7c2293ff5 10cb82b6addc 3bc6ee96db16",
        "mouth: calm": "938cf05b4af0 0339e93bd31b 10cb82b6addc 00688b162325",
        "mouth: open": "938cf05b4af0 ed176a1670a7 10cb82b6addc dee0589b2898",
        "glasses": "c0389877f734 44367c860a8c 2362f960fa83 2446f5be3b32",
        "body": "938cf05b4af0 2cf7c2293ff5 10cb82b6addc 3bc6ee96db16",
        "backdrop: plain": "c0389877f734 0bda432c34d7 2362f960fa83 5352dcd2dc44",
        "backdrop: gradient": "9e1b8e91d894 138fccb5e2bd 9cf102ec6b28 4489ddc47485",
        "backdrop: cluttered": "23fd6dc70a40 2177e5b42ed9 ff0e59bdb7de dbf8bf3a2729",
    }
}[DRAWING]


if __name__ == "__main__":
    for name, digests in recorded_parts().items():
        print(f'        "{name}": "{digests}",')
