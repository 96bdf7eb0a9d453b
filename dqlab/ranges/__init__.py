"""Choosing scale and zero point for a format from data."""

from dqlab.ranges.minmax import mean_abs, min_max, percentile
from dqlab.ranges.observers import Ema, First, Mean, MinMax, Observer, Pooled, Running
from dqlab.ranges.rows import from_groups, to_groups
from dqlab.ranges.rules import RULES
from dqlab.ranges.search import cosine, grid_search, kl, l1, percentile_search, shrink_search
from dqlab.ranges.steps import PerStep

__all__ = [
    "RULES",
    "Ema",
    "First",
    "Mean",
    "MinMax",
    "Observer",
    "PerStep",
    "Pooled",
    "Running",
    "cosine",
    "from_groups",
    "grid_search",
    "kl",
    "l1",
    "mean_abs",
    "min_max",
    "percentile",
    "percentile_search",
    "shrink_search",
    "to_groups",
]
