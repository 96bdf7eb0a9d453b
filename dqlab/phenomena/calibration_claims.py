"""What PTQ4DM and EDA-DM claim about calibration sets, held against this network's numbers."""

import pandas as pd
import torch

from dqlab.metrics import bootstrap_ratio, mean_sqnr_db
from dqlab.phenomena.ledger import Claim, gain_db
from dqlab.reference.eda_dm import min_max_normalized

METHODS = ("ptq4dm", "eda-dm")
SINGLE = ("pure noise", "first steps", "clean images")
"""Sources that have seen one kind of state only."""
CROSSED = 4
"""Trajectories behind the ranges of one step at a time."""
NAMES = {"ptq4dm": "PTQ4DM", "eda-dm": "EDA-DM"}


def of(powers: pd.DataFrame, source: str) -> pd.DataFrame:
    """One source's error powers."""
    return powers[powers["source"] == source].drop(columns="source")


def claims(frames: dict[str, pd.DataFrame]) -> dict[str, Claim]:
    """The papers' claims on this network, with the margins they are judged by.

    Args:
        frames: of `calibration_strategy.measure`.

    """
    found = _sources(frames["powers"]) | _single_steps(frames["matrix"], frames["powers"])
    found |= _pictures(frames["pictures"]) | _distribution(frames["eda"])
    kept = frames["rounded"].query("bits == 8")["db"]
    found["states"] = Claim(
        "the sampler's own states tolerate 8 bits (PTQ4DM, final state, median and quartiles)",
        "FID 21.94 against 21.63", *kept.quantile([0.5, 0.25, 0.75]), "dB", 35.0, 20.0,
    )  # fmt: skip
    return found | _block(frames["block"])


def _sources(powers: pd.DataFrame) -> dict[str, Claim]:
    """Both methods against states of one kind, and against uniform steps; paired over seeds."""
    told = {
        "single": ("drawn steps beat pure noise", "ptq4dm", "pure noise",
                   "FID 24.26 against 33.15 (two studies)", 1.0),
        "clean": ("drawn steps beat finished pictures", "ptq4dm", "clean images",
                  "FID 24.26 against 128.63 (two studies)", 1.0),
        "normal": ("normal steps beat uniform ones", "ptq4dm", "uniform",
                   "FID 24.26 against 26.19", 0.3),
        "eda single": ("density and variety beat pure noise", "eda-dm", "pure noise", "", 1.0),
        "eda clean": ("density and variety beat finished pictures", "eda-dm", "clean images", "",
                      1.0),
        "density": ("density and variety beat uniform steps", "eda-dm", "uniform", "", 0.3),
    }  # fmt: skip
    return {
        name: Claim(
            f"{says} ({NAMES[method]}, eps, W8A8)", quoted,
            *gain_db(of(powers, other), of(powers, method)), "dB", full,
        )
        for name, (says, method, other, quoted, full) in told.items()
    }  # fmt: skip


def _single_steps(matrix: pd.DataFrame, powers: pd.DataFrame) -> dict[str, Claim]:
    """Ranges of one step at a time, told on the matrix' trajectories alone."""
    means = matrix.groupby("ranges_from")["db"].mean()
    some = powers[powers["seed"].isin(sorted(powers["seed"].unique())[:CROSSED])]
    nearer = float(means.iloc[-1] - means.iloc[0])
    found = {
        "nearer": Claim(
            "the last step serves better than the first (PTQ4DM, one step alone, eps, W8A8)",
            "FID falls towards the picture", nearer, nearer, nearer, "dB", 1.0,
        )
    }  # fmt: skip
    for name, says in (("uniform", "uniform"), ("ptq4dm", "normal")):
        lead = mean_sqnr_db(of(some, name)) - float(means.max())
        found[f"{name} alone"] = Claim(
            f"{says} steps lose at most 0.5 dB to the best single one (PTQ4DM, eps, W8A8)", "",
            lead, lead, lead, "dB", -0.5, -0.5,
        )  # fmt: skip
    return found


def _pictures(pictures: pd.DataFrame) -> dict[str, Claim]:
    """Median paired error of the best source of one kind, over that of each method."""
    wide = pictures.pivot(index="seed", columns="source", values="mse")
    best = wide[list(SINGLE)].median().idxmin()
    found = {}
    for method in METHODS:
        pair = [torch.tensor(wide[name].to_numpy()) for name in (best, method)]
        ratio = float(wide[best].median() / wide[method].median())
        found[f"{method} pictures"] = Claim(
            f"its pictures are closer than with {best} alone, the best of one kind "
            f"({NAMES[method]}, paired error, W8A8)",
            "", ratio, *bootstrap_ratio(*pair), "×", 1.5, 1.0,
        )  # fmt: skip
    return found


def _distribution(eda: pd.DataFrame) -> dict[str, Claim]:
    """The two curves that EDA-DM shares samples out by."""
    D, V = eda["density"], min_max_normalized(torch.tensor(eda["variety"].to_numpy()))
    inner = slice(len(eda) // 4, len(eda) - len(eda) // 4)
    ends = float(min(V[0], V[-1]) - V[inner].min())
    crowd = float(D.iloc[1:-1].max() - max(D.iloc[0], D.iloc[-1]))
    return {
        "ends": Claim(
            "variety at both ends stands above that of the middle half (EDA-DM, of 0 to 1)",
            "1 and about 0.3 above 0", ends, ends, ends, "", 0.2,
        ),
        "crowd": Claim(
            "a step inside the run has more neighbours than both ends (EDA-DM)",
            "most near step 60 of 100", crowd, crowd, crowd, "steps", 1.0,
        ),
    }  # fmt: skip


def _block(block: pd.DataFrame) -> dict[str, Claim]:
    """One block learned with and without the losses of its inner layers."""
    wide = block.pivot(index="layer", columns="fit", values="error")
    inner = wide.drop(index="block")
    told = {
        "harm": ("block loss alone drives inner layers above nearest rounding",
                 inner["block loss"] / inner["nearest"], 1.5),
        "cure": ("layer losses keep inner layers closer than block loss",
                 inner["block loss"] / inner["with layer losses"], 1.5),
        "block": ("with layer losses the block itself ends closer than rounded to nearest",
                  wide.loc[["block"], "nearest"] / wide.loc[["block"], "with layer losses"], 1.1),
    }  # fmt: skip
    return {
        name: Claim(
            f"{says} (EDA-DM, one block, W3)", "",
            float(ratio.median()), float(ratio.min()), float(ratio.max()), "×", full, 1.0,
        )
        for name, (says, ratio, full) in told.items()
    }  # fmt: skip
