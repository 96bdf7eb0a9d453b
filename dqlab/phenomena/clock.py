"""A network's clock: its time features in full precision and quantized, and QVD's two parts.

The time path never sees a picture (`dqlab.methods.time_path`), so all of this takes seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.formats import Affine, Format
from dqlab.layers import Policy, Rule, explore
from dqlab.methods import quantize, recipe
from dqlab.methods.channels import ChannelRange, channel_ranges, some_inputs
from dqlab.methods.scri import ALPHAS, best_alphas, halves, output_error
from dqlab.methods.time_path import TimePath, time_path_of
from dqlab.methods.unet_time_information.qvd import time_grids
from dqlab.models.families import Sampler, family_of
from dqlab.reference import qvd, tfmq_dm
from dqlab.trajectory import States

NO_ERROR = 120.0
"""dB told of an output without any error: float32 would not know a smaller one."""
ALL_STEPS = 1000
"""Timesteps the network was trained on, among which a feature is looked up."""

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

REST = Policy(
    "activations, time path excepted",
    (
        Rule("*.weight", None),
        Rule("time_embedding.*.input", None),
        Rule("*.time_emb_proj.input", None),
        Rule("*", "activations"),
    ),
)


def only_clock(pipe, calibration: States, weights, activations, **options):
    """`pipe` with nothing but its time path quantized, by tfmq-dm with these options."""
    chosen = recipe("tfmq-dm", reconstruct=False, **options)
    return quantize(pipe, chosen, weights, activations, policy=PATH_ONLY, calibration=calibration)


@dataclass(frozen=True)
class Clock:
    """A network's time path at some steps, and its features in full precision.

    Attributes:
        path: the path.
        t: timesteps `[T]`, in sampling order.
        features: emb_i `[T, C_i]` of every block.
        inputs: u `[T, D]`, what all projections read.

    """

    path: TimePath
    t: Tensor
    features: list[Tensor]
    inputs: Tensor

    @torch.no_grad()
    def of(self, quantized) -> list[Tensor]:
        """The same features in a quantized pipeline."""
        net = family_of(quantized).denoiser(quantized)
        net.step_context.at(self.t.double())
        return self.path.features(net)


@torch.no_grad()
def clock(pipe, states: States, steps: int = 20) -> Clock:
    """The time path of a pipeline at so many steps."""
    family, sampler = family_of(pipe), Sampler(steps)
    path, net = time_path_of(pipe, states, sampler), family.denoiser(pipe)
    t = family.schedule(pipe, sampler)[path.step]
    return Clock(path, t, path.features(net), path.inputs(net))


def cosine_table(full: Clock, found: Sequence[Tensor]) -> pd.DataFrame:
    """How far features turn: columns layer, step, timestep, away (1 - cosine)."""
    parts = []
    for name, E, E_hat in zip(full.path.blocks, full.features, found, strict=True):
        away = 1 - tfmq_dm.cosine(E, E_hat)
        parts.append(pd.DataFrame({"layer": name, "step": range(len(E)), "away": away.tolist()}))
        parts[-1]["timestep"] = full.t.tolist()
    return pd.concat(parts, ignore_index=True)


def turn_facts(turned: pd.DataFrame) -> tuple[float, float]:
    """From `cosine_table`: what varies threefold over steps, and the last third over the first.

    The share of blocks, and the ratio of the mean turns of the steps nearest to the picture and
    to noise.
    """
    away = turned.pivot(index="layer", columns="step", values="away")
    third = away.shape[1] // 3
    noisy, clean = (away.iloc[:, s].mean().mean() for s in (slice(third), slice(-third, None)))
    varied = away.max(axis=1) / away.min(axis=1).clip(lower=1e-12) >= 3
    return float(varied.mean()), float(clean / noisy)


def trajectory_table(exact: States, others: Mapping[str, States]) -> pd.DataFrame:
    """How far samples turn on their way, from the same seeds, in quantized networks.

    Args:
        exact: trajectories in full precision, `dqlab.trajectory.record`.
        others: the same seeds' trajectories by the name of a setting.

    Returns:
        Columns series, step, timestep, away: 1 - cosine of x_t, mean over seeds. At the first
        step all networks are given the same x_t, so it is left out.

    """
    asked = (exact.branch == 0) & (exact.step > 0)
    rows = {"step": exact.step[asked].tolist(), "timestep": exact.t[asked].tolist()}
    parts = []
    for name, states in others.items():
        a, b = (s.x[asked].flatten(1) for s in (exact, states))
        frame = pd.DataFrame(rows | {"away": (1 - tfmq_dm.cosine(a, b)).tolist()})
        parts.append(frame.groupby(["step", "timestep"], as_index=False).mean())
        parts[-1].insert(0, "series", name)
    return pd.concat(parts, ignore_index=True)


def perceived_table(
    full: Clock, found: Sequence[Tensor], among: Clock | None = None
) -> pd.DataFrame:
    """Which step each feature looks like: columns layer, t, perceived, both timesteps.

    Candidates are the steps of `among`; by default those of `full` itself.
    """
    candidates, parts = among or full, []
    for name, E, E_hat in zip(full.path.blocks, candidates.features, found, strict=True):
        taken = candidates.t[tfmq_dm.perceived_step(E, E_hat)]
        frame = {"layer": name, "t": full.t.tolist(), "perceived": taken.tolist()}
        parts.append(pd.DataFrame(frame))
    return pd.concat(parts, ignore_index=True)


def mistaken(perceived: pd.DataFrame) -> float:
    """Share of (block, step) that look like another step."""
    return float((perceived["t"] != perceived["perceived"]).mean())


def separation(full: Clock, found: Sequence[Tensor]) -> pd.DataFrame:
    """The decider: error of a feature over its distance to the nearest other step's.

    Columns layer, ratio (median over steps), mistaken (share of steps by Euclidean distance that
    lie nearer to another step's).
    """
    rows = []
    for name, E, E_hat in zip(full.path.blocks, full.features, found, strict=True):
        apart = torch.cdist(E.double(), E.double())
        nearest = apart.masked_fill(torch.eye(len(E), dtype=torch.bool), torch.inf).amin(1)
        ratio = (E_hat - E).double().norm(dim=1) / nearest
        cross = torch.cdist(E_hat.double(), E.double()).argmin(1)
        wrong = (cross != torch.arange(len(E))).double().mean()
        rows.append((name, float(ratio.median()), float(wrong)))
    return pd.DataFrame(rows, columns=["layer", "ratio", "mistaken"])


def range_table(full: Clock) -> pd.DataFrame:
    """Lowest and highest value by step of u and of every feature: layer, step, timestep, ..."""
    rows = []
    for name, x in zip(("u", *full.path.blocks), (full.inputs, *full.features), strict=True):
        low, high = x.aminmax(dim=1)
        columns = {"layer": name, "step": range(len(x)), "timestep": full.t.tolist()}
        rows.append(pd.DataFrame(columns | {"low": low.tolist(), "high": high.tolist()}))
    return pd.concat(rows, ignore_index=True)


def step_gains(pipe, calibration: States, full: Clock, bits: Sequence[int]) -> pd.DataFrame:
    """What a range per step gains, weights in full precision.

    Columns bits, layer, step, gain in dB of the feature's relative error.
    """
    parts = []
    for b in bits:
        errors = {}
        for scope in ("none", "tib"):
            q = only_clock(pipe, calibration, None, b, temporal="nearest", scope=scope)
            pairs = zip(full.features, full.of(q), strict=True)
            errors[scope] = [tfmq_dm.relative_error(E, E_hat) for E, E_hat in pairs]
        for name, static, own in zip(full.path.blocks, *errors.values(), strict=True):
            gain = 10 * (static / own).log10()
            columns = {"bits": b, "layer": name, "step": range(len(gain))}
            parts.append(pd.DataFrame(columns | {"gain": gain.tolist()}))
    return pd.concat(parts, ignore_index=True)


def grids(u: Tensor, bits: int) -> dict[str, Tensor]:
    """U `[T, D]` on every grid that QVD tries, and on a uniform one for each step."""
    found = {g.name: g.fake_quant(u, g.params(u.min(), u.max())) for g in time_grids(bits)}
    own = Affine(bits).params(u.amin(1, keepdim=True), u.amax(1, keepdim=True))
    return found | {f"uint{bits}, by step": Affine(bits).fake_quant(u, own)}


def skewed_features(steps: int = 16, channels: int = 12) -> Tensor:
    """Made-up features `[T, C]`: channel c is 2^(t/8 - c), so that few values are large."""
    return torch.exp2(torch.arange(steps)[:, None] / 8 - torch.arange(channels)[None])


def rounded_turn(full: Clock, bits: int = 8) -> float:
    """Largest 1 - cos of features rounded to a grid of each step and block alone."""
    worst = 0.0
    for E in full.features:
        own = Affine(bits).params(E.amin(1, keepdim=True), E.amax(1, keepdim=True))
        away = 1 - tfmq_dm.cosine(E, Affine(bits).fake_quant(E, own))
        worst = max(worst, float(away.max()))
    return worst


def grid_table(u: Tensor, bits: Sequence[int]) -> pd.DataFrame:
    """Columns bits, grid, td_score, codes (distinct-code ratio), db (SQNR of u)."""
    rows = []
    for b in bits:
        for name, u_hat in grids(u, b).items():
            error = (u_hat - u).double().square().sum()
            db = float(10 * (u.double().square().sum() / error).log10())
            score, codes = qvd.td_score(u, u_hat), qvd.distinct_code_ratio(u_hat)
            rows.append((b, name, float(score), float(codes), db))
    return pd.DataFrame(rows, columns=["bits", "grid", "td_score", "codes", "db"])


@dataclass
class Channels:
    """Inputs of the layers SCRI may rewrite, and their channel ranges.

    Attributes:
        net: the full-precision network.
        ranges: by layer, over calibration states.
        inputs: by layer, of a few other states.
        fitted: of a few calibration states, which ranges of inputs are searched on.
        calibration: those states.

    """

    net: nn.Module
    ranges: dict[str, ChannelRange]
    inputs: dict[str, Tensor] = field(repr=False)
    fitted: dict[str, Tensor] = field(repr=False)
    calibration: States = field(repr=False)

    def coverage(self, alpha: float | None = None) -> pd.DataFrame:
        """Columns layer, kappa: mean share of a layer's levels that its channels reach."""
        rows = []
        for path, seen in self.ranges.items():
            low, high = seen.low, seen.high
            if alpha is not None:
                delta, sigma = qvd.scri_factors(low, high, alpha)
                low, high = (low - delta) / sigma, (high - delta) / sigma
            rows.append((path, float(qvd.coverage(low, high).mean())))
        return pd.DataFrame(rows, columns=["layer", "kappa"])

    @torch.no_grad()
    def headroom(self) -> pd.DataFrame:
        """What clipping alone costs, nothing rounded: columns layer, db, reach.

        The SQNR of a layer's output with the new inputs clipped to each channel's calibrated
        range (reach "channel", what alpha = 1 leaves) and to that of the whole tensor.
        """
        rows = []
        for path, x in self.inputs.items():
            layer, seen = self.net.get_submodule(path), self.ranges[path]
            by_channel = (-1,) if isinstance(layer, nn.Linear) else (-1, *[1] * (x.ndim - 2))
            low, high = (v.reshape(by_channel) for v in (seen.low, seen.high))
            y = layer(x)
            for reach, ends in (("channel", (low, high)), ("tensor", (low.min(), high.max()))):
                error = float((layer(x.clamp(*ends)) - y).square().mean())
                rows.append((path, reach, _db(float(y.square().mean()), error)))
        return pd.DataFrame(rows, columns=["layer", "reach", "db"])

    def outputs(self, weights: int, activations: int, search: bool = False) -> pd.DataFrame:
        """SQNR of every layer's output: columns layer, alpha ("none" or a number), db.

        With `search` also "searched": what `qvd` chooses, and "searched on its own rows".
        """
        formats, rows = (Affine(activations), Affine(weights)), []
        chosen = self._searched(formats) if search else {}
        for path, x in self.inputs.items():
            layer = self.net.get_submodule(path)
            with torch.no_grad():
                power = float(layer(x).square().mean())
            db = {}
            for alpha in ALPHAS:
                error = output_error(
                    layer, x, self.ranges[path], formats, alpha, self.fitted[path]
                )
                db[alpha] = _db(power, error)
                rows.append((path, "none" if alpha is None else f"{alpha:g}", db[alpha]))
            rows += [(path, name, db[alphas[path]]) for name, alphas in chosen.items()]
        return pd.DataFrame(rows, columns=["layer", "alpha", "db"])

    def _searched(self, formats: Sequence[Format]) -> dict[str, dict[str, float | None]]:
        found = {
            "searched": self._halves,
            "searched on its own rows": ([self.calibration], [self.ranges]),
        }
        return {
            name: best_alphas(self.net, list(self.inputs), *sets, lambda path: formats)
            for name, sets in found.items()
        }

    @cached_property
    def _halves(self) -> tuple[list[States], list[dict[str, ChannelRange]]]:
        sets = halves(self.calibration)
        return sets, [channel_ranges(self.net, list(self.inputs), one) for one in sets]


def _db(power: float, error: float) -> float:
    """An SQNR in dB, at most `NO_ERROR`."""
    return min(NO_ERROR, float(10 * np.log10(power / max(error, 1e-20 * power))))


def channels(pipe, calibration: States, others: States, rows: int = 8, every: int = 1) -> Channels:
    """Measure on `calibration`, keep inputs of every so many layers at some rows of `others`."""
    net = family_of(pipe).denoiser(pipe)
    example = calibration[:1]
    found = explore(net, lambda: example.call(net)).layers
    paths = [p for p in found if not p.endswith("time_emb_proj")]
    some = paths[::every]
    inputs, fitted = (some_inputs(net, some, states, rows) for states in (others, calibration))
    return Channels(net, channel_ranges(net, paths, calibration), inputs, fitted, calibration)


def alpha_gains(outputs: pd.DataFrame) -> pd.DataFrame:
    """From `Channels.outputs`: columns alpha, db, gain over none, low, high, improved (share).

    low and high are the gain's 95 % interval over layers.
    "hindsight" takes each layer's best on the very inputs that judge: what no search can pass.
    """
    wide = outputs.pivot(index="layer", columns="alpha", values="db")
    wide["hindsight"] = wide.max(axis=1)
    order = [*outputs["alpha"].unique(), "hindsight"]
    rows = []
    for name in order:
        gain = wide[name] - wide["none"]
        mean, half = float(gain.mean()), 1.96 * float(gain.sem())
        improved = float((gain > 0).mean())
        rows.append((name, wide[name].mean(), mean, mean - half, mean + half, improved))
    heads = ["alpha", "db", "gain", "low", "high", "improved"]
    return pd.DataFrame(rows, columns=heads)


def levels_of(grid: Format, u: Tensor) -> Tensor:
    """The levels of a grid that covers u."""
    return grid.levels(grid.params(u.min(), u.max()))
