"""TFMQ-DM and QVD against their own baselines, part by part; prints lines, appends results.

    python tests/benchmarks/time_information.py --model latent-unet --parts features --out FILE

features    the time path alone: what TIAR and ranges by step do to its features; no pictures
trajectory  only the time path quantized: how far latents end from where they should
ablation    {nearest, TIAR} x {one range, by step on the path, by step everywhere}: eps-SQNR
freeze      block reconstruction with and without the time projections
grids       QVD's candidates for time features, by TDScore and by SQNR
channels    SCRI layer by layer: SQNR of outputs without it, at fixed alpha, at the searched one
qvd         min-max, HTDQ, SCRI, both, and TFMQ-DM's ranges by step: eps-SQNR
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dqlab import describe, seeds
from dqlab.fit.profiles import ROUNDING
from dqlab.formats import Affine
from dqlab.layers import Policy, Rule
from dqlab.methods import load, quantize, recipe
from dqlab.methods.channels import channel_ranges
from dqlab.methods.time_path import time_path_of
from dqlab.methods.unet_time_information.qvd import ALPHAS, output_error, time_grids
from dqlab.metrics import (
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    error_powers,
    mean_sqnr_db,
)
from dqlab.metrics.results import Result, append
from dqlab.models.families import Sampler, family_of
from dqlab.reference import qvd, tfmq_dm
from dqlab.trajectory import record

PATH_ONLY = Policy(
    "time path only",
    (
        Rule("time_embedding.*.weight", "weights"),
        Rule("*.time_emb_proj.weight", "weights"),
        Rule("time_embedding.*.input", "activations"),
        Rule("*.time_emb_proj.input", "activations"),
        Rule("*", None, "full precision"),
    ),
)
ALL_STEPS = 1000
CALIBRATED = 4
"""Calibration trajectories, the same for every arm."""
HELD = 4
FREEZE = {"iterations": 100, "batch": 16, "rounding_lr": 0.05}
"""A third of the usual updates at a higher rate, for both arms alike."""


def db(signal: Tensor, error: Tensor) -> float:
    """10 log10 of the ratio of two powers."""
    return float(10 * (signal.double().sum() / error.double().sum()).log10())


def mistaken(candidates, found, true: Tensor) -> float:
    """Share of (block, step) whose feature looks like another of the candidates' steps."""
    wrong = [tfmq_dm.perceived_step(E, e) != true for E, e in zip(candidates, found, strict=True)]
    return float(torch.stack(wrong).double().mean())


class Bench:
    """One shipped model, its calibration set and held-out trajectories."""

    def __init__(self, model: str, held_out: int, bits: list[tuple[int, ...]]):
        self.model, self.pipe, self.sampler = model, load(model), Sampler()
        self.bits = bits
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

    def full_features(self, steps: int):
        """The path at so many steps, and its features in full precision."""
        path = time_path_of(self.pipe, self.calibration, Sampler(steps))
        with torch.no_grad():
            return path, path.features(self.net)

    def features(self) -> Iterator[list[Result]]:
        """Weights first, on the sampler's steps among all 1,000; then activations."""
        path, full = self.full_features(self.sampler.num_inference_steps)
        all_steps, candidates = self.full_features(ALL_STEPS)
        at = self.family.schedule(self.pipe, self.sampler)
        among = (
            (self.family.schedule(self.pipe, Sampler(ALL_STEPS)) == at[:, None]).int().argmax(1)
        )
        for bits in (4, 3, 2):
            for arm in ("nearest", "tiar"):
                chosen = recipe("tfmq-dm", temporal=arm, reconstruct=False)
                q = self.quantized(chosen, (bits, None), policy=PATH_ONLY)
                name, net = f"tfmq-dm time path, {arm}", self.family.denoiser(q)
                with torch.no_grad():
                    found, everywhere = path.features(net), all_steps.features(net)
                yield self.of_weights(q, name, full, found)
                counts = {
                    "sampled_steps_mistaken_among_1000": (found, among),
                    "all_steps_mistaken_among_1000": (everywhere, torch.arange(ALL_STEPS)),
                }
                yield [
                    self.result(q, name, metric, "share", mistaken(candidates, *pair))
                    for metric, pair in counts.items()
                ]
        for bits in (4, 6, 8):
            pair = {}
            for scope in ("none", "tib"):
                chosen = recipe("tfmq-dm", temporal="nearest", scope=scope, reconstruct=False)
                q = self.quantized(chosen, (None, bits), policy=PATH_ONLY)
                net = self.family.denoiser(q)
                net.step_context.at(net.step_context.schedule[path.step])
                with torch.no_grad():
                    pair[scope] = path.features(net)
            yield self.of_ranges(q, full, pair["none"], pair["tib"])

    def of_weights(self, q, name, full, found) -> list[Result]:
        """Cosines, mistaken steps and the loss, over blocks and timesteps."""
        away = [1 - tfmq_dm.cosine(E, e) for E, e in zip(full, found, strict=True)]
        third = len(away[0]) // 3  # from noise to image
        noisy, clean = (
            torch.stack([a[s].mean() for a in away]).mean()
            for s in (slice(0, third), slice(-third, None))
        )
        varied = [float(a.max() / a.min().clamp(min=1e-12)) >= 3 for a in away]
        rows = {
            "time_feature_1_minus_cos": float(torch.stack(away).mean()),
            "time_feature_1_minus_cos_low_over_high_noise": float(clean / noisy),
            "time_blocks_varying_threefold": float(np.mean(varied)),
            "sampled_steps_mistaken": mistaken(full, found, torch.arange(len(full[0]))),
            "tiar_loss": float(tfmq_dm.tiar_loss(full, found)),
        }
        return [self.result(q, name, metric, "", value) for metric, value in rows.items()]

    def of_ranges(self, q, full, static, by_step) -> list[Result]:
        """Share of (step, block) that a range per step improves, and by how much."""
        errors = [
            torch.stack([tfmq_dm.relative_error(E, e) for E, e in zip(full, f, strict=True)])
            for f in (static, by_step)
        ]
        gain = 10 * (errors[0] / errors[1]).log10()
        share = float((errors[1] < errors[0]).double().mean())
        name, against = "tfmq-dm ranges by step", "one range"
        return [
            self.result(q, name, "time_features_improved", "share", share, None, against),
            self.result(q, name, "time_feature_gain_db", "dB", float(gain.mean()), None, against),
        ]

    def trajectory(self) -> Iterator[list[Result]]:
        """Same seeds, only the path quantized: cosine and error of the final latents."""
        _, exact = self.recorded()
        for bits in ((4, 4), (2, 4)):
            for name, options in (
                ("time path, nearest and one range", {"temporal": "nearest", "scope": "none"}),
                ("time path, tfmq-dm", {}),
                ("time path, features kept", {"maintenance": "cache"}),
            ):
                chosen = recipe("tfmq-dm", reconstruct=False, **options)
                q = self.quantized(chosen, bits, policy=PATH_ONLY)
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
        path, full = self.full_features(self.sampler.num_inference_steps)
        for arm in ("blocks", "nearest", "tiar"):
            chosen = recipe("tfmq-dm", temporal=arm, scope="none")
            q = quantize(self.pipe, chosen, 4, None, calibration=self.calibration[rows])
            with torch.no_grad():
                found = path.features(self.family.denoiser(q))
            error = np.mean(
                [
                    float(tfmq_dm.relative_error(E, e).mean())
                    for E, e in zip(full, found, strict=True)
                ]
            )
            name = f"tfmq-dm with blocks, time path by {arm}"
            powers = error_powers(self.recorded()[0], self.family.denoiser(q))
            ends = bootstrap_mean_sqnr_db(powers)
            yield [
                self.result(q, name, "time_feature_relative_error", "", error),
                self.result(q, name, "eps_sqnr_db", "dB", mean_sqnr_db(powers), ends),
            ]

    def grids(self) -> Iterator[list[Result]]:
        """No pictures: every candidate at every width, and a uniform grid for each step."""
        path = time_path_of(self.pipe, self.calibration, self.sampler)
        with torch.no_grad():
            u = path.inputs(self.net)
        q = self.quantized("rtn", (8, 8))
        yield [self.result(q, "qvd time features", "skewness", "", float(qvd.skewness(u)))]
        for bits in (3, 4, 6, 8):
            found = {g.name: g.fake_quant(u, g.params(u.min(), u.max())) for g in time_grids(bits)}
            r = Affine(bits).params(u.amin(1, keepdim=True), u.amax(1, keepdim=True))
            found[f"uint{bits}, by step"] = Affine(bits).fake_quant(u, r)
            for name, u_hat in found.items():
                score, ratio = qvd.td_score(u, u_hat), qvd.distinct_code_ratio(u_hat)
                sqnr = db(u.square(), (u_hat - u).square())
                yield [
                    self.result(q, f"time grid {name}", "td_score", "", float(score)),
                    self.result(q, f"time grid {name}", "distinct_codes", "share", float(ratio)),
                    self.result(q, f"time grid {name}", "time_input_sqnr_db", "dB", sqnr),
                ]

    def channels(self) -> Iterator[list[Result]]:
        """Inputs of held-out trajectories, channel ranges of the calibration set."""
        from dqlab.fit import capture
        from dqlab.layers import explore

        states = self.recorded()[0]
        example = states[:1]
        layers = explore(self.net, lambda: example.call(self.net)).layers
        layers = [p for p in layers if not p.endswith("time_emb_proj")]
        seen = channel_ranges(self.net, layers, self.calibration)
        kappa = [float(qvd.coverage(s.low, s.high).mean()) for s in seen.values()]
        q = self.quantized("rtn", (8, 8))
        yield [self.result(q, "qvd channels", "coverage", "share", float(np.mean(kappa)))]
        rows = torch.linspace(0, len(states) - 1, 16).long()
        inputs = capture(self.net, layers, states[rows], outputs=False)
        for w, a in ((8, 4), (4, 6)):
            table = np.array([
                self.layer_db(path, inputs[path].leaves[0], seen[path], (Affine(a), Affine(w)))
                for path in layers
            ])  # fmt: skip
            names = ["none", *(f"alpha {alpha:g}" for alpha in ALPHAS[1:]), "best of them"]
            table = np.column_stack([table, table.max(1)])
            for name, column in zip(names, table.T, strict=True):
                q = self.quantized("rtn", (w, a)) if name == "none" else q
                gain = column - table[:, 0]
                yield [
                    self.result(q, f"scri {name}", "layer_sqnr_db", "dB", float(column.mean())),
                    self.result(
                        q, f"scri {name}", "layers_improved", "share",
                        float((gain > 0).mean()), None, "scri none",
                    ),
                ]  # fmt: skip

    def layer_db(self, path, x, seen, formats) -> list[float]:
        """SQNR of one layer's output at every alpha."""
        layer = self.net.get_submodule(path)
        with torch.no_grad():
            power = float(layer(x).square().mean())
        errors = [output_error(layer, x, seen, formats, alpha) for alpha in ALPHAS]
        return [float(10 * np.log10(power / max(e, 1e-30))) for e in errors]

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


def main() -> None:
    """Measure every part asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="latent-unet")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--bits", nargs="+", default=["4:8", "4:4", "6:6"], help="of whole networks"
    )
    parser.add_argument("--held-out", type=int, default=HELD)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pairs = [tuple(int(b) for b in pair.split(":")) for pair in given.bits]
    bench = Bench(given.model, given.held_out, pairs)
    for part in given.parts:
        for rows in getattr(bench, part)():
            if given.out:  # at once, so that what is measured survives an interrupt
                append(given.out, rows)


if __name__ == "__main__":
    main()
