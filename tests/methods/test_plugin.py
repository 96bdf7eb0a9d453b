import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from tiny_diffusion import images, new_pipeline, sampler

import dqlab
from dqlab import seeds
from dqlab.errors import UnknownNameError
from dqlab.methods import registry
from dqlab.methods.corrected import prediction_correction
from dqlab.trajectory import record, replay

FILE = Path(__file__).parent / "plugin_example" / "mean_only.py"


@pytest.fixture
def installed(monkeypatch):
    """What `pip install` of a package with an entry point in "dqlab.methods" leads to."""
    point = importlib.metadata.EntryPoint("mean-only", "mean_only:MeanOnly", "dqlab.methods")
    group = {"dqlab.methods": importlib.metadata.EntryPoints([point])}
    monkeypatch.setattr(registry, "entry_points", lambda *, group, found=group: found[group])
    monkeypatch.syspath_prepend(str(FILE.parent))
    registry.all_methods.cache_clear()
    yield
    registry.all_methods.cache_clear()
    sys.modules.pop("mean_only", None)


def test_a_plugin_is_short() -> None:
    assert len(FILE.read_text().splitlines()) <= 40


def test_without_its_entry_point_nobody_knows_it() -> None:
    registry.all_methods.cache_clear()
    with pytest.raises(UnknownNameError, match="No method 'mean-only'"):
        dqlab.recipe("mean-only")


def test_a_plugin_is_a_method_like_any_other(installed, tmp_path) -> None:
    rows = {row["slug"]: row for row in registry.describe()}
    assert rows["mean-only"]["moments"] == ["correct"]
    pipe = new_pipeline()
    made = dqlab.recipe("rtn") | dqlab.recipe("mean_only")
    q = dqlab.quantize(pipe, made, 3, 8, sampler=sampler())
    states, _ = record(pipe, seeds.CALIBRATION[:8], sampler())
    left = prediction_correction(q)(replay(q.unet, states), states) - states.output
    assert all(abs(left[states.step == k].mean()) < 1e-5 for k in range(3))
    q.save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert torch.equal(images(again), images(q))
    assert dqlab.describe(again)["recipe"]["methods"] == ["rtn", "mean-only"]


def code(source: str) -> str:
    """The program without docstrings and comments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body.pop(0)
    return ast.unparse(tree)


def test_the_readme_shows_this_very_plugin() -> None:
    readme = (FILE.parents[3] / "README.md").read_text()
    section = readme.partition("### Add paper 28")[2]
    shown = section.partition("```python\n")[2].partition("```")[0]
    assert code(shown) == code(FILE.read_text())
