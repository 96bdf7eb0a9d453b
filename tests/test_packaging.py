"""The wheel holds the whole package, kernels and data files included, and works on its own."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that no build folder is left in the checkout."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("dqlab", "kernels"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = out.glob("*.whl")
    return built


def test_every_package_and_data_file_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, prefix in (("dqlab", "dqlab"), ("kernels", "dqlab/kernels")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".json"):
                assert f"{prefix}/{path.relative_to(ROOT / folder)}" in names
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "build/"))]


def test_the_wheel_works_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import dqlab, dqlab.kernels as k, importlib.resources as r; "
        "print(dqlab.__file__, k.__file__, "
        "r.files('dqlab.kernels.quantize').joinpath('README.md').is_file())"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.check_output(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True
    )
    package, kernels, readme = shown.split()
    assert package == str(tmp_path / "site/dqlab/__init__.py")
    assert kernels == str(tmp_path / "site/dqlab/kernels/__init__.py")
    assert readme == "True"


def test_the_versions_agree(wheel: Path) -> None:
    import dqlab

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert dqlab.__version__ == declared
    assert wheel.name.startswith(f"dqlab-{declared}-")
