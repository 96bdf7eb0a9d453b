"""Measurements behind the notebooks' figures: tidy frames and tensors out, no plotting inside."""

from dqlab.phenomena import (
    bits,
    calibration,
    census,
    chain,
    clock,
    drift,
    layers,
    ledger,
    levels,
    quality,
    schedule,
    shortcuts,
    steps,
    stored,
    timed_ranges,
    verdicts,
)

__all__ = [
    "bits",
    "calibration",
    "census",
    "chain",
    "clock",
    "drift",
    "layers",
    "ledger",
    "levels",
    "quality",
    "schedule",
    "shortcuts",
    "steps",
    "stored",
    "timed_ranges",
    "verdicts",
]
