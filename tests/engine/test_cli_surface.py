"""Every flag of every verb stands in ``cli_surface.txt``: a new one is a visible difference.

After an intended change run this file with Python (``.venv/bin/python tests/engine/...``) to write
the list again.
"""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

from coreset.engine.cli import VERBS, main

SURFACE = Path(__file__).with_name("cli_surface.txt")
REMEDY = f"if that is intended, run `.venv/bin/python {Path(*Path(__file__).parts[-3:])}`"


def existing_verbs():
    return [verb for verb, (_, module, *_) in VERBS.items() if has_module(module)]


def has_module(name):
    return importlib.util.find_spec(f"coreset.engine.stages.{name}") is not None


def actions(verb):
    """What may stand behind a noun (``show|suspects SCORES``): the words of a tyro subcommand."""
    first = VERBS[verb][0].split(" ")[0]
    return [[one] for one in first.split("|")] if "|" in first and first.islower() else [[]]


def surface(verb):
    """``VERB --flag`` of the flags that begin a row of the verb's help."""
    return sorted({line for action in actions(verb) for line in _flags([verb, *action])})


def _flags(words):
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setenv("COLUMNS", "80")  # wide enough for one column, too narrow for two
        main([*words, "--help"])
    flags = re.findall(r"^[│ ] (--[a-z0-9-]+)", text.getvalue(), re.MULTILINE)
    return [f"{' '.join(words)} {flag}" for flag in flags]


def whole_surface():
    return sorted(line for verb in existing_verbs() for line in surface(verb))


def test_flags_are_those_of_the_list():
    listed = SURFACE.read_text().split("\n")[:-1]
    here = whole_surface()
    assert here == listed, f"the flags differ from {SURFACE.name}; {REMEDY}"


def test_the_list_of_flags_sees_a_flag():
    assert "doctor --path" in surface("doctor")


if __name__ == "__main__":
    SURFACE.write_text("".join(f"{line}\n" for line in whole_surface()))
