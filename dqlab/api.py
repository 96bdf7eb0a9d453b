"""What `import dqlab` offers beyond the methods themselves."""

import os
from typing import Any

import torch

from dqlab.compare import Comparison, Ranking, compare
from dqlab.methods.registry import describe as methods_table
from dqlab.models import loading
from dqlab.models.training import train_model as train

__all__ = ["Comparison", "Ranking", "compare", "methods_table", "models_table", "setup", "train"]


def setup(threads: int = 1) -> None:
    """Prepare a notebook: fixed thread count and no progress bars, so that outputs repeat.

    Args:
        threads: torch threads; 1 gives the same numbers on every run of one machine.

    """
    torch.set_num_threads(threads)
    os.environ.setdefault("DQLAB_QUIET", "1")


def models_table() -> list[dict[str, Any]]:
    """One row per shipped model: name, pipeline, megabytes, measured quality."""
    rows = []
    for name in loading.shipped():
        folder = loading.models_dir() / name
        index = loading.read_json(folder / "model_index.json")
        card = folder / "quality.json"
        weights = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
        rows.append(
            {
                "name": name,
                "pipeline": index["_class_name"],
                "megabytes": round(weights / 1e6, 2),
                "quality": loading.read_json(card) if card.is_file() else {},
            }
        )
    return rows
