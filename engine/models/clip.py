"""CLIP networks of open_clip as frozen backbones: ``clip:`` and the name of a configuration of it.

Nothing is downloaded, and no weights file may run code. Importing this does not load open_clip.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coreset.engine.data.geometry import Geometry
from coreset.shards.errors import MachineError, UsageError

if TYPE_CHECKING:
    from coreset.engine.models.backbones import Backbone

CLIP = "clip:"
_TEXT_BATCH = 256


def clip_recipe(name: str) -> tuple[Callable[[], nn.Module], Any, Any]:
    """Return the constructor of a network, and mean and spread of the pixels that it expects."""
    config, published = _config(name)
    if config["text_cfg"].get("hf_model_name"):
        raise UsageError(f"backbone {name} has a text tower that open_clip downloads; use another")
    return partial(_build, **config), published["mean"], published["std"]


def clip_geometry(name: str, size: int) -> Geometry:
    """Return how open_clip prepares images for a configuration, which takes one ``size`` alone.

    Unlike in open_clip's ``image_transform`` images are RGB before they are resized, as everywhere
    here, which alters those in CMYK, with a palette or alpha. Two later weights (DFN's of ViT-L-14
    and ViT-H-14) were published with another preparation than their configuration's first.
    """
    config, published = _config(name)
    own = config["vision_cfg"].get("image_size", 224)
    if size != own:
        raise UsageError(f"backbone {name} takes images of {own} pixels (--size {own}), got {size}")
    resize = None if published["resize_mode"] == "squash" else size
    return Geometry(size, resize, bicubic=published["interpolation"] == "bicubic")


def clip_file(name: str) -> str:
    """Name a published file of weights, if there is one in a format that holds no code."""
    repository, _, file = _config(name)[1].get("hf_hub", "").rpartition("/")
    file = file or "open_clip_model.safetensors"
    return f"{file} of {repository} on the Hugging Face hub" if repository else "a safetensors file"


def require_quickgelu(name: str, weights: Path) -> None:
    """Refuse OpenAI's weights, by file or folder ``*.openai``, in a network without QuickGELU."""
    folders, twin = (part.endswith(".openai") for part in weights.parts), f"{name}-quickgelu"
    is_openai = "openai" in weights.name.lower() or any(folders)
    has_twin = twin.removeprefix(CLIP) in _open_clip().list_models()
    if is_openai and has_twin and not _config(name)[0].get("quick_gelu"):
        raise UsageError(f"weights {weights} need OpenAI's activation; use --backbone {twin}")


def text_encoder(backbone: "Backbone") -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Return the function from t texts, cut at the context, to their rows of length 1, (t, d)."""
    hub, network = _config(backbone.name)[0]["text_cfg"].get("hf_tokenizer_name"), backbone.network
    local: dict[str, Any] = {"local_files_only": True} if hub else {}
    try:
        tokenizer = _open_clip().get_tokenizer(backbone.name.removeprefix(CLIP), **local)
    except (OSError, ValueError) as error:
        reason = f"{hub} is not in the cache of the Hugging Face hub (nothing is downloaded)"
        raise MachineError(f"tokenizer of {backbone.name}: {reason}; copy it there") from error
    encode_text: Any = network.encode_text
    device = next(network.parameters()).device

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        starts = range(0, len(texts), _TEXT_BATCH)
        parts = (tokenizer(list(texts[at : at + _TEXT_BATCH])).to(device) for at in starts)
        return torch.cat([encode_text(part, normalize=True) for part in parts]).cpu().numpy()

    return encode


def class_names() -> tuple[str, ...]:
    """Return open_clip's names of the classes of ImageNet, in the order of their ids."""
    return tuple(_open_clip().IMAGENET_CLASSNAMES)


def _open_clip() -> Any:  # noqa: ANN401 - typed in part
    try:
        import open_clip
    except ImportError as error:
        remedy = "pip install coreset[clip]"
        raise MachineError(f"backbones {CLIP}MODEL need open_clip ({error}); {remedy}") from error
    return open_clip


def _config(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and the first weights published for it with the same activation."""
    open_clip, model = _open_clip(), name.removeprefix(CLIP)
    if model not in (known := open_clip.list_models()):  # also not an address or a folder
        near = CLIP + f", {CLIP}".join(get_close_matches(model, known) or ["ViT-B-32-quickgelu"])
        raise UsageError(f"backbone must be {CLIP}MODEL of open_clip, got {name}; near it: {near}")
    config, tags = open_clip.get_model_config(model), open_clip.list_pretrained_tags_by_model(model)
    rows = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    alike = [row for row in rows if row.get("quick_gelu", False) == config.get("quick_gelu", False)]
    return config, vars(open_clip.transform.PreprocessCfg()) | (alike[0] if alike else {})


def _build(*, vision_cfg: dict[str, object], custom_text: bool = False, **rest: object) -> Any:  # noqa: ANN401 - theirs
    """Build as ``create_model``, which would say on stderr that it has no weights."""
    open_clip = _open_clip()
    custom = open_clip.CoCa if "multimodal_cfg" in rest else open_clip.CustomTextCLIP
    build: Any = custom if custom_text else open_clip.CLIP
    network = build(vision_cfg=vision_cfg | {"timm_model_pretrained": False}, **rest)
    network.forward = partial(network.encode_image, normalize=False)  # CoCa's default is True
    return network
