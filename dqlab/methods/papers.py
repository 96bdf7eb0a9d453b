"""The survey's 27 papers and ten categories as data: who acts at which of the five moments.

Zeng et al., "Diffusion Model Quantization: A Review", arXiv 2505.05215, section 3 and its
framework figure; moments are dqlab's own reading of each paper.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from dqlab.errors import UnknownNameError
from dqlab.methods.method import MOMENTS


@cache
def _table() -> dict[str, list[dict[str, Any]]]:
    return json.loads((Path(__file__).parent / "papers.json").read_text(encoding="utf-8"))


def papers(moment: str | None = None) -> list[dict[str, Any]]:
    """Rows slug, module, name, title, venue, arxiv, category, moments, idea; in survey order.

    Args:
        moment: only the papers that act there; default: all.

    Raises:
        UnknownNameError: if there is no such moment.

    """
    if moment is not None and moment not in MOMENTS:
        raise UnknownNameError(f"No moment {moment!r}; there are {', '.join(MOMENTS)}.")
    rows = [row | {"slug": row["module"].replace("_", "-")} for row in _table()["papers"]]
    return [row for row in rows if moment is None or moment in row["moments"]]


def categories() -> list[dict[str, Any]]:
    """Rows number, notebook, name, network, question; in survey order."""
    return [dict(row) for row in _table()["categories"]]
