"""Command line: a table of verbs, of which only the chosen one is imported.

``coreset --help`` imports only this file, ``coreset VERB --help`` the verb's dataclass and tyro.
An expected error becomes one line on stderr and the exit code of its class.
"""

import contextlib
import errno
import importlib
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from coreset.engine.runtime.signals import INTERRUPTED, TEXT, end_on_interrupt, raise_signals
from coreset.shards.errors import CoresetError, MachineError, UsageError

if TYPE_CHECKING:
    from coreset.engine.stages.options import Stage

# verb: (arguments, module, class, description)
VERBS: dict[str, tuple[str, str, str, str]] = {
    "demo": ("", "demo", "Demo", "the whole path on embedded handwritten digits, two minutes"),
    "doctor": ("[DATA]", "doctor", "Doctor", "is this machine fit; with DATA: proof of its GPU"),
    "pack": ("SRC DATA", "pack", "Pack", "images in any common layout into shards"),
    "verify": ("DATA", "verify", "Verify", "check a packed data set against its manifest"),
    "quarantine": ("show|retry DATA", "quarantine", "Quarantine", "files that were not packed"),
    "synth": ("DATA", "synth", "Synth", "synthetic images with known truth, for tests at scale"),
    "decode": ("DATA PIXELS", "decode", "Decode", "decode once, for work of many epochs"),
    "score": ("DATA SCORES", "score", "Score", "train a proxy, score every image in the same pass"),
    "scores": ("show|suspects|compare SCORES", "scores", "Scores", "look at scores"),
    "embed": ("DATA FEATURES", "embed", "Embed", "features of a frozen backbone"),
    "concepts": ("import|generate|visual|show BANK", "concepts", "Concepts", "banks of concepts"),
    "select": ("SCORES|DATA SET", "selection", "Select", "choose a coreset, class by class"),
    "overlap": ("SET SET ...", "overlap", "Overlap", "how many images coresets share, by class"),
    "ingest": ("SRC SET", "ingest", "Ingest", "a set that others made: images or a list"),
    "distill": ("DATA SET", "distill", "Distill", "build a set of synthetic images"),
    "methods": ("[NAME]", "methods", "Methods", "the systems of the study, how to get their sets"),
    "teach": ("DATA TEACHER", "teach", "Teach", "train a teacher, whose outputs label images"),
    "train": ("SET VAL RESULTS", "train", "Train", "train students on a condensed set"),
    "protocols": ("show NAME", "protocols", "Protocols", "every value of a protocol, its source"),
    "measure": ("SET VAL RESULTS", "measure", "Measure", "representativeness, diversity of a set"),
    "export": ("SET|DATA OUT", "export", "Export", "images or lists for other programs"),
    "study": ("plan|run|status|retry RECIPE RUN", "study", "Study", "all commands of a recipe"),
    "report": ("RESULTS HTML", "report", "Report", "tables, plots and image grids in one file"),
    "claims": ("[RESULTS]", "claims", "Claims", "the study's claims, on its values or yours"),
    "cost": ("SET ...", "cost", "Cost", "what it cost to construct sets, along their inputs"),
    "ls": ("[DIR]", "ls", "List", "the artifacts in a folder"),
}  # fmt: skip
DONE = 0
MACHINE_FAULTS = {"ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EMFILE", "EACCES", "EIO", "ENOLCK"}


def overview() -> str:
    """Return the text of ``coreset --help``."""
    usage = {verb: f"{verb} {arguments}".strip() for verb, (arguments, *_) in VERBS.items()}
    width = max(map(len, usage.values()))
    rows = "\n".join(f"  {usage[verb]:<{width}}  {entry[3]}" for verb, entry in VERBS.items())
    return (
        "usage: coreset VERB INPUT... OUTPUT [--field value ...] [--json]\n\n"
        "Which few images of a data set are worth training on, and do they beat synthetic ones?\n\n"
        f"{rows}\n\n"
        "`coreset VERB --help` explains the fields of a verb; --json prints JSON for machines.\n"
        "Exit codes: 0 done, 1 a bug, 2 usage, 3 the data, 4 the machine, 5 locked,\n"
        "75 interrupted and resumable, 130 Ctrl-C (the same command continues)."
    )


def main(arguments: Sequence[str]) -> int:
    """Run one command, print its result or one line of error, and return the exit code."""
    words = [word for word in arguments if word != "--json"]
    as_json = len(words) != len(arguments)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(overview())
        return DONE
    if words[0] in {"-V", "--version"}:
        from importlib.metadata import version

        print(f"coreset {version('coreset')}")
        return DONE
    try:
        _run_verb(words[0], words[1:], as_json=as_json)
    except CoresetError as error:
        return _report(error, as_json=as_json)
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) not in MACHINE_FAULTS:
            raise
        where = f" at {error.filename}" if error.filename else ""
        remedy = "nothing was half-written: free it, run again"
        return _report(MachineError(f"{error.strerror}{where}; {remedy}"), as_json=as_json)
    except KeyboardInterrupt:
        print(TEXT, file=sys.stderr)
        return INTERRUPTED
    return DONE


def _run_verb(verb: str, words: Sequence[str], *, as_json: bool) -> None:
    stage = parse(verb, words)
    if stage is None:
        return
    from coreset.engine.artifacts.writer import COMMAND
    from coreset.engine.runtime.progress import Display, choose_display

    if _options(stage).get("device") != "cuda":
        # By default the threads of OpenMP, which torch's are on a CPU, wait busily for
        # milliseconds and take the cores from decoders. It reads this once, when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    COMMAND.set(shlex.join(["coreset", verb, *words]))
    choose_display(Display.JSON if as_json else Display.AUTO)
    with raise_signals():
        try:
            result = stage.run()
        except (MemoryError, RuntimeError) as error:
            if (machine_error := _out_of_memory(error, stage)) is None:
                raise
            raise machine_error from error
    if as_json:
        event = "done" if result.error is None else "failed"
        print(json.dumps({"event": event, "verb": verb, "lines": result.lines, **result.data}))
    elif result.lines:
        print("\n".join(result.lines))
    if result.error is not None:
        raise result.error


def parse(verb: str, words: Sequence[str]) -> "Stage | None":
    """Return the stage of a command, checked; None if the words ask for help."""
    if verb not in VERBS:
        raise UsageError(f"verb must be one of {', '.join(VERBS)}, got {verb}")
    _, module, name, _ = VERBS[verb]
    import tyro

    stage_class = getattr(importlib.import_module(f"coreset.engine.stages.{module}"), name)
    if "--list" in words and hasattr(stage_class, "listed"):
        return stage_class.listed()
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(stage_class, args=list(words), prog=f"coreset {verb}")
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UsageError(f"{_in_one_line(boxed.getvalue())}; see `coreset {verb} --help`") from None


def _options(stage: "Stage") -> dict[str, Any]:
    """Return the fields of a stage by name, those of nested options among them."""
    from dataclasses import asdict

    own = asdict(stage)
    nested = (value for value in own.values() if isinstance(value, dict))
    return own | {name: value for options in nested for name, value in options.items()}


def _in_one_line(boxed: str) -> str:
    """Return the text of tyro's box, whose hook for errors is private, without frame and advice."""
    words: list[str] = []
    for row in boxed.splitlines()[1:]:
        text = row.strip("│╭╮╰╯─ ")
        if "full helptext" in text or text.startswith("Argument helptext"):
            break
        is_rule = not text.strip("-")  # tyro draws with hyphens where stdout is not UTF-8
        words.append(";" if is_rule else text)
    return " ".join(" ".join(words).replace(" ; ", "; ").split()).strip("; ")


def _report(error: CoresetError, *, as_json: bool) -> int:
    text = " ".join(str(error).split())
    if as_json:
        print(json.dumps({"event": "error", "exit_code": error.exit_code, "message": text}))
    print(f"coreset: {text}", file=sys.stderr)
    return error.exit_code


def _out_of_memory(error: MemoryError | RuntimeError, stage: "Stage") -> MachineError | None:
    """Return the shortage with the options that reduce it; None for any other error."""
    shortage = ("out of memory", 0.5) if isinstance(error, MemoryError) else None
    if "torch" in sys.modules:  # not imported for this: it takes memory
        from coreset.engine.runtime.device import memory_shortage

        shortage = memory_shortage(error)
    if shortage is None:
        return None
    message, share = shortage
    options = _options(stage)
    remedies = [f"use a smaller --{name}" for name in ("size", "samples") if name in options]
    # A recipe fills in the fields that were not given.
    batch = getattr(getattr(stage, "used", None), "batch", options.get("batch"))
    if batch is not None and (fits := int(batch * share)) >= 1:
        remedies.insert(0, f"--batch {1 << fits.bit_length() - 1} should fit")
    return MachineError(f"{message}; {', or '.join(remedies or ['end other programs'])}")


class _WithoutPandas:
    """Import hook that hides pandas, which pyarrow imports for its first table: 0.9 s a command."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        # Found, for those who only look for it; without a loader its import fails.
        return ModuleSpec(name, loader=None) if name == "pandas" else None


def hide_pandas() -> None:
    """Let every later import of pandas fail."""
    sys.meta_path.insert(0, _WithoutPandas())


def run() -> None:
    """Entry point of the ``coreset`` script."""
    end_on_interrupt()
    hide_pandas()
    with contextlib.suppress(BrokenPipeError):
        code = main(sys.argv[1:])
        sys.stdout.flush()
        if code == INTERRUPTED:
            # After sys.exit `python -m` dies of SIGINT if the signal came while a string was
            # executed, as the definition of a dataclass does.
            os._exit(code)
        sys.exit(code)
    os._exit(DONE)  # the reader of our output went away; nothing is left to say


if __name__ == "__main__":
    run()
