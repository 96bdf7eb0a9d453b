"""Render a model card from the records beside a model; no number is typed here."""

import math
import sys
from typing import Any

from dqlab.models.recipes import Recipe, recipe_for

_FRONT = """---
license: mit
library_name: {library}
tags: [dqlab, quantization, teaching]
datasets: [fashion_mnist]
---
"""

OF_DQLAB = ("attribute-classifier", "sr-unet", "binary-latent")
"""Models that take dqlab to open; the others are plain diffusers folders."""


def render(name: str, training: dict[str, Any], quality: dict[str, Any]) -> str:
    """The card of one model as Markdown."""
    recipe = recipe_for(name)
    library = "dqlab" if name in OF_DQLAB else "diffusers"
    parts = [
        _FRONT.format(library=library),
        f"# {name}\n\n{_purpose(recipe)}\n",
        _section("Measured quality", _flatten(quality)),
        _section("How it was trained", _flatten(_without_curve(training))),
        _curve(training["curve"]),
        f"Train it again: `dqlab train {name} {_budget(training, recipe)}`{_of(training)}; "
        f"measure it again: `dqlab card {name}`.\n",
    ]
    return "\n".join(parts)


def _purpose(recipe: Recipe) -> str:
    """The recipe module's docstring."""
    return (sys.modules[type(recipe).__module__].__doc__ or "").strip()


def _budget(training: dict[str, Any], recipe: Recipe) -> str:
    """The options of a training like this one: as long, on batches as large."""
    asked = training.get("budget")
    if asked is None:  # a record from before budgets were kept
        asked = {"minutes": math.ceil(sum(s["seconds"] for s in training["stages"]) / 60)}
    batch = training.get("settings", {}).get("batch")
    if batch not in (None, recipe.settings.get("batch")):
        asked = asked | {"batch": batch}
    return " ".join(f"--{name} {value:g}" for name, value in asked.items())


def _of(training: dict[str, Any]) -> str:
    """Whose minutes: those of a GPU are worth many of a CPU's."""
    machine, steps = training.get("machine", ""), "steps" in training.get("budget", {})
    # A CPU is recorded with its threads, a GPU by its name alone.
    on_cpu = not machine or machine.endswith("threads")
    return "" if steps or on_cpu else f" (minutes of one {machine})"


def _without_curve(training: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in training.items() if k not in ("curve", "sha256", "recipe")}


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested records as (label, value) rows; lists of records become one row each."""
    if isinstance(value, dict):
        return [row for k, v in value.items() for row in _flatten(v, f"{prefix} {k}".strip())]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_one_row(prefix, i, v) for i, v in enumerate(value)]
    return [(prefix.replace("_", " "), str(value))]


def _one_row(prefix: str, index: int, record: dict[str, Any]) -> tuple[str, str]:
    text = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in record.items())
    return f"{prefix.replace('_', ' ')} {index + 1}", text


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    lines = "\n".join(f"| {label} | {value} |" for label, value in rows)
    return f"## {title}\n\n| | |\n|---|---|\n{lines}\n"


def _curve(curve: list[dict[str, float]]) -> str:
    """Ten points of the training loss."""
    points = curve[:: max(1, len(curve) // 10)]
    lines = "\n".join(f"| {p['step']} | {p['loss']} |" for p in points)
    return f"## Training loss\n\n| step | loss |\n|---|---|\n{lines}\n"
