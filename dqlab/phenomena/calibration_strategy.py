"""Measure what the notebook 1.1-calibration-strategy shows but has no time to compute.

    python -m dqlab.phenomena.calibration_strategy

writes data/results/calibration-strategy: some minutes on one core.
"""

from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.fit.profiles import JOINT
from dqlab.methods import quantize, recipe
from dqlab.methods.drawing import pick
from dqlab.methods.unet_calibration.eda_dm import EdaDm
from dqlab.metrics import mean_sqnr_db
from dqlab.models.families import Sampler, family_of
from dqlab.phenomena import calibration as cal
from dqlab.phenomena import stored
from dqlab.phenomena.bits import with_bits
from dqlab.phenomena.calibration_claims import CROSSED, METHODS, claims
from dqlab.phenomena.drift import activation_sites, branch_of, watchable
from dqlab.phenomena.ledger import claims_frame, powers_of
from dqlab.phenomena.verdicts import CLEAR_DB, Verdict
from dqlab.reference.eda_dm import allocate, density, pairwise_mse, variety
from dqlab.reference.ptq4dm import time_steps
from dqlab.trajectory import States, concatenate, record

NAME = "calibration-strategy"
COMMAND = "python -m dqlab.phenomena.calibration_strategy"
MODEL = "pixel-unet"
SOURCES = ("pure noise", "first steps", "clean images", "uniform", "ptq4dm", "eda-dm")
BLOCK, BLOCK_BITS = "mid_block.resnets.0", 3
"""The block that is shown, and the bits of its weights."""
ROUNDED = {"all steps": (8, 12), "noisy half": (8,), "clean half": (8,)}
"""Where states are rounded, and to how many bits."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        trajectories: recorded to pick from.
        samples: N, the states every source picks.
        held_out: trajectories behind every SQNR; the first `crossed` of them behind the matrix.
        pictures: gallery seeds behind every paired error, `kept` of them stored.
        compared: trajectories whose features EDA-DM compares.
        means, spreads: of PTQ4DM's distribution, tried in all pairs.
        blocks: learned one at a time, each twice.
        iterations: of each block reconstruction.
        sampler: the setting of everything.

    """

    trajectories: int = 32
    samples: int = 160
    held_out: int = 8
    crossed: int = CROSSED
    pictures: int = 32
    kept: int = 3
    compared: int = 16
    means: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    spreads: tuple[float, ...] = (0.0, 0.1, 0.4)
    blocks: tuple[str, ...] = (
        BLOCK,
        "mid_block.resnets.1",
        "down_blocks.2.resnets.0",
        "up_blocks.0.resnets.0",
    )
    iterations: int = 300
    sampler: Sampler = field(default_factory=Sampler)


@dataclass(frozen=True)
class Bench:
    """What all measurements share: recorded runs, and W8A8 that takes any ranges."""

    pipe: object
    plan: Plan
    states: States
    images: Tensor
    quantized: object
    reach: cal.Reach

    def with_ranges(self, ranges: pd.DataFrame):
        """W8A8 with these activation ranges."""
        return with_bits(self.quantized, 8, ranges)


def bench(pipe, plan: Plan | None = None) -> Bench:
    """Record the calibration runs and quantize once."""
    plan = plan or Plan()
    recorded = record(pipe, seeds.CALIBRATION[: plan.trajectories], plan.sampler)
    return bench_on(pipe, *recorded, plan)


def bench_on(pipe, states: States, images: Tensor, plan: Plan | None = None) -> Bench:
    """The same on runs that are recorded already, or on some of their steps."""
    plan = plan or Plan()
    q = quantize(pipe, "rtn", 8, 8, sampler=plan.sampler, calibration=states[:1])
    return Bench(pipe, plan, states, images, q, cal.reach(q, states, activation_sites(q)))


def sets(b: Bench) -> dict[str, States]:
    """The calibration states of every source; the methods choose for themselves.

    All have N states, or as many as there are: of one step alone from N trajectories, else from
    those of the bench, which take turns as the methods' do. Else the number of different
    trajectories would decide, for more of them reach further.
    """
    T = int(b.states.step.max()) + 1
    alone, images = _as_many_as_samples(b)
    early = max(1, T // 4)
    shares = {"first steps": early, "uniform": T}
    some = {
        name: pick(b.states, [b.plan.samples // k] * k, torch.Generator().manual_seed(0))
        for name, k in shares.items()
    }
    found = {
        "pure noise": alone[alone.step == 0],
        "first steps": some["first steps"],
        "clean images": cal.finished(alone, images),
        "uniform": some["uniform"],
    }
    for slug in METHODS:
        found[slug] = cal.picks_of(b.pipe, recipe(slug, samples=b.plan.samples), b.plan.sampler)
    return found


def _as_many_as_samples(b: Bench) -> tuple[States, Tensor]:
    """N trajectories and their pictures, those of the bench first."""
    more = seeds.CALIBRATION[b.plan.trajectories : b.plan.samples]
    if not more:
        return b.states, b.images
    states, images = record(b.pipe, more, b.plan.sampler)
    return concatenate([b.states, states]), torch.cat([b.images, images])


def ranges_on(b: Bench, chosen: States) -> pd.DataFrame:
    """Min-max of every site over a source's states, read with weights at 8 bits."""
    return cal.reach(b.quantized, chosen, b.reach.sites).over(slice(None))


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames and tensors of the notebook's stored results.

    Returns:
        Frames picks (`picked_frame`), powers (source, step, t, seed, signal, noise), pictures
        (source, seed, mse), matrix (ranges_from, step, timestep, db), normal (mu, sigma, step,
        timestep, db), drift (site, branch, step, absmax), eda (step, density, variety, count),
        path (`principal_path`), block (block and `block_errors`), rounded (when, bits, db; a row
        for each trajectory), outcomes; tensors exact `[kept, ...]`, made `[sources, kept, ...]`.

    """
    plan = plan or Plan()
    b = bench(pipe, plan)
    held_out, _ = record(pipe, seeds.HELD_OUT[: plan.held_out], plan.sampler)
    _, exact = record(pipe, seeds.GALLERY[: plan.pictures], plan.sampler)
    say("trajectories")
    chosen = sets(b)
    say("picks")
    frames = {"picks": cal.picked_frame(chosen), "drift": drift_frame(b)}
    frames["powers"], frames["pictures"], made = _sources(b, chosen, held_out, exact, say)
    frames["matrix"] = cross(b, first(held_out, plan.crossed))
    say("matrix")
    frames["normal"] = _normal(b, first(held_out, plan.crossed))
    frames["eda"], frames["path"] = _features(b)
    say("distributions")
    some = first(held_out, plan.crossed)
    parts = []
    for path in plan.blocks:
        found = block_frame(pipe, chosen["eda-dm"], some, plan.iterations, path)
        parts.append(found.assign(block=path))
        say(path)
    frames["block"] = pd.concat(parts, ignore_index=True)
    frames["rounded"] = _rounded(pipe, held_out)
    frames["outcomes"] = outcomes(frames)
    return frames, {"exact": stored.to_bytes(exact[: plan.kept]), "made": made}


def _rounded(pipe, held_out: States) -> pd.DataFrame:
    T = int(held_out.step.max()) + 1
    steps = {"noisy half": range(T // 2), "clean half": range(T // 2, T)}
    parts = []
    for when, widths in ROUNDED.items():
        for bits in widths:
            db = cal.rounded_states_db(pipe, held_out, bits, steps.get(when))
            parts.append(pd.DataFrame({"when": when, "bits": bits, "db": db.tolist()}))
    return pd.concat(parts, ignore_index=True)


def first(states: States, count: int) -> States:
    """The first `count` trajectories."""
    return states[torch.isin(states.seed, states.seed.unique()[:count])]


def drift_frame(b: Bench) -> pd.DataFrame:
    """Largest absolute value at each site and step: columns site, branch, step, absmax."""
    top = b.reach.absmax(b.states.step)
    rows = [
        (site, branch_of(site), step, float(top[i, step]))
        for i, site in enumerate(b.reach.sites)
        for step in range(top.shape[1])
    ]
    return pd.DataFrame(rows, columns=["site", "branch", "step", "absmax"])


def absmax_of(drift: pd.DataFrame) -> Tensor:
    """`drift_frame` as `[sites, T]`."""
    table = drift.pivot(index="site", columns="step", values="absmax")
    return torch.tensor(table.loc[drift["site"].unique()].to_numpy())


def _sources(b: Bench, chosen: dict[str, States], held_out: States, exact: Tensor, say):
    powers, errors, pictures = [], [], []
    for name, states in chosen.items():
        q = b.with_ranges(ranges_on(b, states))
        powers.append(powers_of(q, held_out).assign(source=name))
        made = family_of(q).run(q, b.plan.sampler, list(seeds.GALLERY[: b.plan.pictures]))
        mse = (made - exact).double().square().flatten(1).mean(1)
        seen = {"source": name, "seed": list(seeds.GALLERY[: len(mse)]), "mse": mse.tolist()}
        errors.append(pd.DataFrame(seen))
        pictures.append(stored.to_bytes(made[: b.plan.kept]))
        say(f"{name}: {mean_sqnr_db(powers[-1]):.2f} dB, paired {mse.median():.2e}")
    frames = (pd.concat(parts, ignore_index=True) for parts in (powers, errors))
    return *frames, torch.stack(pictures)


def cross(b: Bench, held_out: States, steps: list[int] | None = None) -> pd.DataFrame:
    """Ranges of one step used at all: columns ranges_from, step, timestep, db."""
    parts = []
    for k in range(int(b.states.step.max()) + 1) if steps is None else steps:
        q = b.with_ranges(b.reach.over(b.states.step == k))
        found = cal.per_step(powers_of(q, held_out).assign(source=""))
        parts.append(found.drop(columns="source").assign(ranges_from=k))
    return pd.concat(parts, ignore_index=True)


def _normal(b: Bench, held_out: States) -> pd.DataFrame:
    """PTQ4DM's distribution over all pairs of mean and spread, ranges from its draws."""
    T, rows = int(b.states.step.max()) + 1, []
    for mu in b.plan.means:
        for sigma in b.plan.spreads:
            generator = torch.Generator().manual_seed(0)
            t = time_steps(b.plan.samples, T, mu, sigma, generator)
            drawn = rows_at(b.states, (T - 1 - t).bincount(minlength=T).tolist(), generator)
            q = b.with_ranges(b.reach.over(drawn))
            table = cal.per_step(powers_of(q, held_out).assign(source=""))
            rows.append(table.drop(columns="source").assign(mu=mu, sigma=sigma))
    return pd.concat(rows, ignore_index=True)


def rows_at(states: States, n: list[int], generator: torch.Generator) -> Tensor:
    """n_k random rows of every step k, or all where there are fewer."""
    at = [(states.step == k).nonzero().flatten() for k in range(len(n))]
    drawn = [torch.randperm(len(rows), generator=generator) for rows in at]
    return torch.cat([rows[d[:count]] for rows, d, count in zip(at, drawn, n, strict=True)])


def _features(b: Bench) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What EDA-DM looks at: density, variety and counts by step, and the states' path."""
    method = EdaDm()
    F = method.features(cal.job_of(b.pipe, "eda-dm", b.plan.sampler), b.states, b.plan.compared)
    distances = pairwise_mse(F)
    r = float(distances[~torch.eye(len(F), dtype=torch.bool)].median())
    frame = pd.DataFrame(
        {
            "step": range(len(F)),
            "density": density(F, r).tolist(),
            "variety": (variety(F) / F[0].numel() * F.shape[2]).tolist(),
            "count": allocate(method.scores(F), b.plan.samples),
        }
    )
    return frame, cal.principal_path(F, b.states)


def block_frame(
    pipe, states: States, held_out: States, iterations: int, path: str = BLOCK
) -> pd.DataFrame:
    """One block's 3-bit weights learned with and without the losses of its inner layers.

    Returns:
        `block_errors` of "nearest", "block loss" and "with layer losses".

    """
    plain = replace(
        JOINT["teach"], iterations=iterations, step_lr=None, quantized_share=0.0, drop=0.0
    )
    fits = {"block loss": replace(plain, layer_weight=0.0), "with layer losses": plain}
    watched = watchable(pipe, states)
    return cal.block_errors(watched, states, held_out, path, BLOCK_BITS, fits)


def halves(rounded: pd.DataFrame) -> Verdict:
    """Which half of the run tolerates rounded states less, from the frame `rounded`."""
    eight = rounded[rounded["bits"] == 8].groupby("when")["db"].median()
    all_, noisy, clean = (eight[name] for name in ROUNDED)
    told = (
        f"States rounded to 8 bits leave the last one {all_:.1f} dB (median): {noisy:.1f} dB if "
        f"only those of the noisy half of the run are, {clean:.1f} dB if only those of the clean "
        "half are"
    )
    if noisy < clean - CLEAR_DB:
        return Verdict("noisy", f"{told}. Rounding near the noise does it.")
    if clean < noisy - CLEAR_DB:
        return Verdict("clean", f"{told}. What is rounded last is never repaired.")
    return Verdict("both", f"{told}. Both count alike.")


def ruins(pictures: pd.DataFrame) -> Verdict:
    """The question: whose ranges ruin the picture, by the median paired error.

    A source ruins it if its error is the largest of the single ones and 10 times uniform's.
    """
    medians = pictures.groupby("source", sort=False)["mse"].median()
    asked = medians[["pure noise", "first steps", "clean images"]]
    worst, base = asked.idxmax(), medians["uniform"]
    told = ", ".join(f"{name} {medians[name]:.2e}" for name in asked.index)
    told = f"Median paired squared error at W8A8: {told}; uniform {base:.2e}"
    if asked[worst] < 10 * base:
        return Verdict("none", f"{told}: none is ten times worse than uniform.")
    return Verdict(worst, f"{told}: {worst} ruins the picture most.")


def drifts(drift: pd.DataFrame) -> Verdict:
    """The phenomenon: R over sites, where the network stands on the decider axis."""
    top = absmax_of(drift)
    ratio = top.amax(1) / top.amin(1)
    middle, many = float(ratio.median()), float((ratio > 2).double().mean())
    told = f"R has median {middle:.2f} over {len(ratio)} sites; {100 * many:.0f} % exceed 2"
    if middle > 1.2 and many >= 0.1:
        return Verdict("holds", f"{told}: ranges drift.")
    return Verdict("weaker", f"{told}: ranges hardly drift.")


def outcomes(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What came of every claim, and of the question, from the other frames."""
    told = claims_frame(claims(frames))
    medians = frames["pictures"].groupby("source")["mse"].median()
    asked = ruins(frames["pictures"]).key
    told.loc[len(told)] = ["ruins", medians.max(), medians.min(), medians.max(), asked]
    return told


def main() -> None:
    """Measure the shipped model and replace data/results/calibration-strategy."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
