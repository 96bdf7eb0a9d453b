"""Error powers of which every decibel is known."""

from collections.abc import Mapping

import pandas as pd


def made_powers(column: str, names: Mapping[str, str], db: Mapping[str, float]) -> pd.DataFrame:
    """Signal 1 and noise at minus so many dB, alike at three steps of four seeds.

    Args:
        column: what names the settings.
        names: what the settings are called there; others keep their own name.
        db: SQNR by setting.

    """
    rows = [
        (names.get(name, name), step, 0.0, seed, 1.0, 10 ** (-value / 10))
        for name, value in db.items()
        for step in range(3)
        for seed in range(4)
    ]
    return pd.DataFrame(rows, columns=[column, "step", "t", "seed", "signal", "noise"])
