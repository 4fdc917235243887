"""Tables of what the protocols set, for docs/protocols.md: from the protocols themselves."""

from functools import partial

from coreset.bench.docs import markdown
from coreset.engine.evaluation.protocols import PROTOCOLS, named_protocol
from coreset.engine.evaluation.protocols.base import told_settings
from coreset.engine.evaluation.protocols.variants import VARIANTS

PLACES = [
    (name, n, ipc) for name, n in (("Nette", 10), ("100", 100), ("1K", 1000)) for ipc in (10, 50)
]


def values(name: str) -> str:
    """Render every setting of a protocol for each data set and IPC of the study."""
    told = [told_settings(named_protocol(name, n, ipc)) for _, n, ipc in PLACES]
    rows: list[list[str]] = []
    for (setting, _, mark, source), *others in zip(told[0], *told[1:], strict=True):
        shown = [told[0][len(rows)][1], *(other[1] for other in others)]
        rows.append([f"`{setting}`", *_once(shown), mark, source])
    header = ["setting", *(f"{data}, {ipc}" for data, _, ipc in PLACES), "mark", "source"]
    return markdown(header, rows)


def _once(shown: list[str]) -> list[str]:
    """Write a value that is the same everywhere once."""
    return [shown[0], *("" for _ in shown[1:])] if len(set(shown)) == 1 else shown


def variants() -> str:
    """Render the variants by name."""
    rows = [[f"`{one.of or 'NAME'}@1+{name}`", one.why] for name, one in VARIANTS.items()]
    return markdown(["variant", "what it changes, and why"], rows)


BLOCKS = {f"values_{name}": partial(values, name) for name in PROTOCOLS} | {"variants": variants}
