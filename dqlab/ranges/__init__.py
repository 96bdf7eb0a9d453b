"""Choosing scale and zero point for a format from data."""

from dqlab.ranges.minmax import mean_abs, min_max, percentile
from dqlab.ranges.rows import from_groups, to_groups

__all__ = ["from_groups", "mean_abs", "min_max", "percentile", "to_groups"]
