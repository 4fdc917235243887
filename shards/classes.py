"""Class lists: those of well-known data sets, by which protocols are looked up, and those of files.

The class lists of ImageNet's subsets are in sorted WordNet-id order, as everywhere here.
"""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from shards.errors import MachineError, UsageError

IMAGENETTE_WNIDS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip
# Tian et al., Contrastive Multiview Coding (ECCV 2020), imagenet100.txt, sorted.
IMAGENET_100_WNIDS = (
    "n01558993", "n01692333", "n01729322", "n01735189", "n01749939", "n01773797", "n01820546",
    "n01855672", "n01978455", "n01980166", "n01983481", "n02009229", "n02018207", "n02085620",
    "n02086240", "n02086910", "n02087046", "n02089867", "n02089973", "n02090622", "n02091831",
    "n02093428", "n02099849", "n02100583", "n02104029", "n02105505", "n02106550", "n02107142",
    "n02108089", "n02109047", "n02113799", "n02113978", "n02114855", "n02116738", "n02119022",
    "n02123045", "n02138441", "n02172182", "n02231487", "n02259212", "n02326432", "n02396427",
    "n02483362", "n02488291", "n02701002", "n02788148", "n02804414", "n02859443", "n02869837",
    "n02877765", "n02974003", "n03017168", "n03032252", "n03062245", "n03085013", "n03259280",
    "n03379051", "n03424325", "n03492542", "n03494278", "n03530642", "n03584829", "n03594734",
    "n03637318", "n03642806", "n03764736", "n03775546", "n03777754", "n03785016", "n03787032",
    "n03794056", "n03837869", "n03891251", "n03903868", "n03930630", "n03947888", "n04026417",
    "n04067472", "n04099969", "n04111531", "n04127249", "n04136333", "n04229816", "n04238763",
    "n04336792", "n04418357", "n04429376", "n04435653", "n04485082", "n04493381", "n04517823",
    "n04589890", "n04592741", "n07714571", "n07715103", "n07753275", "n07831146", "n07836838",
    "n13037406", "n13040303",
)  # fmt: skip
_WNID = re.compile(r"n\d{8}")


def recognise(classes: Sequence[str]) -> str | None:
    """Name of the data set with this class list: imagenette, imagenet-100, imagenet-1k, or None.

    The order of ``classes`` does not matter. Any 1000 WordNet ids count as ImageNet-1K.
    """
    ordered = tuple(sorted(classes))
    if ordered == IMAGENETTE_WNIDS:
        return "imagenette"
    if ordered == IMAGENET_100_WNIDS:
        return "imagenet-100"
    if len(ordered) == 1000 and all(_WNID.fullmatch(name) for name in ordered):
        return "imagenet-1k"
    return None


def class_list(name: str) -> tuple[str, ...]:
    """Class names by the name of a data set or by a file with one class a line, in its order.

    Of a line that begins with a WordNet id, only that id counts (``n01440764 tench``).

    Args:
        name: imagenette, imagenet-100, imagenet-1k (also without the hyphen), or a file.

    Raises:
        UsageError: There is no such list or file, or the file is empty or names a class twice.
        MachineError: The list of ImageNet-1K needs timm, which is not installed.
    """
    known = name.lower().replace("-", "").replace("_", "")
    if known == "imagenette":
        return IMAGENETTE_WNIDS
    if known == "imagenet100":
        return IMAGENET_100_WNIDS
    if known in {"imagenet", "imagenet1k"}:
        return _classes_of_file(_timm_synsets())
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"class list {name} is neither imagenette, imagenet-100 or imagenet-1k nor a file; "
            "name one of these"
        )
    return _classes_of_file(path)


def _classes_of_file(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"class list {path} is not UTF-8 text; save it as such") from error
    words = [line.strip() for line in lines if line.strip()]
    names = tuple(word.split()[0] if _WNID.match(word) else word for word in words)
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise UsageError(f"class list {path} names {repeated[0]} twice; remove one line")
    if not names:
        raise UsageError(f"class list {path} is empty; write one class name a line")
    return names


def _timm_synsets() -> Path:
    """The sorted WordNet ids that timm ships; importing timm would import torch."""
    spec = find_spec("timm")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "data/_info/imagenet_synsets.txt"
        if path.is_file():
            return path
    raise MachineError("the class list of ImageNet-1K comes with timm, which is not installed")
