"""What the drawing functions expect of a tidy frame, and the sentence when it is not so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dqlab.errors import InvalidInputError


def require(frame: pd.DataFrame, columns: Sequence[str], what: str) -> pd.DataFrame:
    """`frame` itself; raises InvalidInputError if it lacks rows or any of `columns`."""
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise InvalidInputError(
            f"{what} needs the columns {', '.join(columns)}; {', '.join(missing)} missing "
            f"(found: {', '.join(map(str, frame.columns))})."
        )
    if frame.empty:
        raise InvalidInputError(f"{what} got a frame without rows: measure something first.")
    if {"step", "timestep"} <= set(columns):
        timeline(frame)
    return frame


def matrix(frame: pd.DataFrame, index: str, columns: str, values: str) -> pd.DataFrame:
    """`frame` as a table of `values`; raises InvalidInputError where a cell has two values."""
    double = frame.duplicated([index, columns])
    if double.any():
        row = frame[double].iloc[:1].to_dict("records")[0]
        raise InvalidInputError(
            f"{index} {row[index]}, {columns} {row[columns]} has more than one {values}: take a "
            f"mean over seeds, or show one setting at a time."
        )
    return frame.pivot(index=index, columns=columns, values=values)


def to_array(values: Any, what: str) -> np.ndarray:
    """A float numpy array from a tensor, array or sequence; refuses empty and non-finite ones."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        bad = "no values" if array.size == 0 else "NaN or infinite values"
        raise InvalidInputError(f"{what} got {bad}: pass at least one finite number.")
    return array


def timeline(frame: pd.DataFrame) -> tuple[list[int], list[int]]:
    """The steps of a frame in order and the timestep t of each."""
    pairs = frame[["step", "timestep"]].drop_duplicates().sort_values("step")
    if pairs["step"].duplicated().any():
        step = pairs["step"][pairs["step"].duplicated()].iloc[0]
        raise InvalidInputError(f"Step {step} has two timesteps: show one sampler at a time.")
    return [int(s) for s in pairs["step"]], [int(t) for t in pairs["timestep"]]
