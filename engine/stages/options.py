"""Arguments, options and results of verbs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import tyro

from coreset.engine.models.student_names import SMALLEST_SIZE, TIMM
from coreset.engine.runtime.fields import require_at_least
from coreset.kernels.scores import SCORES
from coreset.shards.errors import CoresetError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from coreset.engine.data.geometry import Geometry
    from coreset.engine.data.stream import ImageStream
    from coreset.engine.models.features import FeatureSpec
    from coreset.shards.format.dataset import Dataset

_Positional = tyro.conf.Positional
SourcePath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="SRC")]
DataPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="DATA")]
ScoresPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="SCORES")]
FeaturesPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="FEATURES")]
SetPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="SET")]
ValPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="VAL")]
BankPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="BANK")]
TeacherPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="TEACHER")]
ResultsPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="RESULTS")]
HtmlPath: TypeAlias = Annotated[Path, _Positional, tyro.conf.arg(metavar="HTML")]
MovedData: TypeAlias = Annotated[
    Path | None, tyro.conf.arg(help="New path of the data set behind the input, if it was moved.")
]

_ONE_OF_SCORES = tyro.conf.arg(metavar=f"{{{','.join(SCORES)}}}")
ScoreName: TypeAlias = Annotated[str, _ONE_OF_SCORES]
"""Name of a score; the help lists all of them. A scores artifact says which it stores."""
ScoreNameOrNone: TypeAlias = Annotated[str | None, _ONE_OF_SCORES]
_ONE_OF_NETWORKS = tyro.conf.arg(metavar=f"{{{','.join(SMALLEST_SIZE)},{TIMM}NAME}}")
NetworkName: TypeAlias = Annotated[str, _ONE_OF_NETWORKS]
"""Name of a network to train; `require_student` checks it."""

_Options = TypeVar("_Options")
Flat: TypeAlias = Annotated[_Options, tyro.conf.arg(name="")]
"""Options of a nested dataclass; the command line shows them among the verb's own."""
DeviceChoice: TypeAlias = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a command: lines for people, data for machines (``--json``)."""

    lines: tuple[str, ...]
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: CoresetError | None = None
    """Raised once the lines are printed, by commands whose findings matter when they fail."""


class Stage(Protocol):
    """A frozen dataclass that is its own command line."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def run(self) -> Result:
        """Do it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Options of verbs that decode images."""

    device: DeviceChoice = "auto"
    """auto: a GPU if there is one."""
    decoder: Literal["auto", "dali", "turbo", "fast", "pillow"] = "auto"
    """auto: DALI on a GPU, libjpeg-turbo threads on a CPU."""
    decoder_exact: bool = False
    """Pixels equal to Pillow's, several times slower; others are at most 1 level off."""
    workers: int = 0
    """Decoding threads; 0 = one per core."""

    def resolved_device(self) -> "torch.device":
        """Return the device that the option stands for; without a GPU cuda is refused."""
        from coreset.engine.runtime.device import resolve_device

        return resolve_device(self.device)

    def notice(self, *, bicubic: bool = False) -> tuple[str, ...]:
        """Tell why the decoder was chosen, unless it was named."""
        from coreset.engine.data.decoders import choose_decoder, decoder_reason

        device = self.resolved_device().type
        chosen = choose_decoder(self.decoder, device, exact=self.decoder_exact, bicubic=bicubic)
        return (decoder_reason(chosen, device),) if self.decoder == "auto" else ()

    def stream(
        self,
        dataset: "Dataset",
        geometry: "Geometry",
        ids: "NDArray[np.int64] | None" = None,
        *,
        skip_damaged: bool = False,
    ) -> "ImageStream":
        """Open a stream of decoded images, of the samples ``ids`` or of all."""
        from coreset.engine.data.stream import ImageStream

        return ImageStream(
            dataset, geometry, ids=ids, skip_damaged=skip_damaged, workers=self.workers,
            decoder=self.decoder, exact=self.decoder_exact, device=self.resolved_device().type,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """Options of verbs that read features of a frozen backbone."""

    backbone: str = "auto"
    """Frozen backbone. auto: the first whose weights are on this machine: resnet18 (torchvision),
    resnet50, tf_efficientnet_lite0 (weights by the extra `offline`). Or one of them by name,
    mobilenetv2_100_same, inception-2015 (of FID; needs the extra `fid` and --size 299), any timm
    model, or clip:MODEL of open_clip, such as clip:ViT-B-32-quickgelu (extra `clip`, --weights)."""
    weights: Path | None = None
    """File of its weights or a checkpoint (.safetensors, .pth); by default what torchvision and
    timm left on this machine. Nothing is downloaded."""

    def features(self, decoding: Decoding, **sizes: int) -> "FeatureSpec":
        """Return which features to make, and how; "auto" takes weights that are on this machine."""
        from coreset.engine.models.backbones import choose_backbone
        from coreset.engine.models.features import FeatureSpec

        name = choose_backbone(self.backbone, self.weights)
        return FeatureSpec(
            backbone=name, weights=self.weights, device=decoding.device, workers=decoding.workers,
            decoder=decoding.decoder, exact=decoding.decoder_exact, **sizes,
        )  # fmt: skip

    def notice(self) -> tuple[str, ...]:
        """Tell which backbone was chosen, unless it was named."""
        from coreset.engine.models.backbones import told_backbone

        return told_backbone(self.backbone, self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extractor(Backbone):
    """Options of verbs that make features of images."""

    size: int = 224
    """Images are squashed to a square of this many pixels (CLIP: resized and cropped as its own
    transform does, at its own size alone)."""
    batch: int = 64
    """Images per forward pass."""

    def __post_init__(self) -> None:
        require_at_least("size", self.size, 8)
        require_at_least("batch", self.batch, 1)

    def spec(self, decoding: Decoding) -> "FeatureSpec":
        """Return which features to make, and how."""
        return self.features(decoding, size=self.size, batch=self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder(Extractor):
    """Options of verbs that embed concepts as texts."""

    backbone: str = "clip:ViT-B-32-quickgelu"
    """Encoder of images and texts, clip:NAME by open_clip's names; needs the extra `clip`."""
    prompt: str = "a photo of {}"
    """Sentence to embed each concept in, with {} for the concept; {} alone embeds it bare."""
    keep: int | None = None
    """Concepts to keep of each class: those whose mean similarity to the images of the class most
    exceeds that to all others. Default: all. Makes features of the images first."""

    def __post_init__(self) -> None:
        Extractor.__post_init__(self)  # a class with slots has no super() without arguments
        if not self.backbone.startswith("clip:"):
            raise UsageError(
                f"backbone {self.backbone} has no encoder of texts; use --backbone clip:NAME "
                "--weights FILE, or make visual prototypes: `coreset concepts visual`"
            )
        if "{}" not in self.prompt:
            raise UsageError(f"prompt must hold {{}} for the concept, got {self.prompt!r}")
        if self.keep is not None:
            require_at_least("keep", self.keep, 1)
