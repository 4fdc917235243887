"""Released condensed sets as their codes write them, traps included, of images told apart by size.

Class c, slot s is an image of 20 + c by 30 + s pixels, so that a test knows it by its header.
"""

import io

import numpy as np
from PIL import Image

IMAGENETTE = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip


def image_bytes(class_index, slot, kind="PNG"):
    rng = np.random.default_rng([class_index, slot])
    pixels = rng.integers(0, 256, (30 + slot, 20 + class_index, 3), dtype=np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, kind)
    return stored.getvalue()


def wnid(wnids, ipc, *, above=""):
    """Of DiT, Minimax, MGD3, ManifoldGD and D3HR: numbers that are not padded."""
    for c, name in enumerate(wnids):
        for slot in range(ipc):
            yield f"{above}{name}/{slot}.png", image_bytes(c, slot)


def d3hr(wnids, ipc):
    """With a list of paths on the machine of its authors."""
    yield from wnid(wnids, ipc)
    yield "train.txt", b"/home/user/D3HR/n01440764/0.png 0\n"


def vlcp(wnids, ipc, *, above="imagenette_ipc10_10_s0.7_g10.0_kmexpand1/"):
    """The last digit of a name is always 0: image290 is slot 29."""
    for c, name in enumerate(wnids):
        for slot in range(ipc):
            yield f"{above}{name}/{name}-image{slot}0.png", image_bytes(c, slot)


def vlcp_renamed(wnids, ipc):
    """As renamed for RDED's evaluation: classes by five digits."""
    above = "imagenette_ipc10_10_s0.7_g10.0_kmexpand1_seed1/"
    for c, _ in enumerate(wnids):
        for slot in range(ipc):
            yield f"{above}{c:05d}/{c:05d}-image{slot}0.png", image_bytes(c, slot)


def d4m(wnids, ipc):
    """Classes by numbers that are not padded, so that sorted folders are 0, 1, 10 ..."""
    for c, _ in enumerate(wnids):
        for slot in range(ipc):
            name = f"imagenet_ipc10_10_s0.7_g8.0_kmexpand1/{c}/{c}-image{slot}0.png"
            yield name, image_bytes(c, slot)


def sre2l(wnids, ipc, *, kind="JPEG"):
    extension = {"JPEG": "jpg", "PNG": "png"}[kind]
    for slot in range(ipc):  # a batch holds one slot of every class
        for c, _ in enumerate(wnids):
            name = f"new{c:03d}/class{c:03d}_id{slot:03d}.{extension}"
            yield name, image_bytes(c, slot, kind)


def rded(wnids, ipc):
    for c, _ in enumerate(wnids):
        for slot in range(ipc):
            name = f"{c:05d}/class{c:05d}_id{slot:05d}.jpg"
            yield name, image_bytes(c, slot, "JPEG")


def folders(wnids, ipc):
    """A folder per class, as exports write them."""
    for c, name in enumerate(wnids):
        for slot in range(ipc):
            yield f"{name}/photo-{slot:04d}.png", image_bytes(c, slot)


LAYOUTS = {
    "wnid": (wnid, "wnid"),
    "d3hr": (d3hr, "wnid"),
    "vlcp": (vlcp, "vlcp"),
    "vlcp renamed": (vlcp_renamed, "vlcp"),
    "d4m": (d4m, "d4m"),
    "sre2l": (sre2l, "sre2l"),
    "rded": (rded, "rded"),
    "folders": (folders, "folders"),
}
"""Generators by name, with the layout that is to be recognised."""
