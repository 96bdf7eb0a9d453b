"""What `compare` found about one quantized pipeline."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from dqlab.compare.entry import Entry, finite
from dqlab.methods.recipe import title
from dqlab.metrics import (
    Cost,
    PairedError,
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    bootstrap_ratio,
    mean_sqnr_db,
    sqnr_intervals,
    summarise_artefacts,
    wilson,
)
from dqlab.models.families import Sampler

BASELINE = "plain rounding"
BIT_OPS = "sum over products of MACs x bits of one operand x bits of the other, per call"
SIZE = "computed from codes and scales"
FRECHET = "on dqlab's own classifier features: not FID; mean +- 2 standard errors"


@dataclass(frozen=True)
class Frechet:
    """Frechet distance to training pictures on the attribute classifier's features (not FID).

    Attributes:
        distance, error: of the quantized pipeline, with its standard error.
        full, full_error: of the full-precision one.
        floor: of as many real test pictures.
        samples: how many pictures each.

    """

    distance: float
    error: float
    full: float
    full_error: float
    floor: float
    samples: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found. Displays as pictures, a curve and a table; `to_dict` has the numbers.

    Attributes:
        label: method and bits, for people.
        info: how the pipeline was quantized.
        sampler: the setting both pipelines ran with.
        seeds: the held-out trajectories.
        powers: signal and error power per (step, seed); None where no SQNR exists.
        absent: why there is none.
        baseline: plain rounding at the same bits and policy; None unless asked for.
        paired: image error per pair and flips.
        artefacts: the survey's kinds of damage, a row per pair.
        fidelity: agreement with the prompt, {"full", "quantized"} -> shares; None without prompts.
        frechet: None unless asked for.
        cost: computed size and bit-operations.
        reference, images: `[N, 3, H, W]` in [0, 1], same seeds.

    """

    label: str
    info: dict[str, Any]
    sampler: Sampler
    seeds: list[int]
    powers: pd.DataFrame | None
    absent: str
    baseline: "Comparison | None"
    paired: PairedError
    artefacts: pd.DataFrame
    fidelity: dict[str, dict[str, float]] | None
    frechet: Frechet | None
    cost: Cost
    reference: Tensor
    images: Tensor

    @property
    def sqnr_db_mean(self) -> float | None:
        """Mean over steps of the noise prediction's SQNR, dB; None where none exists."""
        return None if self.powers is None else mean_sqnr_db(self.powers)

    @property
    def rtn_sqnr_db_mean(self) -> float | None:
        """The same of plain rounding; None unless `compare` was asked for a baseline."""
        return self.baseline.sqnr_db_mean if self.baseline else None

    def steps(self) -> pd.DataFrame:
        """SQNR per step with its interval: columns step, t, sqnr_db, low, high; may be empty."""
        if self.powers is None:
            return pd.DataFrame(columns=["step", "t", "sqnr_db", "low", "high"])
        return sqnr_intervals(self.powers)

    def gain(self) -> Entry | None:
        """Gain over the baseline: in SQNR, or as a ratio of image errors where there is none."""
        if (plain := self.baseline) is None:
            return None
        if self.powers is None or plain.powers is None:
            return image_ratio(self, plain, f"image MSE over that of {BASELINE}")
        return sqnr_gain(self, plain, f"gain over {BASELINE}")

    def entries(self) -> list[Entry]:
        """All measurements, in the order of the table."""
        return [
            *self._of_noise(), *self._of_images(), *self._of_prompts(), *self._of_frechet(),
            *self._of_cost(),
        ]  # fmt: skip

    def _of_noise(self) -> list[Entry]:
        label = "noise SQNR, mean over steps"
        rows = [Entry(label, None, note=self.absent)]
        if self.powers is not None:
            worst = self.steps().nsmallest(1, "sqnr_db").iloc[0]
            where = f"step {worst.step:.0f}, t = {worst.t:.0f}"
            rows = [
                Entry(label, self.sqnr_db_mean, *bootstrap_mean_sqnr_db(self.powers), "dB"),
                Entry("worst step", worst.sqnr_db, worst.low, worst.high, "dB", where),
            ]
        if (plain := self.baseline) is not None and plain.powers is not None:
            interval = bootstrap_mean_sqnr_db(plain.powers)
            rows.append(Entry(f"{BASELINE}, same bits", plain.sqnr_db_mean, *interval, "dB"))
        gain = self.gain()
        return rows if gain is None else [*rows, gain]

    def _of_images(self) -> list[Entry]:
        rows = [
            Entry(
                "image MSE, median of pairs",
                self.paired.median,
                *self.paired.interval(),
                note="final pictures of the same seeds, values in [0, 1]",
            )
        ]
        for head, share in self.paired.flips.items():
            flipped = self.paired.flip_interval(head)
            rows.append(Entry(f"flips: {head}", share, *flipped, "share", "read differently"))
        for row in summarise_artefacts(self.artefacts).itertuples():
            name, copy = f"{row.artefact}, {row.how}", f"a copy gives {row.of_a_copy:g}"
            rows.append(Entry(name, row.median, row.low, row.high, note=copy))
        return rows

    def _of_prompts(self) -> list[Entry]:
        if self.fidelity is None:
            return []
        ours, full = self.fidelity["quantized"], self.fidelity["full"]
        count = len(self.seeds)
        return [
            Entry(
                f"prompt shown: {head}", share, *wilson(share, count), "share",
                f"full precision: {100 * full[head]:.0f} %",
            )
            for head, share in ours.items()
        ]  # fmt: skip

    def _of_frechet(self) -> list[Entry]:
        if (f := self.frechet) is None:
            return []
        told = f"{FRECHET}; {f.samples} pictures; as many test pictures: {f.floor:.3g}"
        pairs = {"": (f.distance, f.error), ", full precision": (f.full, f.full_error)}
        return [
            Entry(f"Frechet distance{name}", d, d - 2 * e, d + 2 * e, note=told)
            for name, (d, e) in pairs.items()
        ]

    def _of_cost(self) -> list[Entry]:
        cost = self.cost
        return [
            Entry(
                "size", cost.bytes / 1e6, unit="MB",
                note=f"of {cost.full_bytes / 1e6:.2f} MB; {SIZE}",
            ),
            Entry(
                "bit-operations", cost.bit_ops, unit="bit-ops",
                note=f"of {cost.full_bit_ops:.3g}; {BIT_OPS}",
            ),
        ]  # fmt: skip

    def finding(self) -> str:
        """The result in one sentence."""
        first, gain = self.entries()[0], self.gain()
        told = f"{self.label}: no SQNR ({self.absent.rstrip('.')})"
        if first.value is not None:
            told = f"{self.label}: predicted noise at {first.text} {first.interval} over the steps"
        if gain is not None:
            told += f", {gain.measure} {gain.text} {gain.interval}"
        error = Entry("", self.paired.median, *self.paired.interval())
        return f"{told}; pictures differ by a median MSE of {error.text} {error.interval}."

    def to_frame(self) -> pd.DataFrame:
        """Rows measure, value, low, high, unit, note."""
        return pd.DataFrame([vars(e) for e in self.entries()])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, JSON-able; None stands for an infinite or absent one."""
        found = {
            "method": title(self.info["recipe"]),
            "weights": self.info["weights"],
            "activations": self.info["activations"],
            "policy": self.info["policy"]["name"],
            "sampler": dict(vars(self.sampler)),
            "num_seeds": len(self.seeds),
        }
        return found | self._noise_numbers() | self._image_numbers() | self._cost_numbers()

    def _noise_numbers(self) -> dict[str, Any]:
        steps, gain = self.steps(), self.gain()
        interval = (None, None) if self.powers is None else bootstrap_mean_sqnr_db(self.powers)
        return {
            "sqnr_db_mean": finite(self.sqnr_db_mean),
            "sqnr_db_interval": [finite(x) for x in interval],
            "sqnr_absent": self.absent or None,
            "sqnr_db_per_step": [finite(x) for x in steps["sqnr_db"]],
            "sqnr_db_per_step_interval": [
                [finite(low), finite(high)]
                for low, high in zip(steps["low"], steps["high"], strict=True)
            ],
            "rtn_sqnr_db_mean": finite(self.rtn_sqnr_db_mean),
            "over_rtn": gain and {
                "measure": gain.measure, "value": finite(gain.value),
                "interval": [finite(gain.low), finite(gain.high)], "unit": gain.unit,
            },
        }  # fmt: skip

    def _image_numbers(self) -> dict[str, Any]:
        damage = summarise_artefacts(self.artefacts).set_index("measure")
        return {
            "image_mse_median": self.paired.median,
            "image_mse_median_interval": list(self.paired.interval()),
            "flips": self.paired.flips,
            "flip_intervals": {h: list(self.paired.flip_interval(h)) for h in self.paired.flips},
            "artefacts": {
                name: {"median": row["median"], "interval": [row["low"], row["high"]]}
                for name, row in damage.iterrows()
            },
            "colour_shift_signed": {
                name: float(self.artefacts[name].mean()) for name in ("red", "green", "blue")
            },
            "prompt_fidelity": self.fidelity,
            "frechet_own_features": self.frechet and dict(vars(self.frechet)),
        }  # fmt: skip

    def _cost_numbers(self) -> dict[str, Any]:
        return {
            "megabytes_computed": self.cost.bytes / 1e6,
            "megabytes_full": self.cost.full_bytes / 1e6,
            "bit_ops_computed": self.cost.bit_ops,
            "bit_ops_full": self.cost.full_bit_ops,
            "bit_ops_definition": BIT_OPS,
            "macs": self.cost.macs,
        }

    def __str__(self) -> str:
        from dqlab.compare.plain import comparison_text

        return comparison_text(self)

    __repr__ = __str__

    def __rich__(self) -> Any:
        from dqlab.compare.plain import comparison_table

        return comparison_table(self)

    def _repr_html_(self) -> str:
        from dqlab.compare.page import comparison_page

        return comparison_page(self)


def sqnr_gain(ours: Comparison, theirs: Comparison, name: str) -> Entry:
    """Gain in mean SQNR with the interval of the paired difference; both must have one."""
    gain = ours.sqnr_db_mean - theirs.sqnr_db_mean if ours.powers is not theirs.powers else 0.0
    return Entry(name, gain, *bootstrap_gain_db(ours.powers, theirs.powers), "dB")


def image_ratio(ours: Comparison, theirs: Comparison, name: str) -> Entry:
    """Ratio of the median image errors, below 1 is better, with its paired interval."""
    ratio = ours.paired.median / theirs.paired.median if theirs.paired.median else float("inf")
    return Entry(name, ratio, *bootstrap_ratio(ours.paired.mse, theirs.paired.mse), "x")
