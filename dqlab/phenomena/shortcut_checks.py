"""What else Q-Diffusion claims on pixel-unet: the error along a run, windows judged by pictures.

    python -m dqlab.phenomena.shortcut_checks

writes data/results/shortcut-checks: about three minutes on one core. How single units fared is in
lines that tests/benchmarks/reconstruction.py measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch

from dqlab import seeds
from dqlab.errors import UnknownNameError
from dqlab.methods import quantize, recipe
from dqlab.methods.drawing import pick
from dqlab.metrics import bootstrap_ratio, mean_sqnr_db
from dqlab.metrics.results import Result, read
from dqlab.metrics.sampling import sample
from dqlab.models.families import Sampler
from dqlab.paths import data_dir
from dqlab.phenomena import stored
from dqlab.phenomena.ledger import Claim, claims_frame, powers_of
from dqlab.phenomena.q_diffusion_text import EVEN, PLAIN, WINDOWS, windows
from dqlab.phenomena.shortcut_claims import grows
from dqlab.phenomena.steps import chain_errors
from dqlab.trajectory import States, record

NAME = "shortcut-checks"
COMMAND = "python -m dqlab.phenomena.shortcut_checks"
MODEL = "pixel-unet"
ENDS = ("first tenth", "last tenth")
LIVE = 2
"""Seeds whose chain a notebook runs again."""
FILE = "q-diffusion.jsonl"


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        trajectories, samples: recorded, and taken of them by every set.
        steps: m of the even set; half windows have m steps too.
        chain: seeds behind the error along a run.
        bits: weights of the chain, rounded to nearest.
        held_out: trajectories behind every SQNR.
        pictures: gallery seeds behind every paired error.
        sampler: the setting of everything.

    """

    trajectories: int = 40
    samples: int = 80
    steps: int = 10
    chain: int = 8
    bits: tuple[int, ...] = (8, 5, 4)
    held_out: int = 4
    pictures: int = 24
    sampler: Sampler = field(default_factory=Sampler)


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames of the stored results; there are no tensors.

    Returns:
        Frames chain (`chain_errors`), live (the same of W4 on the first `LIVE` seeds), powers
        (source, step, t, seed, signal, noise), pictures (source, seed, mse), outcomes.

    """
    plan = plan or Plan()
    states, _ = record(pipe, seeds.CALIBRATION[: plan.trajectories], plan.sampler)
    say("trajectories")
    powers, pictures = _windows(pipe, plan, sets(states, plan), say)
    frames = {"powers": powers, "pictures": pictures}
    frames["chain"], frames["live"] = _chain(pipe, plan, states[:1])
    say("chain")
    frames["outcomes"] = outcomes(frames)
    return frames, {}


def sets(states: States, plan: Plan | None = None) -> dict[str, States]:
    """Calibration sets by name, equally many states each, trajectories taking turns."""
    plan = plan or Plan()
    S = plan.sampler.num_inference_steps
    tenth = max(1, S // 10)
    picked = windows(S, plan.steps) | dict(
        zip(ENDS, (list(range(tenth)), list(range(S - tenth, S))), strict=True)
    )
    found = {}
    for name, steps in picked.items():
        n = [plan.samples // len(steps) if k in steps else 0 for k in range(S)]
        found[name] = pick(states, n, torch.Generator().manual_seed(0))
    return found


def calibrated_on(pipe, states: States, plan: Plan | None = None):
    """W8A8 with min-max ranges from these states, nothing learned."""
    sampler = (plan or Plan()).sampler
    return quantize(
        pipe, recipe("q-diffusion", **PLAIN), 8, 8, sampler=sampler, calibration=states
    )


def _windows(pipe, plan: Plan, given: dict[str, States], say: stored.Say):
    held_out, _ = record(pipe, seeds.HELD_OUT[: plan.held_out], plan.sampler)
    gallery = seeds.GALLERY[: plan.pictures]
    _, exact = record(pipe, gallery, plan.sampler)
    powers, pictures = [], []
    for name, states in given.items():
        q = calibrated_on(pipe, states, plan)
        powers.append(powers_of(q, held_out).assign(source=name))
        made = sample(q, gallery, batch_size=32, sampler=plan.sampler)
        mse = (made - exact).double().square().flatten(1).mean(1)
        told = {"source": name, "seed": list(gallery), "mse": mse.tolist()}
        pictures.append(pd.DataFrame(told))
        say(f"{name}: {mean_sqnr_db(powers[-1]):.2f} dB, paired {mse.median():.2e}")
    return (pd.concat(parts, ignore_index=True) for parts in (powers, pictures))


def rounded(pipe, bits: int, states: States, plan: Plan | None = None):
    """Weights alone rounded to nearest; activations stay exact, so one state is enough."""
    sampler = (plan or Plan()).sampler
    return quantize(pipe, "rtn", bits, None, sampler=sampler, calibration=states)


def _chain(pipe, plan: Plan, states: States) -> tuple[pd.DataFrame, pd.DataFrame]:
    some = seeds.HELD_OUT[: plan.chain]
    made = {f"W{bits}": rounded(pipe, bits, states, plan) for bits in plan.bits}
    runs = {name: record(q, some, plan.sampler)[0] for name, q in made.items()}
    exact, _ = record(pipe, some, plan.sampler)
    few = {"W4": runs["W4"][torch.isin(runs["W4"].seed, torch.tensor(list(some[:LIVE])))]}
    live = chain_errors(exact[torch.isin(exact.seed, torch.tensor(list(some[:LIVE])))], few)
    return chain_errors(exact, runs), live


def window_table(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Columns source, db, worst (least at one step), mse (median), ratio (to the even set's)."""
    medians, rows = frames["pictures"].groupby("source")["mse"].median(), []
    for source, part in frames["powers"].groupby("source", sort=False):
        worst = min(mean_sqnr_db(one) for _, one in part.groupby("step"))
        ratio = medians[source] / medians[EVEN]
        rows.append((source, mean_sqnr_db(part), worst, medians[source], ratio))
    return pd.DataFrame(rows, columns=["source", "db", "worst", "mse", "ratio"])


def claims(frames: dict[str, pd.DataFrame]) -> dict[str, Claim]:
    """Final pictures with ranges from a window against evenly spread steps, paired over seeds."""
    wide = frames["pictures"].pivot(index="seed", columns="source", values="mse")
    even, found = torch.tensor(wide[EVEN].to_numpy()), {}
    for name in (*WINDOWS, *ENDS):
        ratio = float(wide[name].median() / wide[EVEN].median())
        interval = bootstrap_ratio(torch.tensor(wide[name].to_numpy()), even)
        found[f"{name} pictures"] = Claim(
            f"evenly spread steps paint closer pictures than the {name} (paired error, W8A8)",
            "better (figure, 4 bits)" if name in WINDOWS else "", ratio, *interval, "×", 1.5, 1.0,
        )  # fmt: skip
    best = min(WINDOWS, key=lambda name: wide[name].median())
    middle = torch.tensor(wide["middle steps"].to_numpy())
    others = wide[[name for name in WINDOWS if name != "middle steps"]]
    rival = others.median().idxmin()
    pair = torch.tensor(others[rival].to_numpy()), middle
    found["middle"] = Claim(
        f"the middle is the least bad window (paired error, against {rival}; least: {best})",
        "least bad (figure)", float(pair[0].median() / pair[1].median()),
        *bootstrap_ratio(*pair), "×", 1.1, 1.0,
    )  # fmt: skip
    return found


def outcomes(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What came of every claim, and of fewer bits along a run."""
    told = claims_frame(claims(frames))
    wide = frames["chain"].pivot(index="step", columns="series", values="error")
    grown = float(wide["W4"].iloc[-1] / wide["W8"].iloc[-1])
    told.loc[len(told)] = ["chain", grown, grown, grown, grows(frames["chain"]).key]
    return told


def lines() -> list[Result]:
    """What tests/benchmarks/reconstruction.py measured of Q-Diffusion, unit by unit too.

    Raises:
        CheckpointError: if the file is missing or damaged.

    """
    return read(data_dir() / "results" / "measured" / FILE)


def of_units(found: Sequence[Result]) -> dict[str, Claim]:
    """How many units end below nearest rounding on held-out states, and by how much.

    Raises:
        UnknownNameError: if that was not measured.

    """
    below, change = (_line(found, name) for name in ("units_below_nearest", "unit_error_change"))
    low, high = (-100 * end for end in reversed(change.interval))
    return {
        "units": Claim(
            "reconstructed units end below nearest rounding (held out, in place, W4A8)", "",
            100 * below.value, *(100 * end for end in below.interval), "%", 90.0, 50.0,
        ),
        "unit error": Claim(
            "it takes that much off a unit's error (median; held out, in place, W4A8)", "",
            -100 * change.value, low, high, "%", 25.0,
        ),
    }  # fmt: skip


def _line(found: Sequence[Result], metric: str) -> Result:
    """The latest of the whole method at W4A8 on the shipped model, units in place."""
    at = MODEL, "q-diffusion: whole", 4, 8, f"{metric} (in place)"
    for r in reversed(found):
        if (r.model, r.recipe, r.weights, r.activations, r.metric) == at:
            return r
    raise UnknownNameError(
        f"No line has {at[-1]} of Q-Diffusion at W4A8 on {MODEL}. Run "
        f"tests/benchmarks/reconstruction.py --out data/results/measured/{FILE}"
    )


def main() -> None:
    """Measure the shipped model and replace data/results/shortcut-checks."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
