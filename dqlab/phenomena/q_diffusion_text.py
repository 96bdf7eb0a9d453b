"""Q-Diffusion's Stable Diffusion setting, measured on a text-to-image model with guidance.

    python -m dqlab.phenomena.q_diffusion_text

writes data/results/q-diffusion-text: a few minutes on one core. Two questions: which operand of an
attention suffers from few bits, so that the paper's script gives the softmax output 16; and which
steps and guidance branches a calibration set must have seen. Nothing is learned here.
"""

from dataclasses import dataclass, field, replace

import pandas as pd
import torch

from dqlab import seeds
from dqlab.layers import Policy, Rule
from dqlab.methods import quantize, recipe
from dqlab.methods.unet_shortcuts.q_diffusion import paper_policy
from dqlab.metrics import mean_sqnr_db
from dqlab.models.families import Sampler
from dqlab.phenomena import stored
from dqlab.phenomena.ledger import Claim, claims_frame, db_by_setting, gain_db, powers_of
from dqlab.phenomena.verdicts import Verdict
from dqlab.reference.q_diffusion import calibration_steps
from dqlab.trajectory import States, record

NAME = "q-diffusion-text"
COMMAND = "python -m dqlab.phenomena.q_diffusion_text"
MODEL = "latent-unet"
OPERANDS = {"q": "queries", "k": "keys", "v": "values", "p": "softmax output"}
PLAIN = {"search": False, "reconstruct": False}
"""Min-max ranges, so that a calibration set alone decides."""
EVEN = "evenly spread"
WINDOWS = ("first steps", "middle steps", "last steps")
ONE_BRANCH = "evenly spread, captions only"
MOVING = "evenly spread, moving ranges"
LIVE, LIVE_SEEDS = 4, 2
"""Calibration trajectories and held-out seeds of what a notebook measures again."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        trajectories, steps: n and m of the evenly spread set; windows have m steps too.
        held_out: trajectories behind every SQNR.
        operands: (operand, bits) that are quantized alone.
        softmax: bits of the softmax output inside the paper's policy, at weight bits `weights`.
        few: other m.
        sampler: the setting of everything.

    """

    trajectories: int = 16
    steps: int = 10
    held_out: int = 6
    operands: tuple[tuple[str, int], ...] = (
        *((operand, bits) for operand in OPERANDS for bits in (8, 4)), ("p", 16),
    )  # fmt: skip
    softmax: tuple[int, ...] = (16, 8)
    weights: tuple[int, ...] = (8, 4)
    few: tuple[int, ...] = (2,)
    sampler: Sampler = field(default_factory=Sampler)


def small(plan: Plan | None = None) -> Plan:
    """The plan of what a notebook measures again."""
    plan = plan or Plan()
    return replace(plan, trajectories=min(LIVE, plan.trajectories))


def recorded(pipe, plan: Plan | None = None) -> States:
    """The full-precision trajectories that calibration sets are taken from, all steps."""
    plan = plan or Plan()
    return record(pipe, seeds.CALIBRATION[: plan.trajectories], plan.sampler)[0]


def chosen(states: States, steps: list[int]) -> States:
    """The states of some sampler steps, all guidance branches."""
    return states[torch.isin(states.step, torch.tensor(steps))]


def windows(S: int, m: int) -> dict[str, list[int]]:
    """Of S steps m by name: evenly spread, and the first, middle and last ones."""
    starts = zip(WINDOWS, (0, (S - m) // 2, S - m), strict=True)
    return {EVEN: calibration_steps(S, m)} | {n: list(range(at, at + m)) for n, at in starts}


def sources(states: States, plan: Plan | None = None) -> dict[str, States]:
    """Calibration sets by name: even ones, windows of as many steps, and one branch alone."""
    plan = plan or Plan()
    S = plan.sampler.num_inference_steps
    steps = windows(S, plan.steps)
    steps |= {f"evenly spread, m = {few}": calibration_steps(S, few) for few in plan.few}
    found = {name: chosen(states, some) for name, some in steps.items()}
    even = found[EVEN]
    return found | {ONE_BRANCH: even[even.branch == int(even.branch.max())], MOVING: even}


def alone(operand: str, bits: int) -> Policy:
    """Everything in full precision but one operand of every attention."""
    rules = (Rule(f"*.{operand}", bits, OPERANDS[operand]), Rule("*", None, "full precision"))
    return Policy(f"{operand} alone", rules)


def operand_alone(pipe, operand: str, bits: int, calibration: States, plan: Plan | None = None):
    """The pipeline with one operand of every attention at some bits."""
    return _quantized(pipe, calibration, plan, policy=alone(operand, bits))


def with_softmax(
    pipe, weights: int, softmax: int, calibration: States, plan: Plan | None = None
):  # fmt: skip
    """The paper's policy for text-to-image models, its 16 softmax bits replaced."""
    policy = paper_policy(softmax)
    return _quantized(pipe, calibration, plan, weights=weights, policy=policy)


def calibrated_on(pipe, name: str, calibration: States, plan: Plan | None = None):
    """W8A8 with ranges from one of `sources`."""
    return _quantized(pipe, calibration, plan, running=name == MOVING)


def _quantized(pipe, calibration, plan, weights=8, policy="common", **options):
    made = recipe("q-diffusion", **PLAIN, **options)
    sampler = (plan or Plan()).sampler
    return quantize(
        pipe, made, weights, 8, sampler=sampler, calibration=calibration, policy=policy
    )


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames of the stored results; there are no tensors.

    Returns:
        Frames of error powers (step, t, seed, signal, noise) with columns for the setting:
        operands (operand, bits), policies (weights, softmax), sources (source, rows), live
        (setting, with the `small` plan).

    """
    plan = plan or Plan()
    states = recorded(pipe, plan)
    held_out, _ = record(pipe, seeds.HELD_OUT[: plan.held_out], plan.sampler)
    sets = sources(states, plan)
    even = sets[EVEN]
    frames: dict[str, list[pd.DataFrame]] = {"operands": [], "policies": [], "sources": []}

    def see(frame: str, q, **setting) -> None:
        frames[frame].append(powers_of(q, held_out).assign(**setting))
        say(f"{frame} {setting}: {mean_sqnr_db(frames[frame][-1]):.2f} dB")

    for operand, bits in plan.operands:
        q = operand_alone(pipe, operand, bits, even, plan)
        see("operands", q, operand=operand, bits=bits)
    for weights in plan.weights:
        for softmax in plan.softmax:
            q = with_softmax(pipe, weights, softmax, even, plan)
            see("policies", q, weights=weights, softmax=softmax)
    for name, part in sets.items():
        see("sources", calibrated_on(pipe, name, part, plan), source=name, rows=len(part))
    found = {name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()}
    found["live"] = again(pipe, plan)
    return found | {"outcomes": outcomes(found)}, {}


def again(pipe, plan: Plan | None = None) -> pd.DataFrame:
    """W8A8 from the last steps, and the softmax output alone at 4 bits, by `small` sets."""
    plan = small(plan)
    sets = sources(recorded(pipe, plan), plan)
    held_out, _ = record(pipe, seeds.HELD_OUT[:LIVE_SEEDS], plan.sampler)
    made = {
        "last steps": calibrated_on(pipe, "last steps", sets["last steps"], plan),
        "softmax": operand_alone(pipe, "p", 4, sets[EVEN], plan),
    }
    parts = [powers_of(q, held_out).assign(setting=name) for name, q in made.items()]
    return pd.concat(parts, ignore_index=True)


def operand_table(powers: pd.DataFrame) -> pd.DataFrame:
    """Mean SQNR with one operand quantized: columns operand, bits, db, low, high."""
    return db_by_setting(powers, ["operand", "bits"])


def source_table(powers: pd.DataFrame) -> pd.DataFrame:
    """Mean SQNR by calibration set and what it gains on the even one.

    Returns:
        Columns source, rows, db, gain, low, high (95 %, paired over seeds), worst (the least mean
        over seeds at one step).

    """
    even, rows = powers[powers["source"] == EVEN], []
    for (source, count), part in powers.groupby(["source", "rows"], sort=False):
        gain = (0.0, 0.0, 0.0) if source == EVEN else gain_db(even, part)
        worst = min(mean_sqnr_db(one) for _, one in part.groupby("step"))
        rows.append((source, count, mean_sqnr_db(part), *gain, worst))
    return pd.DataFrame(rows, columns=["source", "rows", "db", "gain", "low", "high", "worst"])


def softmax_gain(powers: pd.DataFrame, weights: int) -> Verdict:
    """Whether 16 softmax bits help against 8, all else by the paper's policy."""
    part = powers[powers["weights"] == weights]
    pair = [part[part["softmax"] == bits] for bits in (8, 16)]
    gain, low, high = gain_db(*pair)
    told = f"W{weights}A8, softmax in 16 bits for 8: {gain:+.2f} dB [{low:+.2f}, {high:+.2f}]"
    if low > CLEAR_DB:
        return Verdict("helps", f"{told}, it helps.")
    return Verdict("nothing", f"{told}, no clear gain beside the other errors.")


def costliest(table: pd.DataFrame, bits: int) -> Verdict:
    """Which operand costs most alone, from `operand_table`."""
    ranked = table[table["bits"] == bits].sort_values("db")
    worst, second = (ranked.iloc[i] for i in range(2))
    key = "softmax" if worst["operand"] == "p" else "other"
    return Verdict(
        key,
        f"At {bits} bits most is lost with the {OPERANDS[worst['operand']]}: {worst['db']:.1f} dB "
        f"alone, {second['db'] - worst['db']:.1f} dB below the {OPERANDS[second['operand']]}.",
    )


def windows_verdict(table: pd.DataFrame) -> Verdict:
    """Whether evenly spread steps beat every window, from `source_table`."""
    rows = table[table["source"].isin(WINDOWS)]
    told = {r["source"]: f"{r['source']} {r['gain']:+.1f} dB" for r in rows.to_dict("records")}
    words = f"Against evenly spread steps: {', '.join(told.values())}"
    worse = rows[rows["high"] < -CLEAR_DB]["source"].tolist()
    if len(worse) == len(rows):
        return Verdict("reproduces", f"{words}. Every window is worse.")
    if worse:
        return Verdict("weaker", f"{words}. Clearly worse: {', '.join(worse)} alone.")
    return Verdict("absent", f"{words}. No window is clearly worse.")


def claims(sources: pd.DataFrame) -> dict[str, Claim]:
    """Q-Diffusion's claims about its calibration set, from error powers by source."""
    even = sources[sources["source"] == EVEN]
    return {
        name: Claim(
            f"evenly spread steps beat the {name} alone (eps, W8A8, latent-unet)",
            "better (figure)", *gain_db(sources[sources["source"] == name], even), "dB", CLEAR_DB,
        )
        for name in WINDOWS
    }  # fmt: skip


def outcomes(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What came of every claim: columns name, measured, low, high, outcome."""
    return claims_frame(claims(frames["sources"]))


CLEAR_DB = 0.1
"""A gain whose interval begins below this is none to speak of."""


def main() -> None:
    """Measure the shipped model and replace data/results/q-diffusion-text."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
