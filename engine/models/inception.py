"""Backbone ``inception-2015``: the network of FID with TensorFlow's weights of 2015-12-05.

It is torch-fidelity's ``FeatureExtractorInceptionV3``, feature ``2048``. Unlike torch-fidelity,
nothing is downloaded, no weights file may run code, and images are resized before, by our decoders,
with antialiasing; at 299 pixels torch-fidelity's own resize is the identity. Importing this loads
no torch.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from coreset.shards.errors import MachineError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

INCEPTION = "inception-2015"
INCEPTION_SIZE = 299
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""Name of the published weights; as in torch's hub it ends with the start of their sha256."""
_PUBLISHED = "6726825d"


def inception_absent() -> str:
    """Say where the weights are published, and how to use them."""
    return (
        f"backbone {INCEPTION}: no weights on this machine (nothing is downloaded); name with "
        f"--weights the file {INCEPTION_FILE} from the releases of toshas/torch-fidelity on GitHub"
    )


def fid_name(weights_sha256: str) -> str:
    """Return ``fid`` for the published weights, else ``fid_`` and 8 digits of the sha256."""
    is_published = weights_sha256.startswith(_PUBLISHED)
    return "fid" if is_published else f"fid_{weights_sha256[:8]}"


def frechet_name(backbone: str, weights_sha256: str) -> str:
    """Return the name of the Frechet distance of a backbone's features: FID's is that of one."""
    return fid_name(weights_sha256) if backbone == INCEPTION else f"frechet_{backbone}"


def inception() -> "nn.Module":
    """Build the network with random weights: float images (b, 3, 299, 299) to float32 (b, 2048).

    Images are whole levels of uint8 divided by 255.

    Raises:
        MachineError: torch-fidelity is not installed.
        UsageError: (From the network) images of another size.
    """
    import torch

    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise MachineError(
            f"backbone {INCEPTION} needs the package torch-fidelity ({error}); "
            "pip install coreset[fid]"
        ) from error

    class Inception(FeatureExtractorInceptionV3):
        """Takes float images, and returns the features alone."""

        def load_state_dict(self, state_dict: Mapping[str, Any], *_: object, **__: object) -> Any:  # noqa: ANN401 - torch's own
            # The constructor's are none, and who loads ours has compared the names.
            return super().load_state_dict(state_dict, strict=False)

        def forward(self, x: "Tensor") -> "Tensor":  # pyright: ignore[reportIncompatibleMethodOverride] - theirs returns a tuple
            if x.shape[2:] != (INCEPTION_SIZE, INCEPTION_SIZE):
                raise UsageError(
                    f"backbone {INCEPTION} takes images of {INCEPTION_SIZE} pixels, got "
                    f"{x.shape[-1]}; use --size {INCEPTION_SIZE}"
                )
            # Rounded: a GPU may divide by 255 with an error in the last bit.
            (features,) = super().forward((x * 255).round().to(torch.uint8))
            return features

    # The constructor unpickles a file, code and all, or downloads one: it gets an empty one.
    empty = BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    network: Any = Inception(INCEPTION, ["2048"], feature_extractor_weights_path=empty)
    network.fc = torch.nn.Identity()  # its 8 MB of weights do not touch the features
    return network
