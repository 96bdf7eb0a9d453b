"""One measured number with its provenance, as a line of JSON.

A benchmark appends lines to a file; whoever draws a figure or a leaderboard reads them back. A
line says which model, recipe, bits and policy, on which seeds, against which baseline, and which
files and commit it came from.
"""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dqlab.engine.state import write_atomically
from dqlab.errors import CheckpointError
from dqlab.models.loading import weights_hash
from dqlab.models.training import git_commit, machine_kind
from dqlab.paths import models_dir

DIGITS = 6
VERSION = 1


@dataclass(frozen=True)
class Result:
    """One number.

    Attributes:
        model: name of the shipped model.
        recipe: method, and what was switched off of it.
        weights, activations: bits or format names; None is full precision.
        policy: name of the policy.
        sampler: the setting, as a dict.
        metric, unit: what was measured, in what.
        value: the number.
        interval: its 95 % interval; None where the number is exact.
        against: the baseline that a gain or ratio refers to.
        seeds: first held-out seed and how many.
        hashes: of the model's files, the calibration set and the quantized network.
        profile, seed: of the fit.
        commit, machine, date: where the number comes from.

    """

    model: str
    recipe: str
    weights: int | float | str | None
    activations: int | float | str | None
    policy: str
    sampler: dict[str, Any]
    metric: str
    unit: str
    value: float
    interval: tuple[float, float] | None
    seeds: tuple[int, int]
    against: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    profile: str = "teach"
    seed: int = 0
    commit: str = field(default_factory=git_commit)
    machine: str = field(default_factory=machine_kind)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    @classmethod
    def of(cls, model: str, info: dict[str, Any], recipe: str = "", **measured: Any) -> "Result":
        """A result of the pipeline that `info`, its `dqlab.describe`, belongs to."""
        hashes = {
            "model": model_hash(model),
            "calibration": info["calibration"]["hash"],
            "network": info["fingerprint"],
        }
        return cls(
            model,
            recipe or " | ".join(info["recipe"]["methods"]),
            info["weights"],
            info["activations"],
            info["policy"]["name"],
            info["sampler"],
            hashes=hashes,
            profile=info["profile"],
            seed=info["seed"],
            **measured,
        )


@cache
def model_hash(name: str) -> str:
    """The hash of a shipped model's weight files, shortened."""
    return weights_hash(models_dir() / name)


def append(path: Path, results: Iterable[Result]) -> None:
    """Add lines to a file, all or none; numbers are kept to six significant digits."""
    rows = [{"version": VERSION} | _rounded(asdict(r)) for r in results]
    before = path.read_text() if path.is_file() else ""
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_atomically(path, lambda temporary: temporary.write_text(before + lines))


def read(path: Path) -> list[Result]:
    """All results of a file.

    Raises:
        CheckpointError: if it is missing, or a line is not what `append` writes.

    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)]


def _parsed(path: Path, number: int, line: str) -> Result:
    try:
        row = json.loads(line)
        if row.pop("version") != VERSION:
            raise ValueError("another version of the format")
        low_high = row["interval"] and tuple(row["interval"])
        return Result(**row | {"interval": low_high, "seeds": tuple(row["seeds"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"Line {number} of {path} is no result ({error!r}). Measure it again."
        ) from error


def _rounded(value: Any) -> Any:
    """Floats at `DIGITS` significant digits; what is not finite becomes None."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
