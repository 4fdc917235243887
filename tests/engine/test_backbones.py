"""Frozen backbones: the right weights in the right places, and no code from a weights file."""

import io
import socket
from argparse import Namespace  # noqa: TID251 - of other programs' checkpoints
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save, save_file
from torch import nn

import coreset.engine.models.backbones
from coreset.engine.models.backbones import (
    HALF,
    OFFLINE_BACKBONE,
    OFFLINE_PACKAGE,
    choose_backbone,
    load_backbone,
    told_backbone,
    weights_key,
)
from coreset.engine.models.networks import IMAGENET_MEAN, IMAGENET_STD
from coreset.engine.models.weights import by_own_names, load_by_name, load_by_position, read_weights
from coreset.engine.runtime.device import generator_for
from coreset.shards.errors import UsageError
from coreset.shards.format.files import sha256_of_file

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
BATCH = torch.randn((4, 3, 64, 64), generator=generator_for(0))


def packaged_weights():
    files = distribution(OFFLINE_PACKAGE).files or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".pth")


def small_network() -> Any:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())


@pytest.fixture(scope="module")
def resnet18():
    """torchvision's, with weights and statistics of no meaning."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=1000)
    draws = generator_for(1)
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=draws) + 0.5)
        elif "running_mean" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=draws) / 10)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "timms", "settings"),
    [
        (OFFLINE_BACKBONE, OFFLINE_BACKBONE, {}),
        ("mobilenetv2_100_same", "mobilenetv2_100", {"pad_type": "same"}),
        ("mobilenetv3_small_050", "mobilenetv3_small_050", {}),
    ],
)
def test_features_are_those_of_timms_own_model(tmp_path, name, timms, settings):
    """An independent load: the whole network with its head, then the head taken off."""
    import timm

    network: Any = timm.create_model(timms, pretrained=False, **settings)
    names, weights = network.state_dict(), tmp_path / "w.safetensors"
    save_file(names, weights)
    if name == OFFLINE_BACKBONE:
        state = read_weights(packaged_weights())
        network.load_state_dict(dict(zip(names, state.values(), strict=True)))
        weights = None
    network.reset_classifier(0)
    backbone = load_backbone(name, weights, CPU)
    with torch.inference_mode():
        features = backbone.features(BATCH)
        torch.testing.assert_close(features, network.eval()(BATCH), atol=1e-4, rtol=1e-4)
    assert features.dtype == torch.float32
    assert not backbone.network.training
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    expected: Any = timm.get_pretrained_cfg(timms)
    is_tensorflows = name == "mobilenetv2_100_same"
    mean, std = (HALF, HALF) if is_tensorflows else (expected.mean, expected.std)
    assert (backbone.mean, backbone.std) == (mean, std)


@pytest.mark.parametrize("saved", ["as it is", "without counts", "of a parallel training"])
def test_torchvisions_resnet18_gives_what_its_head_sees(tmp_path, resnet18, saved):
    state = resnet18.state_dict()
    if saved == "without counts":  # as files from before torch 0.4.1, torchvision's among them
        state = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    if saved == "of a parallel training":
        state = {"state_dict": prefixed("module.", state), "epoch": 90}
    torch.save(state, tmp_path / "resnet18.pth")
    backbone = load_backbone("resnet18", tmp_path / "resnet18.pth", CPU)
    with torch.inference_mode():
        features = backbone.features(BATCH)
        assert features.shape == (4, 512)
        torch.testing.assert_close(resnet18.fc(features), resnet18(BATCH), atol=1e-4, rtol=1e-4)
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_the_files_of_torchvision_and_timm_give_equal_features(tmp_path, resnet18):
    import timm

    network: Any = timm.create_model("resnet18", pretrained=False).eval()
    network.load_state_dict(resnet18.state_dict())
    files = (tmp_path / "torchvision.pth", tmp_path / "timm.safetensors")
    torch.save(resnet18.state_dict(), files[0])
    save_file(network.state_dict(), files[1])
    network.reset_classifier(0)
    with torch.inference_mode():
        first, second = (load_backbone("resnet18", file, CPU).features(BATCH) for file in files)
        torch.testing.assert_close(first, network(BATCH), atol=1e-4, rtol=1e-4)
    assert torch.equal(first, second)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """``here(place, ...)``: put weights at some places and none elsewhere; no network."""

    def offline(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("coreset.engine.models.backbones.OFFLINE_PACKAGE", "no-such-package")
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub/models--timm--resnet18.a1_in1k"
    places = {
        "torchvision": tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth",
        "timm": folder / "snapshots" / commit / "model.safetensors",
        "formerly timm": tmp_path / "torch/hub/checkpoints/resnet18_a1_0-d63eafa0.pth",
        "resnet50": tmp_path / "torch/hub/checkpoints/resnet50-0676ba61.pth",
    }

    def put(*wanted: str) -> dict[str, Path]:
        for place in wanted:
            if place == "package":
                monkeypatch.setattr(
                    coreset.engine.models.backbones, "OFFLINE_PACKAGE", OFFLINE_PACKAGE
                )
                continue
            places[place].parent.mkdir(parents=True, exist_ok=True)
            places[place].write_bytes(place.encode())
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text(commit)
        return places | {"package": packaged_weights()}

    return put


@pytest.mark.parametrize(
    ("there", "chosen", "taken"),
    [
        (("torchvision", "timm", "resnet50", "package"), "resnet18", "torchvision"),
        (("timm", "resnet50", "package"), "resnet18", "timm"),
        (("formerly timm", "package"), "resnet18", "formerly timm"),
        (("resnet50", "package"), "resnet50", "resnet50"),
        (("package",), OFFLINE_BACKBONE, "package"),
    ],
)
def test_auto_is_a_backbone_whose_weights_are_here_and_said(here, there, chosen, taken):
    file = here(*there)[taken]
    assert choose_backbone("auto", None) == chosen
    assert weights_key(chosen, None) == sha256_of_file(file)
    (line,) = told_backbone("auto", None)
    assert line.startswith(f"backbone {chosen}, weights {file}")
    assert ("none of resnet18 on this machine" in line) is (chosen != "resnet18")
    for named, weights in (("resnet34", None), ("auto", file)):
        assert choose_backbone(named, weights) == ("resnet18" if weights else named)
        assert told_backbone(named, weights) == ()


def small_state():
    state = small_network().state_dict()
    return {
        name: torch.full_like(tensor, 1 + at) for at, (name, tensor) in enumerate(state.items())
    }


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def loaded(file):
    network = small_network()
    load_by_name(network, by_own_names(network, read_weights(file)), file)
    return network.state_dict()


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_checkpoints_are_unwrapped_as_timm_does(tmp_path, wrapper, prefix):
    from timm.models import load_state_dict

    file = tmp_path / "checkpoint.pth"
    checkpoint = {"epoch": 3, "optimizer": {"state": {}}, "args": Namespace(lr=0.1)}
    others = dict.fromkeys(("state_dict", "model"), prefixed(prefix, small_network().state_dict()))
    torch.save(checkpoint | others | {wrapper: prefixed(prefix, small_state())}, file)
    expected, found = load_state_dict(str(file)), loaded(file)
    assert found.keys() <= expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    if wrapper != "model":  # beside which there is a "state_dict", read first
        assert torch.equal(found["0.weight"], small_state()["0.weight"])


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "module.model.", "model._orig_mod.", "module.backbone."]
)
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_names_of_networks_inside_others_are_found(tmp_path, prefix, write):
    file = tmp_path / ("w.pth" if write is torch.save else "w.safetensors")
    head = {"head.weight": torch.zeros(2), "model.head.bias": torch.zeros(2)}
    write(prefixed(prefix, small_state()) | head, file)
    found = loaded(file)
    assert all(torch.equal(tensor, small_state()[name]) for name, tensor in found.items())


def test_a_network_whose_own_names_begin_like_a_prefix_keeps_them():
    network = nn.ModuleDict({"model": small_network()})
    state = prefixed("model.", small_state())
    assert by_own_names(network, state) == state
    wrapped = prefixed("module.", state)
    assert by_own_names(network, wrapped).keys() == state.keys()


# what is refused


def test_weights_of_another_network_name_the_first_tensor_that_does_not_fit(tmp_path, resnet18):
    state = resnet18.state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    torch.save(state, tmp_path / "w.pth")
    fact = r"has \(64, 64, 1, 1\) for layer1\.0\.conv1\.weight, the network needs \(64, 64, 3, 3\)"
    with pytest.raises(UsageError, match=fact):
        load_backbone("resnet18", tmp_path / "w.pth", CPU)
    del state["bn1.running_var"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"has nothing for bn1\.running_var"):
        load_backbone("resnet18", tmp_path / "w.pth", CPU)


class Canary:
    """What a malicious file makes of unpickling: a call."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, old_format):
    trace = tmp_path / "fired"
    file = tmp_path / "evil.pth"
    torch.save(
        {"conv1.weight": torch.zeros(1), "x": Canary(trace)},
        file,
        _use_new_zipfile_serialization=not old_format,
    )
    with pytest.raises(UsageError, match=r"evil\.pth cannot be read as tensors") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # noqa: TID251 - the trap itself works
    assert trace.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"must be a timm model, got resnet19; near it: .*\bresnet18\b"),
        ("tf_efficientnet_lit0", r"near it: .*\btf_efficientnet_lite0\b"),
        ("?", r"got \?; near it: resnet18"),
        ("resnet50.none", r"resnet50\.none is not known to timm; it knows .*a1_in"),
        ("resnet18", r"none\.pth does not exist; name a \.safetensors or"),
    ],
)
def test_unknown_backbones_and_absent_files_are_refused_before_anything_is_read(name, message):
    for look_up in (weights_key, partial(load_backbone, device=CPU)):
        with pytest.raises(UsageError, match=message):
            look_up(name, Path("none.pth"))


def test_weights_that_do_not_fit_leave_the_network_as_it_was():
    network = small_network()
    before = network[0].weight.detach().clone()
    state = {name: torch.ones_like(tensor) for name, tensor in network.state_dict().items()}
    too_few = dict(list(state.items())[:-1])
    state["1.bias"] = torch.ones(5)
    with pytest.raises(UsageError, match=r"1\.bias"):
        load_by_name(network, state, Path("w"))
    for unfit in (state, too_few):
        with pytest.raises(UsageError, match="does not fit this backbone"):
            load_by_position(network, unfit, Path("w"))
    assert torch.equal(network[0].weight, before)


def cut_file(save):
    file = io.BytesIO()
    save({"a": torch.arange(1000)}, file)
    return file.getvalue()[:3000]


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no weights at all",
        b"\x80\x04\x95",
        b"PK\x03\x04",
        cut_file(torch.save),
        cut_file(lambda state, file: file.write(save(state))),
    ],
    ids=["empty", "text", "pickle", "zip", "cut .pth", "cut .safetensors"],
)
def test_a_file_that_is_not_weights_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} cannot be read as tensors") as caught:
        read_weights(tmp_path / name)
    assert str(caught.value).isprintable()


ENDLESS: dict[str, Any] = {"epoch": 1}
ENDLESS["model"] = ENDLESS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], r"no flat dictionary of tensors, .* \(its names: none\)"),
        ({"net": {"a": torch.zeros(1)}, "epoch\x1b[1m": 3}, r"names: 'net', 'epoch\\x1b\[1m'"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, "its names: 'state_dict'"),
        (ENDLESS, "no flat dictionary of tensors"),
        ({"model": {}, "folder": Path("p")}, r"\(it holds pathlib\.PosixPath, .*save its state d"),
    ],
    ids=["a list", "other names", "a number in it", "itself", "an object"],
)
def test_only_a_flat_dictionary_of_tensors_is_taken(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=message) as caught:
        read_weights(tmp_path / "w.pth")
    assert str(caught.value).isprintable()
