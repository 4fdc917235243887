"""Counts of the accumulation: graphs, kernels, passes, waits, operations, bytes, self times.

Bytes that operators move are those of every operator's tensors, each read and written once: a step
moves so many if no operator is fused with its neighbour and no cache helps.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.profiler_util import FunctionEvent
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coreset.bench.dynamics_timing import Setting, resnet18, training
from coreset.bench.harness import Row
from coreset.engine.doctor.arithmetic import HostReads
from coreset.engine.models.networks import build_network
from coreset.engine.runtime.device import resolve_device
from coreset.engine.scoring.proxy import side_at
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import momentum_of
from coreset.kernels.dynamics import Dynamics

SIZES = (96, 128, 160, 192, 224)
PROFILED_SIZES, PROFILED_STEPS = (64, 128), 3
GPU, PEAK_FLOPS, PEAK_BYTES = "H200", 989e12, 4.8e12
"""Of the vendor's data sheet: dense bfloat16 without sparsity, and memory, each per second."""
PEAK_SHARES = (0.2, 0.4)
ACCUMULATION = "bench::accumulation"
_COPIES = ("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous")
# Looked for in the names of an event and of those around it, in this order.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "accumulation": (ACCUMULATION,),
        "optimiser": ("Optimizer.",),
        "casts and copies": (),
        "matrix arithmetic": ("conv", "Convolution", "aten::mm", "addmm", "aten::linear"),
        "norm": ("batch_norm", "BatchNorm"),
        "pooling": ("pool", "Pool", "aten::mean", "MeanBackward"),
        "elementwise": ("relu", "Relu", "threshold", "aten::add", "AddBackward", "aten::mul"),
    }
)
OTHER = "other"


class Traffic(TorchDispatchMode):
    """Counter of the bytes of the tensors that operators read and write."""

    def __init__(self) -> None:
        """Start with nothing moved."""
        super().__init__()
        self.n_bytes = 0

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Add the tensors of an operator, unless it is a view or reserves memory."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.overloadpacket.__name__.startswith(("empty", "new_empty")):
            moved = [
                tensor
                for tensor in tree_leaves((args, kwargs, result))
                if isinstance(tensor, Tensor)
            ]
            self.n_bytes += sum(tensor.numel() * tensor.element_size() for tensor in moved)
        return result


def compiled_graph(setting: Setting) -> Row:
    """Count graphs, kernels and passes over the logits of ``Dynamics(compiled=True)``.

    Batches of two epochs, and of two that end with a short one, as those of a training do.
    """
    from torch._dynamo.utils import counters
    from torch._inductor import config, metrics
    from torch._inductor.utils import run_and_get_code

    full = setting.batches(torch.float32, 3)
    short = [(logits[:-1], labels[:-1], ids[:-1]) for logits, labels, ids in full[:1]]
    dynamics = Dynamics(setting.samples, "cpu", compiled=True)

    def epochs(batches: Sequence[Any]) -> None:
        for epoch in range(2):
            dynamics.begin_epoch(epoch)
            for batch in batches:
                dynamics.update(*batch)

    counters.clear()
    metrics.reset()
    with config.patch(force_disable_caches=True):
        _, (code,) = run_and_get_code(epochs, full)
    counts: Row = {"name": "compiled accumulation", "kernels": metrics.generated_kernel_count}
    counts |= {"graphs": counters["stats"]["unique_graphs"], **code_counts(code, setting.classes)}
    epochs([*full, *short])
    counts |= {"graphs_with_short_batch": counters["stats"]["unique_graphs"]}
    return setting.facts() | counts | {"graph_breaks": sum(counters["graph_break"].values())}


def code_counts(code: str, classes: int) -> Row:
    """Count functions, passes and fallbacks of the code that Inductor generated for a CPU.

    A pass over the logits is a loop over the classes in it, known by its bound, which must be that
    of nothing else; the remainder that does not fill a vector belongs to the loop before it.
    Fallbacks are operators that run as they do eagerly.
    """
    loops = re.findall(
        rf"for\s*\(int64_t x\d+=[^;]*;[^;]*<static_cast<int64_t>\({classes}L\)", code
    )
    functions = re.findall(r"^\w+ = async_compile\.\w+\(", code, re.MULTILINE)
    fallbacks = re.findall(r"aten\.(\w+)\.\w+\(", code.partition("def call(")[2])
    return {"functions": len(functions), "passes": len(loops), "fallbacks": fallbacks}


def host_reads(setting: Setting) -> Iterator[Row]:
    """Count waits and graph breaks per batch, of the accumulation and of the training step.

    On tensors without values (``meta``), where an operator that needs one raises.
    """
    dynamics = Dynamics(setting.samples, "meta")
    logits = torch.empty((setting.batch, setting.classes), device="meta")
    labels = torch.empty(setting.batch, dtype=torch.int64, device="meta")
    meta = torch.device("meta")
    few = training(resnet18(setting, meta), meta, batch=2, size=setting.size)
    works: dict[str, Callable[[], object]] = {
        "accumulation": partial(dynamics.update, logits, labels, labels),
        "training step": few.step,
    }
    for name, work in works.items():
        work()
        with HostReads() as reads:
            work()
        yield setting.facts() | {"name": f"waits of the {name}", "host_reads": reads.found}
    yield setting.facts() | {"name": "compiled network", **_network_graphs(setting)}


def _network_graphs(setting: Setting) -> Row:
    from torch._dynamo.utils import counters

    device = resolve_device("cpu")
    few = training(resnet18(setting, device), device, batch=2, size=setting.size)
    torch.compiler.reset()
    counters.clear()
    few.trainer.network.compile(dynamic=False, backend="eager")
    for _ in range(2):
        few.step()
    stats, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    return {"graphs": stats, "graph_breaks": breaks}


def profiled(setting: Setting) -> Iterator[Row]:
    """Profile a training step with its accumulation on the CPU: self time by kind of work."""
    from torch.profiler import ProfilerActivity, profile

    for size in PROFILED_SIZES:
        work = _step_and_accumulation(setting, size)
        work()
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            started = perf_counter()
            for _ in range(PROFILED_STEPS):
                work()
            wall = perf_counter() - started
        facts = {"name": "profile", "steps": PROFILED_STEPS, "wall_seconds": wall}
        yield setting.facts() | {"size": size} | facts | _by_group(profiler.events() or ())


def _step_and_accumulation(setting: Setting, size: int) -> Callable[[], None]:
    from torch.profiler import record_function

    device = resolve_device("cpu")
    step = training(resnet18(setting, device), device, batch=setting.batch, size=size).step
    ((_, labels, ids),) = setting.batches(torch.float32, 1)
    dynamics = Dynamics(setting.samples, device)

    def both() -> None:
        logits = step()
        with record_function(ACCUMULATION):
            dynamics.update(logits, labels, ids)

    return both


def _by_group(events: Sequence[FunctionEvent]) -> Row:
    seconds: dict[str, float] = defaultdict(float)
    names: Counter[str] = Counter()
    for event in events:
        group = group_of(_names_around(event))
        seconds[group] += event.self_cpu_time_total / 1e6
        if group == OTHER:
            names[event.name] += event.self_cpu_time_total
    largest = [name for name, _ in names.most_common(5)]
    return {"seconds_by_group": dict(seconds), "largest_of_other": largest}


def _names_around(event: FunctionEvent | None) -> list[str]:
    names: list[str] = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def group_of(names: Sequence[str]) -> str:
    """Return the kind of work of an event, given its name and those of the events around it.

    A copy counts as one, whatever asked for it: casts to bfloat16 are not matrix arithmetic.
    """
    for group, patterns in GROUPS.items():
        if group == "casts and copies":
            if names[0] in _COPIES:
                return group
        elif any(pattern in name for name in names for pattern in patterns):
            return group
    return OTHER


def arithmetic(setting: Setting) -> Iterator[Row]:
    """Count operations and bytes of the training step per image, and per step, by size."""
    for size in SIZES:
        few, more = (step_cost(setting, size, batch) for batch in (2, 4))
        per_image = {name: (more[name] - few[name]) // 2 for name in ("flops", "n_bytes")}
        yield setting.facts() | {
            "name": "arithmetic",
            "size": size,
            "flops_per_image": per_image["flops"],
            "bytes_per_image": per_image["n_bytes"],
            "bytes_per_step": few["n_bytes"] - 2 * per_image["n_bytes"],
            "pixel_bytes": 3 * size * size,
            **{name: few[name] for name in ("parameter_bytes", "optimiser_bytes")},
        }
    for name in ("full", "fast"):
        recipe = RECIPES[name]
        sides = [
            side_at(epoch, recipe.epochs, recipe.start_size, recipe.size)
            for epoch in range(recipe.epochs)
        ]
        vendor = {"gpu": GPU, "peak_flops": PEAK_FLOPS, "peak_bytes": PEAK_BYTES}
        passes = {"recipe": recipe.stamp, "batch": recipe.batch, "sizes": sides}
        yield setting.facts() | {"name": "projection", **vendor, **passes, "shares": PEAK_SHARES}


def step_cost(setting: Setting, size: int, batch: int) -> dict[str, int]:
    """Count floating-point operations (two per multiply-add) and bytes of a training step.

    Of matrix arithmetic, as ``FlopCounterMode`` counts. In the precisions of a GPU: autocast to
    bfloat16 with float32 weights.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode():
        network = build_network("resnet18", setting.classes, norm="batch", seed=0)
        few = training(network, torch.device("cpu"), batch=batch, size=size)
        few.step()  # makes the optimiser's buffers
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            few.step()
        parameters = [*few.trainer.network.parameters()]
        momentum = momentum_of(few.trainer.optimiser).values()
    return {
        "flops": int(flops.get_total_flops()),
        "n_bytes": traffic.n_bytes,
        "parameter_bytes": sum(tensor.nbytes for tensor in parameters),
        "optimiser_bytes": sum(tensor.nbytes for tensor in momentum),
    }
