"""The wheel: one top-level package, which foreign packages of our rooms' names do not disturb."""

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
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder in which others keep a package and a module of the names of our rooms."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("OWNER = 'others'")
    (tmp_path / "engine.py").write_text("OWNER = 'others'")
    return tmp_path


def run(*arguments: str, path: list[Path], cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_holds_one_package_and_its_metadata(installed: Path):
    names = sorted(path.name for path in installed.iterdir())
    assert names[0] == "coreset"
    assert [name.rpartition(".")[2] for name in names[1:]] == ["dist-info"]
    for name in PARTS[1:]:
        ours = {path.relative_to(CHECKOUT) for path in (CHECKOUT / name).rglob("*.py")}
        packed = (installed / "coreset" / name).rglob("*.py")
        assert {path.relative_to(installed / "coreset") for path in packed} == ours


def test_commands_work_in_a_folder_with_modules_of_these_names(installed: Path, foreign: Path):
    assert "usage: coreset VERB" in run("-m", "coreset", "--help", path=[installed], cwd=foreign)
    assert "usage: coreset pack" in run(
        "-m", "coreset", "pack", "--help", path=[installed], cwd=foreign
    )


@pytest.mark.parametrize("first", ["ours", "others"])
def test_a_foreign_package_of_this_name_and_ours_both_work(
    installed: Path, foreign: Path, tmp_path_factory: pytest.TempPathFactory, first: str
):
    path = [installed, foreign] if first == "ours" else [foreign, installed]
    code = "import coreset.kernels.seeds as ours, kernels; print(kernels.OWNER, ours.__file__)"
    owner, file = run("-c", code, path=path, cwd=tmp_path_factory.mktemp("empty")).split()
    assert owner == "others"
    assert Path(file) == installed / "coreset" / "kernels" / "seeds.py"
