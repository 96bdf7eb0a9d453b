"""Measure what learning adds to EDA-DM's calibration, for the notebook 1.1-calibration-strategy.

    python -m dqlab.phenomena.fine_grained

writes data/results/fine-grained: both methods with ranges alone, and EDA-DM learned with and
without the losses of inner layers. About ten minutes on one core.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pandas as pd

from dqlab import seeds
from dqlab.methods import quantize, recipe
from dqlab.methods.job import Job
from dqlab.methods.method import Phase
from dqlab.methods.recipe import Recipe
from dqlab.methods.reconstruction import Reconstruct
from dqlab.methods.unet_calibration.eda_dm import EdaDm
from dqlab.models.families import Sampler, family_of
from dqlab.phenomena import calibration as cal
from dqlab.phenomena import stored
from dqlab.phenomena.ledger import Claim, claims_frame, gain_db, ledger_row, powers_of
from dqlab.phenomena.verdicts import Verdict
from dqlab.trajectory import States, record

NAME = "fine-grained"
COMMAND = "python -m dqlab.phenomena.fine_grained"
MODEL = "pixel-unet"
RANGES, BLOCK_LOSS, WHOLE = "eda-dm, ranges alone", "eda-dm, block loss", "eda-dm"
METHODS = ("rtn", "ptq4dm", RANGES, WHOLE, BLOCK_LOSS)


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        samples: N, the states every method calibrates on; plain rounding takes the same number
            of every step.
        held_out: trajectories behind every SQNR.
        pictures: gallery seeds behind every paired error.
        bits: of weights and activations.
        sampler: the setting of everything.

    """

    samples: int = 160
    held_out: int = 16
    pictures: int = 32
    bits: tuple[int, int] = (4, 8)
    sampler: Sampler = field(default_factory=Sampler)


class Watched(EdaDm):
    """EDA-DM whose phases can be asked afterwards how every unit fared."""

    def fit(self, job: Job) -> list[Phase]:
        """As EDA-DM's, kept."""
        self.phases = super().fit(job)
        return self.phases

    def units(self) -> pd.DataFrame:
        """`UnitReport` of every unit that had something to learn, in a frame."""
        learned = (p.reports for p in self.phases if isinstance(p, Reconstruct))
        return pd.DataFrame([asdict(report) for reports in learned for report in reports])


def watched(**options) -> tuple[Watched, Recipe]:
    """A method to ask afterwards, and its recipe."""
    method = Watched(**options)
    return method, Recipe((method,), dict.fromkeys(method.moments(), method))


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames of the stored results; no tensors.

    Returns:
        Frames powers (method, step, t, seed, signal, noise), ledger (method, weights, activations
        and `ledger_row`'s columns), pictures (method, seed, mse), units (method and `UnitReport`'s
        fields), seconds (method, processor), outcomes.

    """
    plan = plan or Plan()
    held_out, _ = record(pipe, seeds.HELD_OUT[: plan.held_out], plan.sampler)
    made_of = list(seeds.GALLERY[: plan.pictures])
    _, exact = record(pipe, made_of, plan.sampler)
    parts = {name: [] for name in ("powers", "ledger", "pictures", "units", "seconds")}
    setting = dict(zip(("weights", "activations"), plan.bits, strict=True))
    for name, q, units, seconds in _networks(pipe, plan):
        powers = powers_of(q, held_out)
        made = family_of(q).run(q, plan.sampler, made_of)
        mse = (made - exact).double().square().flatten(1).mean(1)
        row = ledger_row(powers, exact, made, q, held_out)
        parts["powers"].append(powers.assign(method=name))
        parts["ledger"].append(pd.DataFrame([{"method": name, **setting, **row}]))
        seen = {"method": name, "seed": made_of, "mse": mse.tolist()}
        parts["pictures"].append(pd.DataFrame(seen))
        parts["units"].append(units.assign(method=name))
        parts["seconds"].append(pd.DataFrame([{"method": name, "processor": seconds}]))
        say(f"{name}: {row['db']:.2f} dB, paired {row['mse']:.2e}, {seconds:.0f} s of processor")
    frames = {key: pd.concat(found, ignore_index=True) for key, found in parts.items()}
    frames["outcomes"] = outcomes(frames)
    return frames, {}


def _networks(pipe, plan: Plan) -> Iterator[tuple[str, object, pd.DataFrame, float]]:
    """Name, network, units and processor seconds of every row; both learned ones share a set."""
    chosen = {
        slug: cal.picks_of(pipe, recipe(slug, samples=plan.samples), plan.sampler)
        for slug in ("ptq4dm", "eda-dm")
    }
    steps = plan.sampler.num_inference_steps
    even, _ = record(pipe, seeds.CALIBRATION[: -(-plan.samples // steps)], plan.sampler)
    for name, states in (("rtn", even), ("ptq4dm", chosen["ptq4dm"])):
        q, seconds = _timed(pipe, plan, recipe(name), states)
        yield name, q, pd.DataFrame(), seconds
    for name, options in _EDA_DM.items():
        method, used = watched(**options)
        q, seconds = _timed(pipe, plan, used, chosen["eda-dm"])
        yield name, q, method.units(), seconds


_EDA_DM = {RANGES: {"reconstruct": False}, WHOLE: {}, BLOCK_LOSS: {"layer_weight": 0.0}}


def _timed(pipe, plan: Plan, used: Recipe, states: States) -> tuple[object, float]:
    started = time.process_time()
    q = quantize(pipe, used, *plan.bits, sampler=plan.sampler, calibration=states)
    return q, time.process_time() - started


def of(powers: pd.DataFrame, method: str) -> pd.DataFrame:
    """One method's error powers."""
    return powers[powers["method"] == method].drop(columns="method")


def claims(powers: pd.DataFrame) -> dict[str, Claim]:
    """What EDA-DM's learning brings on this network, with the margins it is judged by.

    A claim about a method that `powers` does not hold is left out.
    """
    told = {
        "learning": ("learned rounding and step sizes beat ranges alone", RANGES, 1.0),
        "layers": ("layer losses beat block loss alone, end to end", BLOCK_LOSS, 0.3),
    }
    return {
        name: Claim(
            f"{says} (EDA-DM, eps, W4A8)", "",
            *gain_db(of(powers, before), of(powers, WHOLE)), "dB", full,
        )
        for name, (says, before, full) in told.items()
        if before in set(powers["method"])
    }  # fmt: skip


def fits(units: pd.DataFrame) -> pd.DataFrame:
    """How the units of each learned network fared on the calibration states.

    Returns:
        Columns method, units, change (median of error after / before), worse (units that end
        above nearest rounding), hardening (median of error after / before it was decided).

    """
    rows = []
    for name, part in units.groupby("method", sort=False):
        change = part["after"] / part["before"]
        hardened = (part["after"] / part["soft"]).median()
        rows.append((name, len(part), change.median(), int((change > 1).sum()), hardened))
    return pd.DataFrame(rows, columns=["method", "units", "change", "worse", "hardening"])


def fit_verdict(units: pd.DataFrame) -> Verdict:
    """Does every unit of the whole method end below nearest rounding?"""
    row = fits(units).set_index("method").loc[WHOLE]
    count, worse = int(row["units"]), int(row["worse"])
    told = (
        f"EDA-DM's {count} units end at {row['change']:.2f} times the error of nearest rounding "
        f"(median); deciding the soft roundings costs {row['hardening']:.2f} times"
    )
    if worse == 0:
        return Verdict("all", f"{told}. No unit ends above nearest rounding.")
    return Verdict("some", f"{told}. {worse} end above it, and are kept all the same.")


def outcomes(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What came of the claims and of the units, from the other frames."""
    told = claims_frame(claims(frames["powers"]))
    row = fits(frames["units"]).set_index("method").loc[WHOLE]
    key = fit_verdict(frames["units"]).key
    told.loc[len(told)] = ["units", row["change"], row["worse"], row["worse"], key]
    return told


def main() -> None:
    """Measure the shipped model and replace data/results/fine-grained."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
