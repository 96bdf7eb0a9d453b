"""`compare`: a quantized pipeline beside its original, on held-out trajectories."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from dqlab import seeds
from dqlab.errors import InvalidInputError
from dqlab.layers.policy import policy_from_dict
from dqlab.methods import describe, quantize
from dqlab.methods.corrected import prediction_correction
from dqlab.methods.recipe import title
from dqlab.methods.record import architecture
from dqlab.metrics import (
    Cost,
    PairedError,
    bootstrap_mean_sqnr_db,
    cost,
    error_powers,
    mean_sqnr_db,
    paired_error,
    sqnr_per_step,
)
from dqlab.models.families import Family, Sampler, family_of
from dqlab.trajectory import States, record


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found. Displays as pictures and a table; `to_dict` gives the numbers.

    Attributes:
        info: how the pipeline was quantized.
        sampler: the setting both pipelines ran with.
        powers: signal and error power per (step, seed).
        rtn_sqnr_db_mean: plain rounding at the same bits and policy; None unless asked for.
        paired: image error per pair and flips.
        cost: computed size and bit-operations.
        reference, images: `[N, 3, H, W]` in [0, 1], same seeds.

    """

    info: dict[str, Any]
    sampler: Sampler
    powers: pd.DataFrame
    rtn_sqnr_db_mean: float | None
    paired: PairedError
    cost: Cost
    reference: Tensor
    images: Tensor

    @property
    def sqnr_db_mean(self) -> float:
        """Mean over steps of the noise prediction's SQNR, dB."""
        return mean_sqnr_db(self.powers)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, JSON-able; None stands for the infinite SQNR of an exact answer."""
        low, high = self.paired.interval()
        return {
            "method": title(self.info["recipe"]),
            "weights": self.info["weights"],
            "activations": self.info["activations"],
            "policy": self.info["policy"]["name"],
            "sampler": dict(vars(self.sampler)),
            "num_seeds": len(self.images),
            "sqnr_db_mean": _finite(self.sqnr_db_mean),
            "sqnr_db_interval": [_finite(x) for x in bootstrap_mean_sqnr_db(self.powers)],
            "rtn_sqnr_db_mean": _finite(self.rtn_sqnr_db_mean),
            "sqnr_db_per_step": [_finite(x) for x in sqnr_per_step(self.powers)["sqnr_db"]],
            "image_mse_median": self.paired.median,
            "image_mse_median_interval": [low, high],
            "flips": self.paired.flips,
            "megabytes_computed": self.cost.bytes / 1e6,
            "megabytes_full": self.cost.full_bytes / 1e6,
            "bit_ops_computed": self.cost.bit_ops,
            "bit_ops_full": self.cost.full_bit_ops,
            "macs": self.cost.macs,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, for people."""
        found = self.to_dict()
        low, high = bootstrap_mean_sqnr_db(self.powers)
        worst = sqnr_per_step(self.powers).nsmallest(1, "sqnr_db").iloc[0]
        rows = [
            ("method", f"{found['method']}, W{found['weights']} A{found['activations']}"),
            ("noise SQNR, mean over steps", f"{self.sqnr_db_mean:.1f} dB [{low:.1f}, {high:.1f}]"),
            ("worst step", f"{worst.sqnr_db:.1f} dB at step {worst.step:.0f}, t = {worst.t:.0f}"),
            ("image MSE, median of pairs", f"{self.paired.median:.4f}"),
            ("flips", ", ".join(f"{k} {v:.0%}" for k, v in self.paired.flips.items())),
            (
                "size, computed",
                f"{self.cost.bytes / 1e6:.2f} of {self.cost.full_bytes / 1e6:.2f} MB",
            ),
            ("bit-operations", f"{self.cost.bit_ops:.3g} of {self.cost.full_bit_ops:.3g} a call"),
        ]
        if self.rtn_sqnr_db_mean is not None:
            rows.insert(2, ("plain rounding, same bits", f"{self.rtn_sqnr_db_mean:.1f} dB"))
        return rows

    def __str__(self) -> str:
        return "\n".join(f"{label:28} {value}" for label, value in self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from dqlab.show import image_grid

        count = min(8, len(self.images))
        grid = image_grid(
            {"full precision": self.reference[:count], "quantized": self.images[:count]},
            value_range=(0, 1),
        )
        cells = "".join(f"<tr><th>{a}</th><td>{b}</td></tr>" for a, b in self.rows())
        return f"{grid.html()}<table>{cells}</table>"


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def compare(
    pipe,
    quantized,
    *,
    num_seeds: int = 16,
    sampler: Sampler | dict[str, Any] | None = None,
    baseline: bool = False,
) -> Comparison:
    """Compare a quantized pipeline with its original on held-out trajectories.

    Args:
        pipe: the full-precision pipeline.
        quantized: what `quantize` made of it.
        num_seeds: how many held-out seeds; the first ones of `dqlab.seeds.HELD_OUT`.
        sampler: default: the setting the quantized pipeline was made for.
        baseline: also quantize with plain rounding at the same bits and report its SQNR.

    Raises:
        InvalidInputError: if `quantized` is not quantized, or is of another architecture.
        NotApplicableError: if it is corrected by what depends on a whole run, so that no SQNR on
            given states exists.

    """
    info, family = _checked(pipe, quantized, num_seeds)
    chosen = Sampler.of(sampler or info["sampler"])
    held_out = list(seeds.HELD_OUT[:num_seeds])
    states, reference = record(pipe, held_out, chosen)
    images = family.run(quantized, chosen, held_out)
    network = family.denoiser(quantized)
    return Comparison(
        info=info,
        sampler=chosen,
        powers=error_powers(states, network, correct=prediction_correction(quantized)),
        rtn_sqnr_db_mean=_plain_sqnr(pipe, info, states) if baseline else None,
        paired=paired_error(reference, images),
        cost=cost(network, states),
        reference=reference,
        images=images,
    )


def _checked(pipe, quantized, num_seeds: int) -> tuple[dict[str, Any], Family]:
    if not (info := describe(quantized)):
        raise InvalidInputError("The second pipeline is not quantized; pass quantize(pipe, ...).")
    if describe(pipe):
        raise InvalidInputError("The first pipeline is quantized; pass the full-precision one.")
    if not isinstance(quantized, type(pipe)):
        raise InvalidInputError(
            f"Cannot compare a {type(pipe).__name__} with a {type(quantized).__name__}."
        )
    family = family_of(pipe)
    if architecture(family.denoiser(pipe)) != architecture(family.denoiser(quantized)):
        raise InvalidInputError(
            "The two pipelines hold networks of different architecture; pass the pipeline that "
            "the second one was quantized from."
        )
    if not isinstance(num_seeds, int) or not 2 <= num_seeds <= len(seeds.HELD_OUT):
        raise InvalidInputError(f"num_seeds={num_seeds}; choose 2 to {len(seeds.HELD_OUT)}.")
    return info, family


def _plain_sqnr(pipe, info: dict[str, Any], states: States) -> float:
    """Mean SQNR of plain rounding at the same bits, policy and sampler."""
    plain = quantize(
        pipe,
        "rtn",
        info["weights"],
        info["activations"],
        sampler=info["sampler"],
        policy=policy_from_dict(info["policy"]),
    )
    return mean_sqnr_db(error_powers(states, family_of(pipe).denoiser(plain)))
