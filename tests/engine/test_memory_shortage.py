"""Exhausted memory of a GPU or the host: exit code 4, in one line with what would fit."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from coreset.engine.cli import VERBS
from coreset.engine.runtime.device import memory_shortage

GPU_TEXT = (
    "CUDA out of memory. Tried to allocate {wanted}. GPU 1 has a total capacity of 79.15 GiB of "
    "which {free} is free. Including non-PyTorch memory, this process has 78.00 GiB memory in use. "
    "Of the allocated memory {used} is allocated by PyTorch, with 1.00 GiB allocated in private "
    "pools (e.g., CUDA Graphs), and {idle} is reserved by PyTorch but unallocated. If reserved but "
    "unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."
)
# A command, and the remedies beside what the GPU lacks.
COMMANDS = {
    "score DATA SCORES": "--batch 128 should fit",
    "embed DATA FEATURES": "--batch 32 should fit",
    "measure SET VAL RESULTS": "--batch 32 should fit",
    "doctor": "--samples",
    "train SET VAL RESULTS": "",
}


def gpu_error(wanted="20.00 MiB", free="10.75 MiB", used="77.00 GiB", idle="512.00 KiB"):
    return torch.OutOfMemoryError(GPU_TEXT.format(wanted=wanted, free=free, used=used, idle=idle))


@pytest.mark.parametrize(
    ("error", "fact", "share"),
    [
        (gpu_error(), "20.00 MiB more wanted, 10.75 MiB of 79.15 GiB free, 77.00 GiB used", 0.5),
        # (1 + 2 + 5) GiB were to be had, 2 + 30 GiB wanted: a quarter.
        (gpu_error("30.00 GiB", "5.00 GiB", "2.00 GiB", "1024.00 MiB"), "30.00 GiB more", 0.25),
        (gpu_error("1.00 GiB", "0 bytes", "1.00 GiB", "0 bytes"), "0 bytes of 79.15 GiB", 0.5),
        (torch.OutOfMemoryError("another text, of a later release"), "out of memory", 0.5),
        (RuntimeError("CUDA error: out of memory"), "out of memory", 0.5),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out of", 0.5),
        (MemoryError("Unable to allocate 3.00 GiB"), "out of memory", 0.5),
    ],
)
def test_the_numbers_of_torch_say_which_share_of_a_batch_fits(error, fact, share):
    found = memory_shortage(error)
    assert found is not None
    assert fact in found[0]
    assert found[1] == share


def test_allocators_of_this_machine_are_understood():
    with pytest.raises(RuntimeError, match="allocate") as host:
        torch.empty(2**55)
    assert memory_shortage(host.value) == ("out of memory", 0.5)
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**55)
    assert memory_shortage(numpys.value) == ("out of memory", 0.5)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not fit"), RecursionError(), ValueError("out of memory")]
)
def test_other_errors_are_no_shortage(error):
    assert memory_shortage(error) is None


@pytest.mark.parametrize(("words", "remedy"), COMMANDS.items())
def test_a_verb_ends_in_one_line_and_code_4_when_a_gpu_has_no_memory_left(
    words, remedy, coreset, monkeypatch
):
    _, module, name, _ = VERBS[words.split()[0]]
    stage = vars(importlib.import_module(f"coreset.engine.stages.{module}"))[name]
    monkeypatch.setattr(stage, "run", exhausted)
    told = coreset(*words.split())
    assert (told.code, told.out) == (4, "")
    assert told.err.startswith("coreset: GPU 1 is out of memory: 20.00 MiB more wanted, ")
    assert told.err.count("\n") == 1
    assert remedy in told.err
    assert ("--batch" in told.err, "--samples" in told.err) == (
        "--batch" in remedy, "--samples" in remedy
    )  # fmt: skip


def exhausted(_stage):
    raise gpu_error()


def test_a_scoring_that_ran_out_of_memory_is_made_with_the_batch_that_fits(
    packed, tmp_path, coreset, done, monkeypatch
):
    forward = nn.Conv2d.forward

    def small_memory(self, images):
        if len(images) > 20:
            raise gpu_error()
        return forward(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", small_memory)
    small = ("--size", 17, "--epochs", 1, "--no-final")
    words = ("score", packed, tmp_path / "SCORES", *small, "--batch")
    told = coreset(*words, 33)
    assert told.code == 4
    assert "--batch 16 should fit, or use a smaller --size" in told.err
    assert done(*words, 16)
