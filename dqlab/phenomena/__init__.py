"""Measurements behind the notebooks' figures: tidy frames and tensors out, no plotting inside."""

from dqlab.phenomena import (
    bits,
    census,
    chain,
    drift,
    layers,
    ledger,
    levels,
    quality,
    schedule,
    shortcuts,
    steps,
    stored,
    verdicts,
)

__all__ = [
    "bits",
    "census",
    "chain",
    "drift",
    "layers",
    "ledger",
    "levels",
    "quality",
    "schedule",
    "shortcuts",
    "steps",
    "stored",
    "verdicts",
]
