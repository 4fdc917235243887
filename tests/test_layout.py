"""The four packages, their names, and what the command line may import."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("bench", "engine", "kernels", "shards")
HEAVY = {
    "faiss", "numba", "nvidia", "open_clip", "pandas", "plotly", "pyarrow.dataset", "scipy",
    "sklearn", "timm", "torch", "torchvision", "transformers", "webdataset", "zarr",
}  # fmt: skip
# Asks every verb for its help, in one process, and names the heavy modules that it now has.
HELP_OF_ALL_VERBS = """
import contextlib, io, json, sys
from coreset.engine.cli import VERBS, main

with contextlib.redirect_stdout(io.StringIO()):
    codes = [main(["--help"])]
    light = "tyro" not in sys.modules and "numpy" not in sys.modules
    codes += [main([verb, "--help"]) for verb in VERBS]
print(json.dumps({"codes": codes, "light": light, "modules": sorted(sys.modules)}))
"""


def python(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, **options)


def test_packages_lie_in_this_checkout_and_hide_no_module_of_the_standard_library():
    for name in PACKAGES:
        module = importlib.import_module(f"coreset.{name}")
        assert Path(str(module.__file__)).resolve() == CHECKOUT / name / "__init__.py"
        stems = {file.stem for file in (CHECKOUT / name).rglob("*.py")}
        assert not stems & sys.stdlib_module_names


def test_ctrl_c_is_handled_before_the_command_line_is_imported():
    first = "import sys; before = set(sys.modules); import coreset.engine.runtime.signals"
    modules = python("-c", f"{first}; print(*sorted(set(sys.modules) - before))").stdout.split()
    assert not set(modules) & {"typing", "json", "dataclasses", "coreset.engine.cli"}


def test_commands_work_in_a_folder_with_modules_of_these_names(tmp_path):
    (tmp_path / "engine.py").write_text("raise SystemExit('the engine of others')")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise SystemExit('the kernels of others')")
    ended = python(
        "-m", "coreset", "ls", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}
    )
    assert ended.stderr == ""
    assert ended.stdout.startswith("no artifacts in .")


def test_help_of_every_verb_imports_nothing_heavy():
    report = json.loads(python("-c", HELP_OF_ALL_VERBS, cwd=CHECKOUT).stdout)
    assert set(report["codes"]) == {0}
    assert report["light"], "`coreset --help` imports tyro or numpy"
    assert not set(report["modules"]) & HEAVY
