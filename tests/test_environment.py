"""pyproject.toml, environment.yml, constraints.txt and the imports in the code must agree."""

import ast
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent

# What a package is called where, when not by the name on PyPI.
IMPORT_NAMES = {"pyyaml": "yaml", "ipython": "IPython", "pillow": "PIL"}
CONDA_NAMES = {
    "torch": "pytorch-cpu",
    "build": "python-build",
    "jupyterlab-pygments": "jupyterlab_pygments",
}

# Needed without being imported by name.
NEVER_IMPORTED = {
    "accelerate": "diffusers loads weights through it",
    "transformers": "text encoders and tokenizers inside diffusers pipelines",
    "jupyterlab": "run as `jupyter lab`",
    "ipykernel": "the notebooks' kernel",
    "ipython": "the shell inside that kernel",
    "plotly": "its JupyterLab extension draws the plotly JSON that dqlab.show writes",
    "pytest-xdist": "pytest -n",
    "ruff": "run as a command",
    "build": "run as `python -m build`",
    "nbconvert": "run as `jupyter nbconvert`",
}
# Left to pip in environment.yml.
NOT_FROM_CONDA = {
    "triton": "PyPI's wheel is the one Triton is tested with; pip takes it on Linux only",
    "playwright": "drives an installed browser; needed by the browser test alone",
}
ONLY_CONDA = {"python", "pip"}


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*groups: str) -> dict[str, Requirement]:
    extras = project()["optional-dependencies"]
    texts = [text for group in groups for text in extras[group]] + project()["dependencies"]
    return {(r := Requirement(text)).name: r for text in texts}


def everything() -> dict[str, Requirement]:
    return requirements("lab", "test")


def conda() -> dict[str, SpecifierSet]:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pairs = [re.fullmatch(r"([\w.-]+?)((?:[<>=!].*)?)", e) for e in entries if isinstance(e, str)]
    fixed = {m[1]: re.sub(r"^=(?==*\d)", "==", m[2]).replace("===", "==") for m in pairs}
    return {name: SpecifierSet(bounds) for name, bounds in fixed.items()}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(paths: list[Path]) -> set[str]:
    """Top-level third-party names imported anywhere in the files, also inside functions."""
    names = {name for path in paths for name in _imports(ast.parse(path.read_text()))}
    own = {path.stem for path in sources("notebooks", "tests", ".ci")} | {"dqlab"}
    return names - own - set(sys.stdlib_module_names)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]


def import_name(package: str) -> str:
    return IMPORT_NAMES.get(package, package.replace("-", "_"))


def test_everything_imported_is_listed() -> None:
    known = {import_name(name) for name in everything()}
    assert imported(sources("dqlab", "kernels", "notebooks/src", "tests")) <= known


def test_the_package_imports_only_what_it_installs() -> None:
    package = [p for p in sources("dqlab", "kernels") if "show" not in p.parts]
    assert imported(package) <= {import_name(name) for name in requirements()}
    shown = {import_name(name) for name in requirements("lab")}
    assert imported(sources("dqlab/show")) <= shown


def test_everything_listed_is_used() -> None:
    used = imported(sources("dqlab", "kernels", "notebooks", "tests"))
    unused = {name for name in everything() if import_name(name) not in used}
    assert unused <= set(NEVER_IMPORTED)
    assert set(NEVER_IMPORTED) <= set(everything())


def test_conda_and_pyproject_name_the_same_ranges() -> None:
    listed = conda()
    expected = {
        CONDA_NAMES.get(name, name): requirement.specifier
        for name, requirement in everything().items()
        if name not in NOT_FROM_CONDA
    }
    assert {k: v for k, v in listed.items() if k not in ONLY_CONDA} == expected
    assert set(NOT_FROM_CONDA) <= set(everything())


def test_conda_file_suits_binder() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert content["channels"] == ["conda-forge", "nodefaults"]
    assert content["dependencies"][-1] == {"pip": ["-e .[test]"]}
    assert not (ROOT / "binder").exists()
    assert not (ROOT / ".binder").exists()
    (python,) = conda()["python"]
    assert python.version in SpecifierSet(project()["requires-python"])


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines), "pins and nothing else"
    return dict(line.split("==") for line in lines)


def test_lock_pins_every_requirement_within_its_range() -> None:
    locked = {name.lower().replace("_", "-"): version for name, version in pins().items()}
    outside = {
        name: locked.get(name)
        for name, requirement in everything().items()
        if locked.get(name) not in requirement.specifier
    }
    assert not outside
    assert "+" not in locked["torch"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment() -> ModuleType:
    return load("environment")


@pytest.mark.parametrize(
    ("choice", "platform", "nvidia", "cpu"),
    [
        ("", "linux", False, True),
        ("", "linux", True, False),
        ("cpu", "linux", True, True),
        ("cuda", "linux", False, False),
        ("", "darwin", False, False),
        ("cpu", "win32", False, False),
    ],
)
def test_which_torch(environment, choice, platform, nvidia, cpu) -> None:
    assert environment.wants_cpu_build(choice, platform, nvidia) is cpu


def test_unknown_torch_choice_is_refused(environment) -> None:
    with pytest.raises(SystemExit, match="TORCH=rocm"):
        environment.wants_cpu_build("rocm", "linux", False)


@pytest.mark.parametrize(
    ("reachable", "index"),
    [(True, ["--index-url", "https://download.pytorch.org/whl/cpu"]), (False, [])],
)
def test_torch_is_pinned_with_and_without_the_cpu_index(
    environment, monkeypatch, reachable, index
):
    calls = []
    monkeypatch.setenv("TORCH", "cpu")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(environment, "is_reachable", lambda _: reachable)
    monkeypatch.setattr(environment, "pip_install", lambda *words, python: calls.append(words))
    environment.install_torch("torch==2.13.0")
    assert calls == [("--no-deps", *index, "torch==2.13.0")]


def test_unreachable_index_is_noticed(environment) -> None:
    assert not environment.is_reachable("http://127.0.0.1:9")


@pytest.mark.parametrize("text", ["numpy==2.0\n", "torch>=2\n", "torch==2.1\ntorch==2.2\n"])
def test_lock_without_one_torch_is_refused(environment, text) -> None:
    with pytest.raises(SystemExit, match="exactly once"):
        environment.torch_pin(text)


def test_only_tritons_own_pin_is_dropped(environment) -> None:
    text = "torch==2.13.0\ntriton==3.9.0\ntriton-extra==1\n"
    assert environment.without_triton(text) == "torch==2.13.0\ntriton-extra==1\n"


def test_frozen_list_becomes_constraints(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    freeze = "torch==2.13.0+cpu\nNumpy==2.4\n-e /somewhere\nsetuptools==80\nattrs @ file:///x\n"
    made = load("lock").as_constraints(freeze)
    assert [line for line in made.splitlines() if line[0] != "#"] == [
        "Numpy==2.4",
        "torch==2.13.0",
    ]


def test_jupyterlab_asks_nothing_of_the_internet() -> None:
    command = [sys.executable, "-m", "jupyterlab", "--show-config-json"]
    settings = os.environ | {"JUPYTER_CONFIG_PATH": str(ROOT / ".jupyter")}
    shown = subprocess.run(command, env=settings, check=True, capture_output=True, text=True)
    lab = json.loads(shown.stdout)["LabApp"]
    assert lab["news_url"] is None
    assert lab["check_for_updates_class"].endswith("NeverCheckForUpdate")
    assert lab["extension_manager"] == "readonly"
    page = json.loads((ROOT / ".jupyter/labconfig/page_config.json").read_text())
    assert page["disabledExtensions"] == {"@jupyterlab/apputils-extension:announcements": True}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("says", "sentence"), [("Python 3.10.13", "is Python 3.10.13"), (None, "found none")]
)
def test_make_explains_a_python_it_cannot_use(tmp_path: Path, says, sentence) -> None:
    python = tmp_path / "python3.10"
    python.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{says}" && exit 0\nexit 1\n')
    python.chmod(0o755)
    command = ["make", f"VENV={tmp_path}", f"PYTHON={python if says else ''}"]
    run = subprocess.run(
        [*command, f"{tmp_path}/.ready"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert sentence in run.stderr
    assert "PYTHON=/path/to/python3.12" in run.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.invalid"])
def test_tests_cannot_reach_the_network(host: str) -> None:
    with pytest.raises(OSError, match="may not use the network"):
        socket.create_connection((host, 80), timeout=1)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.socket(family) as direct,
        pytest.raises(OSError, match="may not use the network"),
    ):
        direct.connect((host, 80))


def test_tests_can_reach_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
