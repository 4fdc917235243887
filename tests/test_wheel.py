"""The wheel: one top-level package, which packages of others under our names do not disturb."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PARTS = ("coreset", "bench", "engine", "kernels", "shards")
FILES = ("pyproject.toml", "README.md", "LICENSE")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel of this checkout holds."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, copy / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(CHECKOUT / name, copy)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "installed")
    return out / "installed"


def test_the_wheel_holds_one_package_and_its_metadata(installed):
    names = sorted(path.name for path in installed.iterdir())
    assert [names[0], names[1].rpartition(".")[2], *names[2:]] == ["coreset", "dist-info"]
    for name in PARTS[1:]:
        ours = {path.relative_to(CHECKOUT) for path in _files(CHECKOUT / name)}
        packed = _files(installed / "coreset" / name)
        assert {path.relative_to(installed / "coreset") for path in packed} == ours


def _files(folder):
    """The code in a folder, and the tables that it reads."""
    kinds = "py", "csv", "toml", "txt", "css", "j2"
    return [path for kind in kinds for path in folder.rglob(f"*.{kind}")]


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_modules_of_others_under_our_names_and_ours_both_work(installed, tmp_path, first):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("OWNER = 'others'")
    (tmp_path / "engine.py").write_text("raise SystemExit('the engine of others')")
    path = [installed, tmp_path] if first == "ours" else [tmp_path, installed]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    code = "import coreset.kernels.seeds as ours, kernels; print(kernels.OWNER, ours.__file__)"
    for words, text in (
        (("-c", code), f"others {installed / 'coreset' / 'kernels' / 'seeds.py'}\n"),
        (("-m", "coreset", "pack", "--help"), "usage: coreset pack"),
    ):
        said = subprocess.check_output([sys.executable, *words], cwd=tmp_path, env=env, text=True)
        assert said.startswith(text)
