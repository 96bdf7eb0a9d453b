"""The shape of the code: who may import whom, how long things may be, what may be read."""

import ast
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each part may import only from those before it.
ORDER = [
    "errors", "seeds", "paths", "formats", "ranges", "reference", "layers", "engine", "models",
    "trajectory", "metrics", "fit", "methods", "phenomena", "show", "deploy", "sweep",
    "compare", "api", "doctor", "cli",
]  # fmt: skip
# Importable by deploy and what follows it, and importing nothing of the rest.
KERNELS = "kernels"
TOP_LEVEL = {
    "notebooks", "dqlab", "kernels", "data", "tests", "environment.yml", "README.md",
    "pyproject.toml", "Makefile", "LICENSE", "constraints.txt",
}  # fmt: skip
HEAVY = {"diffusers", "transformers", "matplotlib", "plotly", "pandas", "torchmetrics", "IPython"}

PACKAGE = sorted((ROOT / "dqlab").rglob("*.py"))
KERNEL_FILES = sorted((ROOT / "kernels").rglob("*.py"))
FILES = PACKAGE + KERNEL_FILES


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str | None:
    """Part a file belongs to; None for dqlab/__init__.py, which only forwards names."""
    first, *rest = path.relative_to(ROOT).parts
    return (
        KERNELS if first == "kernels" else None if rest == ["__init__.py"] else Path(rest[0]).stem
    )


def parts_imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Parts of dqlab that a file imports, wherever in the file; `package` is the one it is in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        # What `dqlab` itself offers is resolved by dqlab.api.
        for name in (n for n in names if n[0] == "dqlab"):
            part = name[1] if len(name) > 1 else "api"
            if not part.startswith("__"):
                yield part if part in {*ORDER, KERNELS} else "api"


def allowed(part: str, imported: str) -> bool:
    if part == imported:
        return True
    if KERNELS in (part, imported):
        return part != KERNELS and ORDER.index(part) >= ORDER.index("deploy")
    return ORDER.index(imported) < ORDER.index(part)


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_imports_flow_one_way(path: Path) -> None:
    part = part_of(path)
    if part is None:
        return
    assert part in {*ORDER, KERNELS}, f"give dqlab/{part} a place in ORDER"
    package = ("dqlab", *path.relative_to(ROOT / "dqlab").parts[:-1]) if path in PACKAGE else ()
    found = set(parts_imported(ast.parse(path.read_text()), package))
    assert not {other for other in found if not allowed(part, other)}


@pytest.mark.parametrize(
    ("part", "line", "fine"),
    [
        ("ranges", "from dqlab.formats import Affine", True),
        ("formats", "from dqlab.ranges import min_max", False),
        ("formats", "def f():\n    import dqlab.methods.rtn", False),
        ("formats", "from ..methods import rtn", False),
        ("formats", "from . import affine", True),
        ("formats", "from dqlab import quantize", False),
        ("formats", "from dqlab import __version__", True),
        ("layers", "from dqlab.kernels import quantize_affine", False),
        ("deploy", "from dqlab.kernels import quantize_affine", True),
        ("kernels", "from dqlab.errors import DqlabError", False),
    ],
)
def test_the_import_check_itself(part: str, line: str, fine: bool) -> None:
    found = set(parts_imported(ast.parse(line), ("dqlab", part)))
    assert all(allowed(part, other) for other in found) is fine


def test_kernels_import_nothing_else_of_dqlab() -> None:
    for path in KERNEL_FILES:
        assert set(parts_imported(ast.parse(path.read_text()), ())) <= {KERNELS}, path


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after one statement."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    return set(subprocess.check_output(command, text=True, cwd=ROOT / "tests").split())


def test_import_dqlab_is_light() -> None:
    assert not loaded_by("import dqlab") & HEAVY


def test_import_kernels_leaves_triton_alone() -> None:
    loaded = loaded_by("import dqlab.kernels")
    assert "torch" in loaded
    assert "triton" not in loaded


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` on, without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    written = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
    return function.end_lineno - function.lineno + 1 - written


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))


def test_functions_are_short() -> None:
    lengths = [code_lines(function) for path in FILES for function in functions(path)]
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=10)[-1] <= 35


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_files_are_short(path: Path) -> None:
    limit = 250 if path.is_relative_to(ROOT / "dqlab" / "methods") else 400
    assert len(path.read_text().splitlines()) <= limit


READERS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "torch.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle"}
KEYWORDS = {"allow_pickle": True, "trust_remote_code": True, "use_safetensors": False}


def unsafe(tree: ast.Module) -> list[str]:
    """What in a file could run code that came with data."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in READERS]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if node.module in READERS else []
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [called] if called in CALLS else []
            found += [
                keyword.arg
                for keyword in node.keywords
                if keyword.arg in KEYWORDS
                and getattr(keyword.value, "value", None) is KEYWORDS[keyword.arg]
            ]
    return found


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_nothing_read_can_run_code(path: Path) -> None:
    assert not unsafe(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from dill import load", ["dill"]),
        ("torch.load(path, weights_only=True)", ["torch.load"]),
        ("eval(text)", ["eval"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle"]),
        ("Pipe.from_pretrained(x, use_safetensors=False)", ["use_safetensors"]),
        ("model.eval()", []),
        ("np.load(path, allow_pickle=False)", []),
    ],
)
def test_the_safety_check_itself(line: str, found: list[str]) -> None:
    assert unsafe(ast.parse(line)) == found


def test_package_list_is_complete() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).parts for path in FILES}
    names = {".".join(("dqlab", *p) if p[0] == "kernels" else p) for p in folders}
    assert sorted(listed) == sorted(names)
    assert all((path.parent / "__init__.py").is_file() for path in FILES)


def test_top_level_holds_only_what_it_should() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nothing says which files belong to the project")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
    names = {Path(name).parts[0] for name in listed}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL
