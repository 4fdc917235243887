"""Every flag of every verb stands in ``cli_surface.txt``: a new one is a visible difference.

After an intended change run this file with Python (``.venv/bin/python tests/engine/...``) to write
the list again.
"""

import contextlib
import io
import re
from pathlib import Path

import pytest

from coreset.engine.cli import VERBS, main

SURFACE = Path(__file__).with_name("cli_surface.txt")
REMEDY = f"if that is intended, run `.venv/bin/python {Path(*Path(__file__).parts[-3:])}`"


def actions(verb):
    """What may stand behind a noun (``show|suspects SCORES``): the words of a tyro subcommand."""
    first = VERBS[verb][0].split(" ")[0]
    return [[action] for action in first.split("|")] if "|" in first and first.islower() else [[]]


def surface(verb):
    """``VERB --flag`` of the flags that begin a row of the verb's help."""
    return sorted({line for action in actions(verb) for line in _flags([verb, *action])})


def _flags(words):
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setenv("COLUMNS", "80")  # wide enough for one column, too narrow for two
        main([*words, "--help"])
    flags = re.findall(r"^[│ ] (?:-[a-z] [^,]+, )?(--[a-z0-9-]+)", text.getvalue(), re.MULTILINE)
    return [f"{' '.join(words)} {flag}" for flag in flags]


def whole_surface():
    return sorted(line for verb in VERBS for line in surface(verb))


def test_flags_are_those_of_the_list():
    listed = SURFACE.read_text().split("\n")[:-1]
    assert whole_surface() == listed, f"the flags differ from {SURFACE.name}; {REMEDY}"
    assert "doctor --path" in listed


if __name__ == "__main__":
    SURFACE.write_text("".join(f"{line}\n" for line in whole_surface()))
