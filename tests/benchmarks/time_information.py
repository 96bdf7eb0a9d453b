"""TFMQ-DM and QVD against their own baselines, part by part; prints lines, appends results.

    python tests/benchmarks/time_information.py --model latent-unet --parts features --out FILE

features    the time path alone: what TIAR and ranges by step do to its features; no pictures
trajectory  only the time path quantized: how far latents end from where they should
ablation    {nearest, TIAR} x {one range, by step on the path, by step everywhere}: eps-SQNR
freeze      block reconstruction with and without the time projections
grids       QVD's candidates for time features, by TDScore and by SQNR
channels    SCRI layer by layer: SQNR of outputs without it, at fixed alpha, and at each
            layer's best with hindsight
qvd         min-max, HTDQ, SCRI, both, and TFMQ-DM's ranges by step: eps-SQNR
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dqlab import describe, seeds
from dqlab.fit.profiles import ROUNDING
from dqlab.methods import load, quantize, recipe
from dqlab.metrics import (
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    error_powers,
    mean_sqnr_db,
)
from dqlab.metrics.results import Result, append
from dqlab.models.families import Sampler, family_of
from dqlab.phenomena import clock
from dqlab.reference import qvd, tfmq_dm
from dqlab.trajectory import record

CALIBRATED = 4
"""Calibration trajectories, the same for every arm."""
HELD = 4
FREEZE = {"iterations": 100, "batch": 16, "rounding_lr": 0.05}
"""A third of the usual updates at a higher rate, for both arms alike."""


class Bench:
    """One shipped model, its calibration set and held-out trajectories."""

    def __init__(
        self, model: str, held_out: int, bits: list[tuple[int, ...]], arms: list[str] = ()
    ):
        self.model, self.pipe, self.sampler = model, load(model), Sampler()
        self.bits, self.arms = bits, arms
        self.family = family_of(self.pipe)
        self.calibration = record(self.pipe, seeds.CALIBRATION[:CALIBRATED])[0]
        self.held = seeds.HELD_OUT[:held_out]
        self.net = self.family.denoiser(self.pipe)
        self.states = None

    def recorded(self):
        """Held-out states and pictures, made when first asked for."""
        if self.states is None:
            self.states = record(self.pipe, self.held, self.sampler)
        return self.states

    def quantized(self, chosen, bits, **more):
        """A quantized pipeline, calibrated as all others."""
        return quantize(self.pipe, chosen, *bits, calibration=self.calibration, **more)

    def result(self, q, name, metric, unit, value, interval=None, against=None) -> Result:
        """One line, printed too."""
        info = describe(q)
        ends = "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
        tail = f" over {against}" if against else ""
        bits = f"W{info['weights']}A{info['activations']}"
        print(f"{self.model} {bits} {name}: {metric} {value:.4g}{ends} {unit}{tail}", flush=True)
        return Result.of(
            self.model, info, recipe=name, metric=metric, unit=unit, value=value,
            interval=interval, against=against, seeds=(self.held[0], len(self.held)),
        )  # fmt: skip

    # -- the time path alone -------------------------------------------------------------------

    def features(self) -> Iterator[list[Result]]:
        """Weights first, on the sampler's steps among all 1,000; then activations."""
        own = clock.clock(self.pipe, self.calibration)
        every = clock.clock(self.pipe, self.calibration, clock.ALL_STEPS)
        for bits in (4, 3, 2):
            for arm in ("nearest", "tiar"):
                q = clock.only_clock(self.pipe, self.calibration, bits, None, temporal=arm)
                yield self.of_weights(q, f"tfmq-dm time path, {arm}", own, every)
        gains = clock.step_gains(self.pipe, self.calibration, own, (4, 6, 8))
        name, against = "tfmq-dm ranges by step", "one range"
        for bits, mine in gains.groupby("bits"):
            q = clock.only_clock(self.pipe, self.calibration, None, bits, temporal="nearest")
            share, gain = float((mine["gain"] > 0).mean()), float(mine["gain"].mean())
            yield [
                self.result(q, name, "time_features_improved", "share", share, None, against),
                self.result(q, name, "time_feature_gain_db", "dB", gain, None, against),
            ]

    def of_weights(self, q, name, own: clock.Clock, every: clock.Clock) -> list[Result]:
        """Cosines, mistaken steps and the loss, over blocks and timesteps."""
        found, everywhere = own.of(q), every.of(q)
        away = clock.cosine_table(own, found).pivot(index="layer", columns="step", values="away")
        third = away.shape[1] // 3  # from noise to image
        noisy, clean = (away.iloc[:, s].mean().mean() for s in (slice(third), slice(-third, None)))
        varied = away.max(axis=1) / away.min(axis=1).clip(lower=1e-12) >= 3
        rows = {
            "time_feature_1_minus_cos": away.mean().mean(),
            "time_feature_1_minus_cos_low_over_high_noise": clean / noisy,
            "time_blocks_varying_threefold": varied.mean(),
            "sampled_steps_mistaken": clock.mistaken(clock.perceived_table(own, found)),
            "sampled_steps_mistaken_among_1000": clock.mistaken(
                clock.perceived_table(own, found, every)
            ),
            "all_steps_mistaken_among_1000": clock.mistaken(
                clock.perceived_table(every, everywhere)
            ),
            "tiar_loss": tfmq_dm.tiar_loss(own.features, found),
        }
        return [self.result(q, name, metric, "", float(value)) for metric, value in rows.items()]

    def trajectory(self) -> Iterator[list[Result]]:
        """Same seeds, only the path quantized: cosine and error of the final latents."""
        _, exact = self.recorded()
        for bits in ((4, 4), (2, 4)):
            for name, options in (
                ("time path, nearest and one range", {"temporal": "nearest", "scope": "none"}),
                ("time path, tfmq-dm", {}),
                ("time path, features kept", {"maintenance": "cache"}),
            ):
                q = clock.only_clock(self.pipe, self.calibration, *bits, **options)
                images = self.family.run(q, self.sampler, list(self.held))
                mse = (images - exact).square().flatten(1).mean(1)
                interval = (float(mse.min()), float(mse.max()))
                yield [self.result(q, name, "image_mse_median", "", float(mse.median()), interval)]

    # -- whole networks ------------------------------------------------------------------------

    def compare(self, arms, bits, policy="common") -> Iterator[list[Result]]:
        """eps-SQNR of every arm, and its gain over the first."""
        states, first = self.recorded()[0], None
        for name, chosen in arms.items():
            q = self.quantized(chosen, bits, policy=policy)
            powers = error_powers(states, self.family.denoiser(q))
            mean, interval = mean_sqnr_db(powers), bootstrap_mean_sqnr_db(powers)
            rows = [self.result(q, name, "eps_sqnr_db", "dB", mean, interval)]
            if first is not None:
                gain = mean - mean_sqnr_db(first[1])
                ends = bootstrap_gain_db(powers, first[1])
                rows.append(self.result(q, name, "eps_sqnr_gain_db", "dB", gain, ends, first[0]))
            first = first or (name, powers)
            yield rows

    def ablation(self) -> Iterator[list[Result]]:
        """Six arms, all other weights rounded to nearest."""
        for bits in self.bits:
            arms = {
                f"tfmq-dm {temporal}, scope {scope}": recipe(
                    "tfmq-dm", temporal=temporal, scope=scope, reconstruct=False
                )
                for temporal in ("nearest", "tiar")
                for scope in ("none", "tib", "all")
            }
            yield from self.compare(arms, bits)

    def freeze(self) -> Iterator[list[Result]]:
        """Few calibration samples: 32 rows; error of time features after reconstruction."""
        ROUNDING["teach"] = replace(ROUNDING["teach"], **FREEZE)
        rows = torch.linspace(0, len(self.calibration) - 1, 32).long()
        own = clock.clock(self.pipe, self.calibration)
        for arm in ("blocks", "nearest", "tiar"):
            chosen = recipe("tfmq-dm", temporal=arm, scope="none")
            q = quantize(self.pipe, chosen, 4, None, calibration=self.calibration[rows])
            pairs = zip(own.features, own.of(q), strict=True)
            error = np.mean([float(tfmq_dm.relative_error(E, e).mean()) for E, e in pairs])
            name = f"tfmq-dm with blocks, time path by {arm}"
            powers = error_powers(self.recorded()[0], self.family.denoiser(q))
            ends = bootstrap_mean_sqnr_db(powers)
            yield [
                self.result(q, name, "time_feature_relative_error", "", error),
                self.result(q, name, "eps_sqnr_db", "dB", mean_sqnr_db(powers), ends),
            ]

    def grids(self) -> Iterator[list[Result]]:
        """No pictures: every candidate at every width, and a uniform grid for each step."""
        u = clock.clock(self.pipe, self.calibration).inputs
        q = self.quantized("rtn", (8, 8))
        yield [self.result(q, "qvd time features", "skewness", "", float(qvd.skewness(u)))]
        metrics = {"td_score": "", "codes": "share", "db": "dB"}
        names = {"codes": "distinct_codes", "db": "time_input_sqnr_db"}
        for row in clock.grid_table(u, (3, 4, 6, 8)).to_dict("records"):
            yield [
                self.result(q, f"time grid {row['grid']}", names.get(m, m), unit, row[m])
                for m, unit in metrics.items()
            ]

    def channels(self) -> Iterator[list[Result]]:
        """Inputs of held-out trajectories, channel ranges of the calibration set."""
        layers = clock.channels(self.pipe, self.calibration, self.recorded()[0], rows=16)
        q = self.quantized("rtn", (8, 8))
        kappa = float(layers.coverage()["kappa"].mean())
        yield [self.result(q, "qvd channels", "coverage", "share", kappa)]
        for bits in ((8, 4), (4, 6)):
            q = self.quantized("rtn", bits)
            for row in clock.alpha_gains(layers.outputs(*bits)).to_dict("records"):
                name, against = f"scri alpha {row['alpha']}", "scri alpha none"
                improved = float(row["improved"])
                yield [
                    self.result(q, name, "layer_sqnr_db", "dB", float(row["db"])),
                    self.result(q, name, "layers_improved", "share", improved, None, against),
                ]

    def qvd(self) -> Iterator[list[Result]]:
        """The ablation on one base: min-max weights, searched activation ranges."""
        base = {"temporal": "uniform"}
        arms = {
            "qvd base": recipe("qvd", **base).only("place"),
            "qvd base + htdq": recipe("qvd").only("place"),
            "qvd base + log2": recipe("qvd", temporal="log2").only("place"),
            "qvd base + ranges by step": recipe("qvd", temporal="per-step").only("place"),
            "qvd base + scri": recipe("qvd", **base),
            "qvd": recipe("qvd"),
        }
        if self.family.video:
            arms["qvd, ranges by frame"] = recipe("qvd", frame_wise=True)
        first = next(iter(arms))
        wanted = {n: arm for n, arm in arms.items() if n in (first, *self.arms) or not self.arms}
        for bits in self.bits:
            yield from self.compare(wanted, bits)


PARTS = ("features", "trajectory", "ablation", "freeze", "grids", "channels", "qvd")


def main() -> None:
    """Measure every part asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="latent-unet")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--bits", nargs="+", default=["4:8", "4:4", "6:6"], help="of whole networks"
    )
    parser.add_argument("--arms", nargs="+", default=[], help="of part qvd, beside its base")
    parser.add_argument("--held-out", type=int, default=HELD)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [tuple(int(b) for b in pair.split(":")) for pair in given.bits]
    bench = Bench(given.model, given.held_out, pairs, given.arms)
    for part in given.parts:
        for rows in getattr(bench, part)():
            if given.out:  # at once, so that what is measured survives an interrupt
                append(given.out, rows)


if __name__ == "__main__":
    main()
