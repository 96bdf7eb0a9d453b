import numpy as np
import pandas as pd
import pytest

STEPS = list(range(1, 11))
TIMES = [1000 - 100 * s for s in STEPS]


@pytest.fixture
def db_frame():
    """Rounding falls from 19 to 10 dB, the method stays 2 dB above, 4 seeds."""
    rng = np.random.default_rng(0)
    rows = [
        {"series": name, "step": s, "timestep": t, "seed": seed, "db": 20 - s + up + noise}
        for name, up in (("rtn", 0.0), ("method", 2.0))
        for seed in range(4)
        for s, t, noise in zip(STEPS, TIMES, rng.normal(0, 0.1, 10), strict=True)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def range_frame():
    low, high = -np.linspace(1, 3, 10), np.linspace(2, 6, 10)
    return pd.DataFrame({"step": STEPS, "timestep": TIMES, "low": low, "high": high})


@pytest.fixture
def layer_frame():
    layers = [("conv_in", "down"), ("down.0", "down"), ("mid", "middle"), ("up.0", "up")]
    return pd.DataFrame(
        {"layer": n, "branch": b, "step": s, "timestep": t, "value": 30 - i - s}
        for i, (n, b) in enumerate(layers)
        for s, t in zip(STEPS, TIMES, strict=True)
    )


@pytest.fixture
def bits_frame():
    return pd.DataFrame(
        {"weights": w, "activations": a, "db": 6.0 * min(w, a) - (3 if a < 8 else 0)}
        for w in (8, 6, 4)
        for a in (8, 6, 4)
    )


@pytest.fixture
def images():
    """Full precision and a quantized run whose error grows with the step."""
    rng = np.random.default_rng(1)
    full = rng.uniform(-0.8, 0.8, (10, 3, 32, 32))
    growth = np.linspace(0, 0.2, 10)[:, None, None, None]
    return {"full_precision": full, "rtn": full + growth}
