"""Measure what finding a range at run time costs, for the notebook 1.3-dynamic-quantization.

    python -m dqlab.phenomena.run_time_ranges

writes data/results/run-time-ranges: seconds. One tensor of the model is rounded with a static
range, with a table's row for the whole batch (a sampler's case), with a row looked up for every
sample (the simulator's, whose samples may stand at different steps), and with extremes read just
then, in turn. Only rounding is timed, simulated in floating point, in processor time, which other
work on the machine hardly changes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.fit import capture
from dqlab.formats import Affine, Range
from dqlab.layers import Quantizer, StepContext
from dqlab.models.families import Sampler, family_of
from dqlab.phenomena import stored
from dqlab.phenomena.ledger import Claim, claims_frame
from dqlab.ranges import min_max
from dqlab.trajectory import record

NAME = "run-time-ranges"
COMMAND = "python -m dqlab.phenomena.run_time_ranges"
MODEL = "pixel-unet"
KINDS = ("static", "table", "table, by sample", "run time")
STEPS = 20


@dataclass(frozen=True)
class Plan:
    """How much to measure: rows of the tensor, rounds, calls in each, the sampler.

    A round's time is that of its quickest call: other work on the machine only ever adds.
    """

    rows: int = 32
    rounds: int = 60
    calls: int = 5
    sampler: Sampler = field(default_factory=Sampler)


def rounder(kind: str, x: Tensor) -> Callable[[Tensor], Tensor]:
    """A quantizer of 8 bits whose range is static, looked up by step, or measured."""
    context = StepContext()
    context.bind(torch.arange(STEPS - 1, -1, -1.0))
    context.at(torch.full((len(x),), 3.0, dtype=torch.float64))
    quantizer = Quantizer("a.input", context)
    quantizer.format = Affine(8)
    one = min_max(x, quantizer.format)
    if kind == "static":
        quantizer.set_range(one)
    elif kind == "run time":
        quantizer.measure("sample")
    else:
        rows = (v.reshape(1).expand(STEPS).clone() for v in (one.scale, one.zero_point))
        quantizer.set_range(Range(*rows), per_step=True)
    return partial(_at_one_step, quantizer) if kind == "table" else quantizer


def _at_one_step(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Round a batch that stands at one step as a whole: one row of the table serves it."""
    row = int((quantizer.context.schedule == quantizer.context.timestep[0]).nonzero())
    own = Range(quantizer.scale[row], quantizer.zero_point[row])
    return quantizer.format.fake_quant(x, own)


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """Frame times (round, kind, values, milliseconds) and outcomes; no tensors."""
    plan = plan or Plan()
    x = widest(pipe, plan)
    rounders, rows = {kind: rounder(kind, x) for kind in KINDS}, []
    for round_ in range(-1, plan.rounds):
        for kind, quantizer in rounders.items():
            took = min(_milliseconds(quantizer, x) for _ in range(plan.calls))
            if round_ >= 0:  # the first round only warms up
                rows.append((round_, kind, x.numel(), took))
    times = pd.DataFrame(rows, columns=["round", "kind", "values", "milliseconds"])
    say(f"{x.numel()} values, {plan.rounds} rounds")
    return {"times": times, "outcomes": outcomes({"times": times})}, {}


def _milliseconds(quantizer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    started = time.process_time()
    quantizer(x)
    return 1e3 * (time.process_time() - started)


def widest(pipe, plan: Plan) -> Tensor:
    """What the last up block's first residual block is asked, `[rows, C, H, W]`."""
    steps = plan.sampler.num_inference_steps
    states, _ = record(pipe, seeds.CALIBRATION[: -(-plan.rows // steps)], plan.sampler)
    denoiser = family_of(pipe).denoiser(pipe)
    path = f"up_blocks.{len(denoiser.up_blocks) - 1}.resnets.0"
    seen = capture(denoiser, [path], states[: plan.rows], outputs=False)[path]
    return seen.leaves[0].contiguous()


def ratios(times: pd.DataFrame) -> pd.DataFrame:
    """Columns kind, ratio, low, high: time over the static one's of the same round.

    The median, and the quartiles.
    """
    wide = times.pivot(index="round", columns="kind", values="milliseconds")
    quarters = wide.div(wide["static"], axis=0).quantile([0.5, 0.25, 0.75])
    return pd.DataFrame([(kind, *quarters[kind]) for kind in KINDS],
                        columns=["kind", "ratio", "low", "high"])  # fmt: skip


def claims(times: pd.DataFrame) -> dict[str, Claim]:
    """What run-time ranges and tables cost, with the margins they are judged by."""
    rows = ratios(times).set_index("kind")[["ratio", "low", "high"]]
    speed = 1 / rows.loc["table", ["ratio", "high", "low"]]
    return {
        "slower": Claim(
            "rounding with a range found at run time takes longer than with a static one "
            "(median and quartiles)", "", *rows.loc["run time"], "×", 1.3, 1.0,
        ),
        "table": Claim(
            "with a table's row for a batch at one step it is as fast as with a static range "
            "(median and quartiles)",
            "no overhead", *speed, "×", 0.9, 0.8,
        ),
    }  # fmt: skip


def outcomes(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What came of both claims: columns name, measured, low, high, outcome."""
    return claims_frame(claims(frames["times"]))


def main() -> None:
    """Measure the shipped model and replace data/results/run-time-ranges."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
