"""Driver of a study: start every command whose inputs are there, until nothing is left to do.

It keeps no state but the outputs themselves, so it may be lost at any moment. ``log.jsonl`` tells
people how each command ended; only `retry` reads it, to know where to look.
"""

import json
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from coreset.engine.artifacts.ledger import Stopwatch
from coreset.engine.runtime.progress import say
from coreset.engine.runtime.signals import defer_signals
from coreset.engine.runtime.text import readable_seconds
from coreset.engine.studies.executors import Ended, Executor, Job
from coreset.engine.studies.outputs import is_published
from coreset.engine.studies.plan import SHARED, Node
from coreset.shards.errors import InterruptedRunError, LockedError, MachineError
from coreset.shards.format.files import make_directory

LOG_NAME = "log.jsonl"
RETRIES = 2
_AGAIN = {InterruptedRunError.exit_code, MachineError.exit_code}
"""Exit codes that may not come again; any signal may not, either."""
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
"""Seconds before a command whose output another process writes is tried again; doubled."""


@dataclass(slots=True)
class Driver:
    """One run over a plan; ``done`` are the names of the nodes that are finished."""

    nodes: Sequence[Node]
    done: set[str]
    run: Path
    executor: Executor
    program: Sequence[str]
    cores: int = 1
    gpu: float = 0.0
    timeout: float | None = None
    limit: int | None = None
    """Commands to start at most."""
    failed: dict[str, Ended] = field(default_factory=dict[str, Ended])
    blocked: dict[str, str] = field(default_factory=dict[str, str])
    """Commands that cannot be run, by the failed one on which they hang."""
    _by_name: dict[str, Node] = field(default_factory=dict[str, Node])
    _children: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _unmet: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    _ready: deque[str] = field(default_factory=deque[str])
    _waiting: dict[str, Stopwatch] = field(default_factory=dict[str, Stopwatch])
    _running: set[str] = field(default_factory=set[str])
    _tries: Counter[str] = field(default_factory=Counter[str])
    _locked: Counter[str] = field(default_factory=Counter[str])
    _started: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        for node in self.nodes:
            self._by_name[node.name] = node
            if node.name not in self.done:
                self._unmet[node.name] = unmet = set(node.needs) - self.done
                for name in unmet:
                    self._children[name].append(node.name)
                if not unmet:
                    self._ready.append(node.name)

    def drive(self) -> None:
        """Run what is to be done; a signal ends what runs, and is raised."""
        make_directory(self.run)
        with defer_signals() as stop:
            try:
                while not stop.by and (self._running or self._startable()):
                    self._start()
                    for ended in self.executor.wait(1.0):
                        self._settle(ended)
            finally:
                for ended in self.executor.stop():
                    self._log(ended)

    def _startable(self) -> bool:
        return bool(self._ready or self._waiting) and not self._is_spent()

    def _is_spent(self) -> bool:
        return self.limit is not None and len(self._started) >= self.limit

    def _start(self) -> None:
        for name in [n for n, watch in self._waiting.items() if watch.seconds > self._wait_of(n)]:
            del self._waiting[name]
            self._ready.append(name)
        while self._ready and len(self._running) < self.executor.slots and not self._is_spent():
            node = self._by_name[self._ready.popleft()]
            if node.kind in SHARED and is_published(node):  # by another process
                self._finish(node.name)
                continue
            if node.kind == "reports" and self.done.isdisjoint(node.needs):  # no row to show
                self.blocked[node.name] = next(iter(self.failed))
                continue
            self._running.add(node.name)
            self._started.add(node.name)
            self.executor.submit(self._job(node))

    def _wait_of(self, name: str) -> float:
        return min(_FIRST_WAIT * 2 ** (self._locked[name] - 1), _LONGEST_WAIT)

    def _job(self, node: Node) -> Job:
        return Job(
            name=node.name,
            command=(*self.program, *node.command),
            log=self.run / "logs" / f"{node.name}.log",
            cores=self.cores,
            gpu=self.gpu,
            timeout=self.timeout,
        )

    def _settle(self, ended: Ended) -> None:
        """Go on after the end of a command: by what hangs on it, by trying again, or without it."""
        self._log(ended)
        self._running.discard(ended.name)
        name, code, node = ended.name, ended.exit_code, self._by_name[ended.name]
        say(f"{name}: exit code {code} after {readable_seconds(ended.seconds)}")
        if code == 0 and (node.kind not in SHARED or is_published(node)):
            self._finish(name)
        elif code == LockedError.exit_code:
            self._locked[name] += 1
            self._waiting[name] = Stopwatch()
        elif (code < 0 or code in _AGAIN) and self._tries[name] < RETRIES:
            self._tries[name] += 1
            self._ready.append(name)
        else:
            self.failed[name] = ended
            self._block(name, name)

    def _finish(self, name: str) -> None:
        self.done.add(name)
        for child in self._children[name]:
            self._meet(child, name)

    def _meet(self, child: str, name: str) -> None:
        if name in (unmet := self._unmet[child]):
            unmet.remove(name)
            if not unmet and child not in self.blocked:
                self._ready.append(child)

    def _block(self, name: str, cause: str) -> None:
        for child in self._children[name]:
            if self._by_name[child].kind == "reports":  # of the rows that there are
                self._meet(child, name)
            elif child not in self.blocked:
                self.blocked[child] = cause
                self._block(child, cause)

    def _log(self, ended: Ended) -> None:
        with (self.run / LOG_NAME).open("a") as log:
            log.write(json.dumps(asdict(ended)) + "\n")


def last_failures(run: Path) -> dict[str, Ended]:
    """Return the commands whose last end that the log tells was a failure, by name."""
    path, last = run / LOG_NAME, dict[str, Ended]()
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError, TypeError):  # a line that a kill cut
            ended = Ended(**json.loads(line))
            last[ended.name] = ended
    passing = {0, InterruptedRunError.exit_code, LockedError.exit_code}
    return {name: ended for name, ended in last.items() if ended.exit_code not in passing}
