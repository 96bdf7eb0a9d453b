"""What the notebook 1.4-time-information shows: what quantization does to a network's clock.

The time path never sees a picture, so most of this takes seconds and is computed live. What whole
networks lose by it takes longer:

    python -m dqlab.phenomena.time_information

writes data/results/time-information.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.methods import quantize, recipe
from dqlab.methods.recipe import Recipe
from dqlab.methods.unet_time_information.qvd import best_grid, time_grids
from dqlab.metrics import mean_sqnr_db
from dqlab.metrics.sampling import sample
from dqlab.models.families import Sampler
from dqlab.phenomena import stored
from dqlab.phenomena.clock import mistaken, turn_facts
from dqlab.phenomena.ledger import Claim, gain_db, ledger_row, powers_of
from dqlab.phenomena.verdicts import Verdict
from dqlab.reference import qvd
from dqlab.trajectory import record

NAME = "time-information"
COMMAND = "python -m dqlab.phenomena.time_information"
MODEL = "latent-unet"
ARMS = {
    "rtn": ("rtn", {}),
    "time path to nearest": ("tfmq-dm", {"temporal": "nearest", "reconstruct": False}),
    "tfmq-dm": ("tfmq-dm", {"reconstruct": False}),
    "tfmq-dm, features kept": ("tfmq-dm", {"reconstruct": False, "maintenance": "cache"}),
}
"""Rows of the ledger; all other weights are rounded to nearest, so that only the clock differs.

QVD is about videos: `dqlab.phenomena.time_checks`.
"""


def arm(name: str) -> Recipe:
    """The recipe of one row of the ledger."""
    slug, options = ARMS[name]
    return recipe(slug, **options)


FEW = 5


def steps_mistaken(perceived: pd.DataFrame, bits: int) -> Verdict:
    """The question: at how many of the sampler's steps does the median block read another step?"""
    wrong = perceived[perceived["t"] != perceived["perceived"]]
    blocks = perceived["layer"].nunique()
    count = float(wrong.groupby("layer").size().reindex(perceived["layer"].unique(), fill_value=0)
                  .median())  # fmt: skip
    total = perceived["t"].nunique()
    told = f"At {bits} bits the median of {blocks} blocks mistakes {count:g} of {total} steps"
    if count == 0:
        return Verdict("none", f"{told}: the clock runs right on this grid.")
    if count <= FEW:
        return Verdict("few", f"{told}.")
    return Verdict("more", f"{told}: it takes most for another.")


def most_mistaken(perceived: pd.DataFrame) -> str:
    """The block with the most steps taken for another."""
    wrong = perceived["t"] != perceived["perceived"]
    return str(wrong.groupby(perceived["layer"], sort=False).mean().idxmax())


def skewed(u: Tensor) -> Verdict:
    """QVD's first observation: many small values, few large ones."""
    skew = float(qvd.skewness(u))
    small = float((u.abs() < 0.05 * u.abs().max()).double().mean())
    told = f"Skewness {skew:.1f}; {100 * small:.0f} % of the values lie below 5 % of the largest"
    if skew >= 2:
        return Verdict("holds", f"{told}: a uniform comb has most of its levels where nothing is.")
    if skew >= 1:
        return Verdict("weaker", f"{told}: somewhat skewed.")
    return Verdict("absent", f"{told}: hardly skewed.")


def log_grids(table: pd.DataFrame) -> Verdict:
    """From which widths a log grid has the better TDScore, from `grid_table`."""
    plain = ~table["grid"].str.contains("by step")
    best = table[plain].loc[table[plain].groupby("bits")["td_score"].idxmax()]
    wins = [int(b) for b, g in zip(best["bits"], best["grid"], strict=True) if "log" in g]
    losing = [int(b) for b in best["bits"] if b not in wins]
    if not wins:
        return Verdict("never", "A uniform grid has the best TDScore at every width.")
    told = f"A log grid has the best TDScore at {', '.join(map(str, wins))} bits"
    if losing:
        return Verdict("some", f"{told}; at {', '.join(map(str, losing))} bits a uniform one.")
    return Verdict("always", f"{told}, at every width measured.")


def claims(
    turned: Mapping[str, pd.DataFrame],
    perceived: Mapping[str, pd.DataFrame],
    losses: tuple[float, float],
    gains: pd.DataFrame,
    kept: tuple[float, float],
    ledger: pd.DataFrame,
) -> dict[str, Claim]:
    """TFMQ-DM's claims beside what was measured.

    Args:
        turned: "nearest" and "tiar": `cosine_table` at W4.
        perceived: the same: `perceived_table` at W4 on all timesteps.
        losses: L_TIAR to nearest and learned.
        gains: `step_gains`.
        kept: largest 1 - cos of kept features, and of features rounded to 8 bits.
        ledger: error powers with columns weights, activations, method.

    """
    shares = {name: 100 * mistaken(frame) for name, frame in perceived.items()}
    away = {n: f.groupby("layer", sort=False)["away"].mean() for n, f in turned.items()}
    varied, late = turn_facts(turned["nearest"])
    by_step = gains["gain"]
    half = 1.96 * float(by_step.groupby(gains["layer"]).mean().sem())
    ends = float(by_step.mean()) - half, float(by_step.mean()) + half
    found = {
        "varied": _exact("in half of the blocks features turn 3 times as far at one step as at "
                         "another (W4)", 100 * varied, "%", 50.0),
        "late": _exact("they turn further at the end than at the start (ratio)", late, "×", 1.2,
                       1.0, "cosine 0.985 to 1 early, 0.92 to 0.97 late"),
        "clock": _exact("rounding the time path to 4 bits mistakes steps", shares["nearest"], "%",
                        5.0, 0.5, "by up to 5 of 50 steps"),
        "tiar": _exact("TIAR lowers the features' error (loss ratio)", losses[0] / losses[1], "×",
                       2.0, 1.0),
        "blocks": _exact("and lessens the turn of blocks",
                         100 * float((away["tiar"] < away["nearest"]).mean()), "%", 90.0, 50.0),
        "steps": _exact("with TIAR fewer steps are mistaken", shares["nearest"] - shares["tiar"],
                        "points", 1.0),
        "ranges": Claim("a range per step helps (features, A4 to A8)", "", float(by_step.mean()),
                        *ends, "dB", 2.0),
        "shares": _exact("it helps at most steps of most blocks",
                         100 * float((by_step > 0).mean()), "%", 85.0, 50.0),
        "cache": _exact("kept features turn no further than 8-bit ones (ratio, 8-bit over kept)",
                        kept[1] / kept[0], "×", 0.99),
    }  # fmt: skip
    for name, (says, quoted, before, after, enough) in _LEDGER_CLAIMS.items():
        pair = [of_ledger(ledger, 4, 8, method) for method in (before, after)]
        found[name] = Claim(says, quoted, *gain_db(*pair), "dB", enough)
    return found


def grid_claims(
    u: Tensor, table: pd.DataFrame, made_up: pd.DataFrame, equal: pd.DataFrame
) -> dict[str, Claim]:
    """QVD's claims that need no whole network.

    Args:
        u: the model's own time features `[T, D]`.
        table: `grid_table` of them.
        made_up: of `clock.skewed_features`.
        equal: `Channels.coverage` at alpha = 1.

    """
    worst = {m: min(_log_gain(made_up, b, m) for b in (4, 6)) for m in ("td_score", "codes")}
    chosen = min(_chosen_gain(u, table, int(b)) for b in table["bits"].unique())
    return {
        "made up": _exact("log grids tell made-up skewed steps better apart (TDScore, 4, 6 bits)",
                          worst["td_score"], "", 0.02),
        "codes": _exact("and leave them more codes (distinct-code ratio)", worst["codes"], "",
                        0.02),
        "log": _exact("log grids tell 4-bit steps better apart (TDScore)", _log_gain(table, 4), "",
                      0.02),
        "choice": _exact("the chosen grid is never worse than a uniform one (TDScore)",
                         chosen, "", 0.0, -1e-6),
        "equal": _exact("alpha = 1 lets every channel cover all levels (least coverage)",
                        100 * float(equal["kappa"].min()), "%", 99.99, 50.0),
    }  # fmt: skip


def _log_gain(table: pd.DataFrame, bits: int, metric: str = "td_score") -> float:
    """What the best log grid has over the uniform one."""
    rows = table[table["bits"] == bits].set_index("grid")[metric]
    return float(rows[rows.index.str.contains("log")].max() - rows[f"uint{bits}"])


def _chosen_gain(u: Tensor, table: pd.DataFrame, bits: int) -> float:
    """What the grid that `qvd` chooses for u has over the uniform one, by TDScore."""
    scores = table[table["bits"] == bits].set_index("grid")["td_score"]
    return float(scores[best_grid(u, time_grids(bits))[0].name] - scores[f"uint{bits}"])


def _exact(
    says: str, number: float, unit: str, full: float, least: float = 0.0, quoted: str = ""
) -> Claim:
    """A claim whose number has no interval: nothing in it is drawn."""
    return Claim(says, quoted, number, number, number, unit, full, least)


_LEDGER_CLAIMS = {
    "network": (
        "TFMQ-DM's clock helps the network (eps, W4A8)",
        "", "time path to nearest", "tfmq-dm", 0.5,
    ),
}  # fmt: skip


def of_ledger(powers: pd.DataFrame, weights: int, activations: int, method: str) -> pd.DataFrame:
    """One row's error powers."""
    chosen = (powers["weights"] == weights) & (powers["activations"] == activations)
    return powers[chosen & (powers["method"] == method)]


@dataclass(frozen=True)
class Plan:
    """How much to measure: trajectories to calibrate on and to judge, pictures, bits."""

    trajectories: int = 8
    held_out: int = 8
    pictures: int = 32
    kept: int = 3
    bits: tuple[tuple[int, int], ...] = ((4, 8), (4, 4))
    sampler: Sampler = field(default_factory=Sampler)


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """Frames powers and ledger over `ARMS`; tensors exact, made `[bits, arms, kept, ...]`."""
    plan = plan or Plan()
    calibration = record(pipe, seeds.CALIBRATION[: plan.trajectories], plan.sampler)[0]
    held_out = record(pipe, seeds.HELD_OUT[: plan.held_out], plan.sampler)[0]
    exact = record(pipe, seeds.GALLERY[: plan.pictures], plan.sampler)[1]
    powers, rows, pictures = [], [], []
    for weights, activations in plan.bits:
        for name in ARMS:
            setting = {"weights": weights, "activations": activations}
            q = quantize(pipe, arm(name), **setting, sampler=plan.sampler, calibration=calibration)
            powers.append(powers_of(q, held_out).assign(**setting, method=name))
            made = sample(q, seeds.GALLERY[: plan.pictures], batch_size=32, sampler=plan.sampler)
            pictures.append(stored.to_bytes(made[: plan.kept]))
            row = ledger_row(powers[-1], exact, made, q, held_out)
            rows.append({"method": name, **setting, "pictures": plan.pictures, **row})
            say(f"W{weights}A{activations} {name}: {mean_sqnr_db(powers[-1]):.2f} dB")
    frames = {"powers": pd.concat(powers, ignore_index=True), "ledger": pd.DataFrame(rows)}
    made = torch.stack(pictures).unflatten(0, (len(plan.bits), len(ARMS)))
    return frames, {"exact": stored.to_bytes(exact[: plan.kept]), "made": made}


def main() -> None:
    """Measure the shipped model and replace data/results/time-information."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
