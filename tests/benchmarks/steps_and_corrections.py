"""TDQ's step sizes and PTQD's correction against their own baselines; prints a table.

    python tests/benchmarks/steps_and_corrections.py --bits 4:8 4:4 --eta 0 1 --out FILE

TDQ's baseline is its own grid with the one step size per site that has the least error over all
steps; PTQD's is the same network uncorrected. All share sites, bits, policy and calibration set.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from dqlab import describe, seeds
from dqlab.methods import load, quantize, recipe
from dqlab.methods.corrected import prediction_correction
from dqlab.methods.recipe import Recipe
from dqlab.metrics import (
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    bootstrap_ratio,
    error_powers,
    mean_sqnr_db,
    paired_error,
)
from dqlab.metrics.results import Result, append
from dqlab.models.families import Sampler, family_of
from dqlab.trajectory import record


def networks(eta: float, bits: tuple[int, int]) -> dict[str, tuple[Recipe, tuple[str, ...]]]:
    """Name -> (recipe, names of its baselines), in the order to measure."""
    found = {
        "rtn": (recipe("rtn"), ()),
        "tdq-static": (recipe("tdq", steps="static"), ("rtn",)),
        "tdq": (recipe("tdq"), ("rtn", "tdq-static")),
        "rtn | ptqd": (recipe("ptqd"), ("rtn",)),
    }
    if eta == 0 and bits == (4, 8):
        base = recipe("q-diffusion", reconstruct=False)
        found["q-diffusion ranges"] = base, ("rtn",)
        found["q-diffusion ranges | ptqd"] = base | recipe("ptqd"), ("rtn", "q-diffusion ranges")
    return found


class Bench:
    """One sampler setting: the full-precision side, and what is measured against it."""

    def __init__(self, model: str, eta: float, count: int):
        self.model, self.pipe, self.sampler = model, load(model), Sampler(eta=eta)
        self.seeds = seeds.HELD_OUT[:count]
        self.family = family_of(self.pipe)
        self.states, self.reference = record(self.pipe, self.seeds, self.sampler)

    def run(self, bits: tuple[int, int]) -> Iterator[list[Result]]:
        """Every network at one pair of bit-widths, one after another."""
        seen = {}
        for name, (chosen, baselines) in networks(self.sampler.eta, bits).items():
            q = quantize(self.pipe, chosen, *bits, sampler=self.sampler)
            correct = prediction_correction(q)
            powers = error_powers(self.states, self.family.denoiser(q), correct=correct)
            images = self.family.run(q, self.sampler, list(self.seeds))
            seen[name] = powers, paired_error(self.reference, images)
            yield self.rows(name, describe(q), bits, seen, baselines)

    def rows(self, name, info, bits, seen, baselines) -> list[Result]:
        """Print one line and return its records."""
        powers, paired = seen[name]
        found = [
            ("eps_sqnr_db", "dB", mean_sqnr_db(powers), bootstrap_mean_sqnr_db(powers), None),
            ("image_mse_median", "", paired.median, paired.interval(), None),
        ]
        for other in baselines:
            theirs, pairs = seen[other]
            gain = mean_sqnr_db(powers) - mean_sqnr_db(theirs)
            low_high = bootstrap_gain_db(powers, theirs)
            ratio = float(paired.mse.median() / pairs.mse.median())
            interval = bootstrap_ratio(paired.mse, pairs.mse)
            found += [
                ("eps_sqnr_gain_db", "dB", gain, low_high, other),
                ("image_mse_median_ratio", "", ratio, interval, other),
            ]
        print(f"eta {self.sampler.eta:g} W{bits[0]}A{bits[1]} {name}")
        for metric, unit, value, (low, high), other in found:
            tail = f" over {other}" if other else ""
            print(f"    {metric:24} {value:.4g} [{low:.4g}, {high:.4g}] {unit}{tail}", flush=True)
        measured = ("metric", "unit", "value", "interval", "against")
        common = {"recipe": name, "seeds": (self.seeds[0], len(self.seeds))}
        return [
            Result.of(self.model, info, **common, **dict(zip(measured, row, strict=True)))
            for row in found
        ]


def main() -> None:
    """Measure every combination asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pixel-unet")
    parser.add_argument("--bits", nargs="+", default=["4:8"], help="weights:activations")
    parser.add_argument("--eta", type=float, nargs="+", default=[0.0])
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for eta in given.eta:
        bench = Bench(given.model, eta, given.held_out)
        for pair in given.bits:
            for rows in bench.run(tuple(int(b) for b in pair.split(":"))):
                if given.out:  # at once, so that what is measured survives an interrupt
                    append(given.out, rows)


if __name__ == "__main__":
    main()
