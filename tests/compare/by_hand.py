"""Comparisons whose numbers are known, without a network."""

import pandas as pd
import torch

from dqlab import seeds
from dqlab.compare import Comparison
from dqlab.metrics import Cost, PairedError, artefacts
from dqlab.models.families import Sampler

STEPS, SEEDS = 4, 8
COMMON = {"name": "common", "rules": [{"pattern": "*", "bits": "weights", "why": ""}]}


def powers(db: float, spread: float = 0.0) -> pd.DataFrame:
    """A frame whose SQNR is `db` at every step; its noise varies with the seed by `spread`."""
    rows = []
    for step in range(STEPS):
        for index in range(SEEDS):
            wobble = 1 + spread * (-1) ** index
            noise = wobble * 10 ** (-db / 10)
            rows.append((step, 1000.0 - 250 * step, 3000 + index, 1.0, noise))
    return pd.DataFrame(rows, columns=["step", "t", "seed", "signal", "noise"])


def made(label: str = "rtn, W4 A8", db: float | None = 20.0, error: float = 0.1, **changes):
    """A comparison with a given SQNR and a given difference in every value of every picture."""
    reference = torch.rand(SEEDS, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.5
    images = reference + error
    head = "garment", "colour", "background"
    given = {
        "label": label,
        "info": {
            "recipe": {"methods": ["rtn"]}, "weights": 4, "activations": 8, "policy": COMMON,
            "profile": "teach", "calibration": {"hash": "0"},
        },
        "sampler": Sampler(STEPS),
        "seeds": list(seeds.HELD_OUT[:SEEDS]),
        "powers": None if db is None else powers(db),
        "absent": "it remembers its run." if db is None else "",
        "baseline": None,
        "paired": PairedError(torch.full((SEEDS,), error**2), dict.fromkeys(head, 0.25)),
        "artefacts": artefacts(reference, images),
        "fidelity": None,
        "frechet": None,
        "cost": Cost(1_000_000, 8_000_000, 2e9, 4_000_000),
        "reference": reference,
        "images": images,
    }  # fmt: skip
    return Comparison(**given | changes)


def policy(name: str, bits: int = 8) -> dict:
    """What `describe` tells about a policy that keeps everything at `bits`."""
    return {"name": name, "rules": [{"pattern": "*", "bits": bits, "why": ""}]}
