"""FID's network: torch-fidelity's features, of the same levels, and no code from its weights."""

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coreset.engine.artifacts.provenance import Provenance
from coreset.engine.evaluation.results import METRICS, Results
from coreset.engine.models.backbones import load_backbone, weights_key
from coreset.engine.models.features import FeatureSpec, cached_features, features_for
from coreset.engine.models.inception import (
    INCEPTION,
    INCEPTION_FILE,
    INCEPTION_SIZE,
    fid_name,
    frechet_name,
    inception,
)
from coreset.engine.runtime.device import generator_for
from coreset.engine.stages.pack import Pack
from coreset.kernels.augment import normalised
from coreset.shards.errors import MachineError, UsageError
from coreset.shards.format.dataset import Dataset
from coreset.shards.format.files import digest_of, sha256_of_file

pytestmark = pytest.mark.usefixtures("one_thread")

MODULE = "torch_fidelity.feature_extractor_inceptionv3"
CPU = torch.device("cpu")
CLASSES = ("n01440764", "n02102040")
N_SET, N_VAL = 6, 5


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _no_downloads(tmp_path, monkeypatch, cache):
    def offline(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("CORESET_CACHE", str(cache))


def random_tensor(name, tensor, draws):
    """Values that keep the spread of activations through the layers (He et al. 2015)."""
    values = torch.randn(tensor.shape, generator=draws)
    if name.endswith("conv.weight"):
        return values * (2 / tensor[0].numel()) ** 0.5
    positive = name.endswith(("running_var", "bn.weight"))
    return 1 + values.abs() / 10 if positive else values / 10


@pytest.fixture(scope="module")
def state():
    """Random weights for torch-fidelity's class, built without any."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = theirs.FeatureExtractorInceptionV3("random", ["2048"])
    draws = generator_for(3)
    return {
        name: tensor if name.endswith("tracked") else random_tensor(name, tensor, draws)
        for name, tensor in network.state_dict().items()
    }


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def levels():
    """Images of uint8 (299, 299, 3), each a ramp between colours of its own, more or less noisy."""
    rng, n = np.random.default_rng(0), N_SET + N_VAL
    ramp = np.linspace(0, 1, INCEPTION_SIZE)[None, :, None]
    ends = rng.uniform(0, 255, (n, 2, 1, 1, 3))
    noise = rng.normal(0, 1, (n, INCEPTION_SIZE, INCEPTION_SIZE, 3))
    noise *= rng.uniform(5, 40, (n, 1, 1, 1))
    return (ends[:, 0] * ramp + ends[:, 1] * (1 - ramp) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def expected(levels, weights):
    """Features of the images by torch-fidelity's own class and reading of the weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "theirs", ["2048"], feature_extractor_weights_path=str(weights)
    )
    with torch.inference_mode():
        return network(torch.from_numpy(levels).permute(0, 3, 1, 2))[0]


def packed_pngs(folder, images):
    """Pack images in their order, the first half of one class, the others of another."""
    for index, image in enumerate(images):
        path = folder / "png" / CLASSES[2 * index // len(images)] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    Pack(src=folder / "png", data=folder / "DATA", order="source").run()
    return folder / "DATA"


@pytest.fixture(scope="module")
def photos_299(levels, tmp_path_factory):
    return packed_pngs(tmp_path_factory.mktemp("set"), levels[:N_SET])


@pytest.fixture(scope="module")
def val_299(levels, tmp_path_factory):
    return packed_pngs(tmp_path_factory.mktemp("val"), levels[N_SET:])


# what is computed


def test_features_of_files_are_torch_fidelitys_of_the_same_levels(expected, photos_299, weights):
    assert expected.std(dim=0).median() > 0.01, "else any features would do"
    spec = FeatureSpec(backbone=INCEPTION, weights=weights, size=INCEPTION_SIZE, device="cpu")
    stored = features_for(Dataset.open(photos_299), spec)
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored, expected[:N_SET], rtol=1e-5, atol=1e-5)


def test_features_that_were_rounded_to_float16_are_not_found(photos_299, weights, cache):
    spec = FeatureSpec(backbone=INCEPTION, weights=weights, size=INCEPTION_SIZE, device="cpu")
    entry = cached_features(Dataset.open(photos_299), spec)
    config = dict(Provenance.read(entry).config)
    assert config.pop("dtype") == "float32"
    assert entry != cache / f"features-{digest_of(config)[:24]}"


@pytest.fixture
def measured(photos_299, val_299, weights, tmp_path, done):
    """Measure all images of the set; returns the lines of the command, and each metric's value."""
    done("select", photos_299, tmp_path / "SET", "--ratio", 1.0)
    network = ("--backbone", INCEPTION, "--size", INCEPTION_SIZE, "--weights", weights)
    command = ("measure", tmp_path / "SET", val_299, tmp_path / "RESULTS", *network)
    lines = done(*command, "--metrics", "fid,kid", "--device", "cpu")
    rows = Results(tmp_path / "RESULTS").rows(METRICS)
    return "\n".join(lines), {row["metric"]: row["value"] for row in rows}


def test_the_distance_of_a_set_is_torch_fidelitys(expected, measured, weights):
    from torch_fidelity import metric_fid

    lines, values = measured
    name = f"fid_{weights_key(INCEPTION, weights)[:8]}"
    assert list(values) == [f"{name}@1", f"{name}_class@1", f"kid{name[3:]}@1"]
    # In 2,048 dimensions it adds the roots of 2,000 rounded zeros, which are more than 1e-6 of the
    # value. In an orthonormal basis of the features there are few, and the distance is the same.
    own = expected.double()
    own = own @ torch.linalg.svd(own, full_matrices=False).Vh.T
    statistics = map(metric_fid.fid_features_to_statistics, (own[:N_SET], own[N_SET:]))
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert values[f"{name}@1"] == pytest.approx(theirs[metric_fid.KEY_METRIC_FID], rel=1e-6)
    assert values[f"{name}_class@1"] > 0
    assert f"{name}, {name}_class: of {N_SET} images, fewer than 2,048: too large" in lines


def test_the_network_gets_every_level_as_it_was(monkeypatch):
    monkeypatch.setattr(
        f"{MODULE}.FeatureExtractorInceptionV3.forward", lambda _, images: (images,)
    )
    count = 3 * INCEPTION_SIZE**2
    levels = torch.arange(count).remainder(256).byte().view(1, 3, INCEPTION_SIZE, -1)
    network, images = inception(), normalised(levels, (0.0,) * 3, (1.0,) * 3)
    # As a GPU may divide: the last bit less or more.
    for end in (images, images.new_tensor(0), images.new_tensor(1)):
        assert torch.equal(network(images.nextafter(end)), levels)


def test_a_file_in_the_cache_of_torchs_hub_is_found(tmp_path):
    file = tmp_path / "torch/hub/checkpoints" / INCEPTION_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"some weights")
    assert weights_key(INCEPTION, None) == sha256_of_file(file)


@pytest.mark.parametrize(
    ("backbone", "sha256", "name"),
    [
        (INCEPTION, "6726825d" + "0" * 56, "fid"),
        (INCEPTION, "6726825e" + "0" * 56, "fid_6726825e"),
        ("resnet18", "6726825d" + "0" * 56, "frechet_resnet18"),
    ],
)
def test_only_the_published_weights_give_fid(backbone, sha256, name):
    assert frechet_name(backbone, sha256) == name
    if backbone == INCEPTION:
        assert fid_name(sha256) == name


# what is refused


@pytest.fixture
def embed(refused, photos_299, tmp_path):
    """Embed with this backbone, which must be refused; returns the line."""

    def run(*words, code=2):
        verb = ("embed", photos_299, tmp_path / "F", "--backbone", INCEPTION)
        said = refused(photos_299, *verb, *words, code=code)
        assert not (tmp_path / "F").exists()
        return said

    return run


class Canary:
    """What a malicious file makes of unpickling: a call."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_weights_that_would_run_code_are_refused_and_do_not_run_it(state, embed, tmp_path):
    trace, file = tmp_path / "fired", tmp_path / "evil.pth"
    torch.save({"fc.bias": state["fc.bias"], "x": Canary(trace)}, file)
    said = embed("--weights", file, "--size", INCEPTION_SIZE)
    assert "evil.pth cannot be read as tensors" in said
    assert not trace.exists()
    torch.load(file, weights_only=False)  # noqa: TID251 - the trap itself works
    assert trace.exists()


def test_weights_that_lack_a_tensor_are_refused(state, tmp_path):
    lacking = {
        name: tensor for name, tensor in state.items() if name != "Mixed_7c.branch1x1.bn.bias"
    }
    torch.save(lacking, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"has nothing for Mixed_7c\.branch1x1\.bn\.bias, the net"):
        load_backbone(INCEPTION, tmp_path / "w.pth", CPU)


def test_other_sizes_are_refused_with_the_remedy(weights, embed):
    said = embed("--weights", weights)
    assert said == "backbone inception-2015 takes images of 299 pixels, got 224; use --size 299"


def test_without_weights_the_line_says_where_they_are_published(embed):
    said = embed("--size", INCEPTION_SIZE, code=4)
    assert "no weights on this machine (nothing is downloaded)" in said
    assert f"--weights the file {INCEPTION_FILE} from the releases of toshas/torch-fidelity" in said


def test_without_torch_fidelity_the_line_names_the_extra(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(MachineError, match=r"needs .* torch-fidelity .*coreset\[fid\]") as caught:
        load_backbone(INCEPTION, weights, CPU)
    assert "\n" not in str(caught.value)
