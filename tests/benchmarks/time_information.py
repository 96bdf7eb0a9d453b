"""TFMQ-DM and QVD against their own baselines, part by part; prints lines, appends results.

    python tests/benchmarks/time_information.py --model latent-unet --parts features --out FILE

features    the time path alone: what TIAR and ranges by step do to its features; no pictures
trajectory  only the time path quantized: how far the last latents turn from where they should be
ablation    {nearest, TIAR} x {one range, by step on the path, by step everywhere}: eps-SQNR
freeze      error of time features, projections rounded by their blocks or left out of them
grids       QVD's candidates for time features, by TDScore and by SQNR
channels    SCRI layer by layer: SQNR of outputs without it, at fixed alpha, and at each
            layer's best with hindsight
frames      of a video: how unequal frames' errors are, time features or the rest quantized
videos      of a video: frames, their differences, and features of generated clips; eps-SQNR
qvd         min-max, HTDQ, SCRI, both, and TFMQ-DM's ranges by step: eps-SQNR
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch

from dqlab import describe, seeds
from dqlab.methods import load, quantize, recipe
from dqlab.methods.unet_time_information import qvd as qvd_method
from dqlab.metrics import (
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    error_powers,
    mean_sqnr_db,
)
from dqlab.metrics.results import Result, append
from dqlab.metrics.video import video_features
from dqlab.models.families import Sampler, family_of
from dqlab.models.video_features import load_video_features
from dqlab.phenomena import clock
from dqlab.reference import qvd, tfmq_dm
from dqlab.trajectory import record, replay

CALIBRATED = 4
"""Calibration trajectories, the same for every arm."""
HELD = 4


def once(search: Callable) -> Callable:
    """QVD's search for alpha, not run again for arms that share layers, formats and states."""
    found: dict[tuple, dict] = {}

    def again(denoiser, layers, sets, ranges, formats):
        key = tuple((path, *map(str, formats(path))) for path in layers)
        if key not in found:
            found[key] = search(denoiser, layers, sets, ranges, formats)
        return found[key]

    return again


def ratio_db(before: torch.Tensor, after: torch.Tensor) -> tuple[float, tuple[float, float]]:
    """Mean error before over after in dB, and its 95 % interval over pairs, both `[N]`."""
    picks = torch.randint(len(before), (500, len(before)), generator=torch.manual_seed(0))
    ends = 10 * (before[picks].mean(1) / after[picks].mean(1)).log10()
    tails = ends.quantile(torch.tensor([0.025, 0.975], dtype=ends.dtype)).tolist()
    return float(10 * (before.mean() / after.mean()).log10()), tuple(tails)


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of whole samples, `[N]`, in double precision."""
    return torch.nn.functional.cosine_similarity(x.flatten(1).double(), y.flatten(1).double())


def video_errors(exact: torch.Tensor, made: torch.Tensor, net) -> dict[str, torch.Tensor]:
    """Squared errors of frames and features, absolute ones of frames' differences, `[N]` each."""
    frames = (made - exact).square().flatten(1).mean(1)
    moves = (made.diff(dim=1) - exact.diff(dim=1)).abs().flatten(1).mean(1)
    seen = [video_features(v, net) for v in (exact, made)]
    return {
        "frame_mse": frames,
        "frame_difference_error": moves,
        "video_feature_mse": (seen[0] - seen[1]).square().mean(1),
    }


class Bench:
    """One shipped model, its calibration set and held-out trajectories."""

    def __init__(
        self,
        model: str,
        held_out: int,
        bits: list[tuple[int, ...]],
        arms: list[str] = (),
        every: int = 1,
    ):
        self.model, self.pipe, self.sampler = model, load(model), Sampler()
        self.bits, self.arms, self.every = bits, arms, every
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
        turned = clock.cosine_table(own, found)
        varied, late = clock.turn_facts(turned)
        rows = {
            "time_feature_1_minus_cos": turned["away"].mean(),
            "time_feature_1_minus_cos_low_over_high_noise": late,
            "time_blocks_varying_threefold": varied,
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
        """Same seeds, only the path quantized: 1 - cos of what the last step is given."""
        exact = self.last_latents(self.pipe)
        for bits in self.bits:
            first = None
            for name, options in (
                ("time path, nearest and one range", {"temporal": "nearest", "scope": "none"}),
                ("time path, tfmq-dm", {}),
                ("time path, features kept", {"maintenance": "cache"}),
            ):
                q = clock.only_clock(self.pipe, self.calibration, *bits, **options)
                away = 1 - cosine(exact, self.last_latents(q))
                mean, ends = float(away.mean()), (float(away.min()), float(away.max()))
                rows = [self.result(q, name, "last_latent_1_minus_cos", "", mean, ends)]
                if loss := describe(q)["choices"].get("tiar loss"):
                    rows.append(self.result(q, name, "tiar_loss", "", loss["learned"]))
                if first is not None:
                    gain = ratio_db(first[1], away)
                    metric = "last_latent_gain_db"
                    rows.append(self.result(q, name, metric, "dB", *gain, first[0]))
                first = first or (name, away)
                yield rows

    def last_latents(self, pipe) -> torch.Tensor:
        """What the last step is given, `[seeds, ...]`."""
        states = record(pipe, self.held, self.sampler)[0]
        return states.x[(states.step == states.step.max()) & (states.branch == 0)]

    # -- whole networks ------------------------------------------------------------------------

    def compare(self, arms, bits, policy="common") -> Iterator[list[Result]]:
        """eps-SQNR of every arm, and its gain over the first."""
        first = None
        for name, chosen in arms.items():
            if first is not None and self.arms and name not in self.arms:
                continue
            q = self.quantized(chosen, bits, policy=policy)
            rows, powers = self.of_eps(q, name, first)
            first = first or (name, powers)
            yield rows

    def of_eps(self, q, name: str, first) -> tuple[list[Result], pd.DataFrame]:
        """eps-SQNR, its gain over a first arm (name, powers) if there is one; and the powers."""
        powers = error_powers(self.recorded()[0], self.family.denoiser(q))
        mean, interval = mean_sqnr_db(powers), bootstrap_mean_sqnr_db(powers)
        rows = [self.result(q, name, "eps_sqnr_db", "dB", mean, interval)]
        if first is not None:
            gain = mean - mean_sqnr_db(first[1])
            ends = bootstrap_gain_db(powers, first[1])
            rows.append(self.result(q, name, "eps_sqnr_gain_db", "dB", gain, ends, first[0]))
        return rows, powers

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
        """Few calibration samples: 32 rows; error of time features after reconstruction.

        Left out of the blocks, projections stay as they were rounded, so that nothing has to be
        reconstructed for that arm.
        """
        rows = torch.linspace(0, len(self.calibration) - 1, 32).long()
        own, first = clock.clock(self.pipe, self.calibration), None
        for arm, reconstruct in (("blocks", True), ("nearest", False)):
            chosen = recipe("tfmq-dm", temporal=arm, scope="none", reconstruct=reconstruct)
            q = quantize(self.pipe, chosen, 4, None, calibration=self.calibration[rows])
            pairs = zip(own.features, own.of(q), strict=True)
            error = torch.stack([tfmq_dm.relative_error(E, e).mean() for E, e in pairs])
            name, metric = f"time path rounded by {arm}", "time_feature_relative_error"
            found = [self.result(q, name, metric, "", float(error.mean()))]
            if first is not None:
                gain = ratio_db(first[1], error)
                found.append(self.result(q, name, "time_feature_gain_db", "dB", *gain, first[0]))
            first = first or (name, error)
            yield found

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
        """Inputs of held-out trajectories; ranges and alphas of the calibration set."""
        layers = clock.channels(self.pipe, self.calibration, self.recorded()[0], 16, self.every)
        q = self.quantized("rtn", (8, 8))
        kappa = float(layers.coverage()["kappa"].mean())
        yield [self.result(q, "qvd channels", "coverage", "share", kappa)]
        for reach, part in layers.headroom().groupby("reach"):
            name = f"inputs clipped to the range of their {reach}"
            worst = float(part["db"].min()), float(part["db"].median())
            yield [
                self.result(q, name, f"layer_sqnr_{which}_db", "dB", value)
                for which, value in zip(("worst", "median"), worst, strict=True)
            ]
        for bits in self.bits:
            q = self.quantized("rtn", bits)
            for row in clock.alpha_gains(layers.outputs(*bits, search=True)).to_dict("records"):
                name, against = f"scri alpha {row['alpha']}", "scri alpha none"
                ends = (row["low"], row["high"])
                improved = float(row["improved"])
                yield [
                    self.result(q, name, "layer_sqnr_db", "dB", float(row["db"])),
                    self.result(q, name, "layer_gain_db", "dB", row["gain"], ends, against),
                    self.result(q, name, "layers_improved", "share", improved, None, against),
                ]

    def frames(self) -> Iterator[list[Result]]:
        """Spread over frames of a prediction's squared error, one part quantized at a time."""
        states = self.recorded()[0]
        few = self.calibration[self.calibration.seed == self.calibration.seed[0]]
        for name, policy in (("time features", clock.PATH_ONLY), ("all but them", clock.REST)):
            q = quantize(self.pipe, "rtn", None, 4, policy=policy, calibration=few)
            answer, _ = states.guided(replay(self.family.denoiser(q), states))
            truth, rows = states.guided(states.output)
            mse = (answer - truth).square().mean((1, 3, 4))  # [rows, frames]
            varied = mse.std(1, correction=0) / mse.mean(1)
            by_seed = [float(varied[states.seed[rows] == s].mean()) for s in self.held]
            ends = (min(by_seed), max(by_seed))
            name = f"activations of {name} alone"
            yield [self.result(q, name, "frame_error_variation", "", float(varied.mean()), ends)]

    def videos(self) -> Iterator[list[Result]]:
        """Clips from the same seeds, held against full precision's, pair by pair; and eps."""
        exact, net, first = self.recorded()[1], load_video_features(), None
        for bits in self.bits:
            plain = None
            for name in ("rtn", "qvd"):
                q = self.quantized(name, bits)
                rows, powers = self.of_eps(q, name, plain)
                yield rows
                plain = plain or (name, powers)
                made = record(q, self.held, self.sampler)[1]
                errors = video_errors(exact, made, net)
                for metric, error in errors.items():
                    ends = (float(error.min()), float(error.max()))
                    yield [self.result(q, name, metric, "", float(error.mean()), ends)]
                    if name != "rtn":
                        gain = ratio_db(first[metric], error)
                        yield [self.result(q, name, f"{metric}_gain_db", "dB", *gain, "rtn")]
                first = errors

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
        for bits in self.bits:
            yield from self.compare(arms, bits)


PARTS = ("features", "trajectory", "ablation", "freeze", "grids", "channels", "qvd")
OF_VIDEOS = ("frames", "videos")


def main() -> None:
    """Measure every part asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="latent-unet")
    parser.add_argument("--parts", nargs="+", choices=PARTS + OF_VIDEOS, default=list(PARTS))
    parser.add_argument(
        "--bits", nargs="+", default=["4:8", "4:4", "6:6"], help="of whole networks"
    )
    parser.add_argument(
        "--arms", nargs="+", default=[], help="of parts ablation and qvd, beside the first"
    )
    parser.add_argument("--every", type=int, default=1, help="of so many layers, part channels")
    parser.add_argument("--held-out", type=int, default=HELD)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    qvd_method.best_alphas = once(qvd_method.best_alphas)
    pairs = [tuple(int(b) for b in pair.split(":")) for pair in given.bits]
    bench = Bench(given.model, given.held_out, pairs, given.arms, given.every)
    for part in given.parts:
        for rows in getattr(bench, part)():
            if given.out:  # at once, so that what is measured survives an interrupt
                append(given.out, rows)


if __name__ == "__main__":
    main()
