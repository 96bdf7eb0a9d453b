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
NAMES = {"uniform": "PTQ4DM", "ptq4dm": "PTQ4DM", "eda-dm": "EDA-DM"}
PAINTERS = {
    "uniform": ("uniform steps", "FID 26.19 against 49.37"),
    "ptq4dm": ("normal steps", "FID 24.26 against 49.37"),
    "eda-dm": ("density and variety", ""),
}
"""By source: how its claim about pictures begins, and PTQ4DM's figure against one step alone."""


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
    kept = frames["rounded"].query("bits == 8 and when == 'all steps'")["db"]
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
    for name, (says, quoted) in PAINTERS.items():
        pair = [torch.tensor(wide[source].to_numpy()) for source in (best, name)]
        ratio = float(wide[best].median() / wide[name].median())
        found[f"{name} pictures"] = Claim(
            f"{says} paint closer pictures than {best} alone, the best of one kind "
            f"({NAMES[name]}, paired error, W8A8)",
            quoted, ratio, *bootstrap_ratio(*pair), "×", 1.5, 1.0,
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
            "most near t = 40 of 100", crowd, crowd, crowd, "steps", 1.0,
        ),
    }  # fmt: skip


def _block(block: pd.DataFrame) -> dict[str, Claim]:
    """Blocks learned one at a time, with and without the losses of their inner layers."""
    wide = block.pivot(index=["block", "layer"], columns="fit", values="error")
    own = wide.index.get_level_values("layer") == "block"
    inner, whole = wide[~own], wide[own].droplevel("layer")
    fitted = block[block["layer"] == "block"].pivot(index="block", columns="fit", values="fitted")
    plain, fine = "block loss", "with layer losses"
    told = {
        "harm": ("block loss alone drives inner layers above nearest rounding",
                 "3 to 60, 5 to 200 (off a figure)", inner[plain] / inner["nearest"], 1.5),
        "cure": ("layer losses keep inner layers closer than block loss", "",
                 inner[plain] / inner[fine], 1.5),
        "block": ("with layer losses the block itself ends closer than rounded to nearest", "",
                  whole["nearest"] / whole[fine], 1.1),
        "block closer": ("with layer losses it ends closer than with block loss",
                         "22 to 3 (off a figure)", whole[plain] / whole[fine], 1.1),
        "overfit": ("block loss alone errs more on other states than on those it fitted",
                    "22 to 1 (off a figure)", whole[plain] / fitted[plain], 1.5),
    }  # fmt: skip
    found = {
        name: Claim(
            f"{says} (EDA-DM, {len(whole)} blocks, W3, median and extremes)", quoted,
            float(ratio.median()), float(ratio.min()), float(ratio.max()), "×", full, 1.0,
        )
        for name, (says, quoted, ratio, full) in told.items()
    }  # fmt: skip
    worst = float((whole[plain] / whole["nearest"]).max())
    says = "block loss alone leaves some block further off than nearest rounding (EDA-DM, W3)"
    return found | {"lost": Claim(says, "", worst, worst, worst, "×", 1.1, 1.0)}
