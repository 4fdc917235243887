"""What threads of torch that spin or sleep while they wait cost, with and without a decoder.

OpenMP reads its policy once in a process, so every contender is a process of its own.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.nn.functional import cross_entropy

from coreset.bench.contenders import Contender, interleave, measurements
from coreset.bench.score_loops import balanced_copy
from coreset.bench.score_parts import Row, Setting, coreset
from coreset.engine.data.geometry import Geometry, stored_side
from coreset.engine.data.images import load_into_memory
from coreset.engine.data.stream import ImageStream
from coreset.engine.runtime.device import resolve_device
from coreset.engine.runtime.openmp import POLICY
from coreset.engine.scoring.proxy import Proxy, convolutional_proxy
from coreset.engine.scoring.recipes import RECIPES
from coreset.engine.training.trainer import Trainer, sgd
from coreset.shards.format.dataset import Dataset

SIZE = 96
STREAMED, RESIDENT = "decoded every epoch", "decoded before"
SPIN, SLEEP = "threads spin", "threads sleep"
WAYS = [f"{images}, {threads}" for images in (STREAMED, RESIDENT) for threads in (SPIN, SLEEP)]
CHOSEN = {
    f"{STREAMED}, {SLEEP}": f"{STREAMED}, {SPIN}",
    f"{RESIDENT}, {SPIN}": f"{RESIDENT}, {SLEEP}",
}
"""What `coreset score` does, and what it could do instead."""
_open: list["_Training"] = []


class _Training:
    """ResNet-18 by the full recipe on a packed data set, epoch by epoch."""

    def __init__(self, data: Path, *, streamed: bool) -> None:
        device, recipe, side = resolve_device("cpu"), RECIPES["full"], stored_side(SIZE)
        source = ImageStream(Dataset.open(data), Geometry(side, side))
        self._proxy: Proxy = convolutional_proxy(
            source if streamed else load_into_memory(source),
            len(source.dataset.classes),
            size=SIZE,
            crop_scale=recipe.crop_scale,
            batch=recipe.batch,
            seed=0,
            device=device,
        )
        optimiser = sgd(self._proxy.network, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self._trainer = Trainer(self._proxy.network, optimiser, lambda _: 0.01, device)
        self._epoch = 0

    def epoch(self) -> str:
        """Train on every image once; digest of the weights."""
        for inputs, labels, _ in self._proxy.examples(self._epoch):
            self._trainer.step(inputs, partial(cross_entropy, target=labels))
        self._epoch += 1
        weights = (one.detach().numpy().tobytes() for one in self._proxy.network.parameters())
        return hashlib.sha256(b"".join(weights)).hexdigest()


def waiting(setting: Setting) -> Iterator[Row]:
    """Images/s of an epoch in each of `WAYS`, whose weights must be the same bit by bit."""
    with TemporaryDirectory(dir=setting.work) as folder, ExitStack() as stack:
        work = Path(folder)
        images = balanced_copy(
            setting.data / "imagenette" / "train", work / "images", setting.loop_images
        )
        coreset("pack", work / "images", work / "data")
        epochs = {way: stack.enter_context(_process(work / "data", way)) for way in WAYS}
        digests: dict[str, list[str]] = {way: [] for way in WAYS}

        def run(way: str, _: Path) -> None:
            digests[way].append(epochs[way]())

        def complaint(way: str, _: Path) -> str:
            first = digests[WAYS[0]][len(digests[way]) - 1]
            return "" if digests[way][-1] == first else "other weights than those of " + WAYS[0]

        contenders = [
            Contender(
                name=way,
                run=partial(run, way),
                complaint=partial(complaint, way),
                role="ours" if way in CHOSEN else "limit",
            )
            for way in WAYS
        ]
        (work / "turns").mkdir()
        measured = interleave(contenders, repeats=setting.repeats, work=work / "turns")
        source_bytes = int(Dataset.open(work / "data").ints("bytes").sum())
        for row in measurements(measured, images=images, source_bytes=source_bytes):
            yield {"size": SIZE, "threads": setting.threads, **row}


@contextmanager
def _process(data: Path, way: str) -> Generator[Callable[[], str]]:
    """A process whose threads wait in a way; what trains an epoch there."""
    before = os.environ.pop(POLICY, None)
    if way.endswith(SLEEP):
        os.environ[POLICY] = "PASSIVE"
    try:
        context = get_context("spawn")
        with ProcessPoolExecutor(1, context, _begin, (data, way.startswith(STREAMED))) as pool:
            pool.submit(len, ()).result()  # starts the process, which takes the environment
            yield lambda: pool.submit(_epoch).result()
    finally:
        os.environ.pop(POLICY, None)
        if before is not None:
            os.environ[POLICY] = before


def _begin(data: Path, streamed: bool) -> None:  # noqa: FBT001 - arguments of an initialiser
    _open.append(_Training(data, streamed=streamed))


def _epoch() -> str:
    return _open[0].epoch()
