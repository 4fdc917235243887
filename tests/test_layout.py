"""The four packages, their names, and what the command line may import."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("bench", "engine", "kernels", "shards")
HEAVY = (
    "faiss",
    "numba",
    "nvidia",
    "pandas",
    "plotly",
    "pyarrow.dataset",
    "scipy",
    "sklearn",
    "timm",
    "torch",
    "torchvision",
    "webdataset",
    "zarr",
)
# Asks every verb that exists for its help, in one process, and names the heavy modules it now has.
HELP_OF_ALL_VERBS = """
import contextlib, importlib.util, io, json, sys
from coreset.engine.cli import VERBS, main

with contextlib.redirect_stdout(io.StringIO()):
    codes = [main(["--help"])]
    light = "tyro" not in sys.modules and "numpy" not in sys.modules
    for verb, (_, module, *_) in VERBS.items():
        if importlib.util.find_spec(f"coreset.engine.stages.{module}"):
            codes.append(main([verb, "--help"]))
print(json.dumps({"codes": codes, "light": light, "modules": sorted(sys.modules)}))
"""


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_resolves_inside_this_checkout(name):
    module = importlib.import_module(f"coreset.{name}")
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == CHECKOUT / name / "__init__.py"


def test_kernels_package_file_imports_nothing():
    tree = ast.parse((CHECKOUT / "kernels" / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_ctrl_c_is_handled_before_the_command_line_is_imported():
    first = "import sys; before = set(sys.modules); import coreset.engine.runtime.signals"
    code = f"{first}; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not set(result.stdout.split()) & {"typing", "json", "dataclasses", "coreset.engine.cli"}


def test_no_module_is_named_like_one_of_the_standard_library():
    stems = {file: file.stem for name in PACKAGES for file in (CHECKOUT / name).rglob("*.py")}
    shadowing = [str(file) for file, stem in stems.items() if stem in sys.stdlib_module_names]
    assert not shadowing


def test_commands_work_in_a_folder_with_modules_of_these_names(tmp_path):
    (tmp_path / "engine.py").write_text("raise SystemExit('the engine of others')")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise SystemExit('the kernels of others')")
    result = subprocess.run(
        [sys.executable, "-m", "coreset", "ls"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("no artifacts in .")


def test_help_of_every_verb_imports_nothing_heavy():
    command = [sys.executable, "-c", HELP_OF_ALL_VERBS]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    report = json.loads(result.stdout)
    assert set(report["codes"]) == {0}
    assert report["light"], "`coreset --help` imports tyro or numpy"
    assert not set(report["modules"]) & set(HEAVY)
