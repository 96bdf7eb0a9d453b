"""What makes a denoiser hard to quantize, at every layer and step of its own trajectories.

The input X of a layer is read as rows (tokens, pixels) of channels; all figures are free of scale:

    drift          max over steps / min over steps of max |X|
    step_spread    standard deviation / mean over steps of max |X|
    channel_ratio  max / median over channels of max |X_c|          (SmoothQuant's salience)
    token_ratio    99th percentile / median over rows of max |X_n|
    token_spread   standard deviation / mean over rows of max |X_n|
    skewness       mean of ((X - mean) / std)^3                     (QVD's temporal features)
    shortcut       max |X_1| / max |X_2| of a concatenation's parts (Q-Diffusion's rho)
    modulation     max / median over channels of mean |1 + scale|   (QNCD's S_c)
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from dqlab import seeds
from dqlab.layers import concatenations, explore
from dqlab.models.families import family_of
from dqlab.trajectory import States, record, replay

TRAJECTORIES = 8
TEMPORAL = ("motion_modules", "temporal")
"""Parts of the paths of layers that look along a video's frames."""


@dataclass
class _Inputs:
    """What passed one layer so far."""

    channels: Tensor | None = None
    tokens: list[Tensor] = field(default_factory=list)
    moments: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    def add(self, rows: Tensor, positions: bool) -> None:
        """`[rows, C]`; rows count as tokens if the layer saw positions."""
        sizes = rows.abs()
        largest = sizes.amax(0)
        self.channels = largest if self.channels is None else self.channels.maximum(largest)
        if positions:
            self.tokens.append(sizes.amax(1))
        x = rows.double()
        sums = [x.new_tensor(x.numel()), *(x.pow(k).sum() for k in (1, 2, 3))]
        self.moments += torch.stack(sums).cpu()

    def figures(self, pieces: tuple[int, ...]) -> dict[str, float]:
        """The row of the census."""
        tokens = torch.cat(self.tokens) if self.tokens else self.channels.new_full((2,), torch.nan)
        first = self.channels[: pieces[0]].max() if len(pieces) == 2 else torch.nan
        second = self.channels[pieces[0] :].max() if len(pieces) == 2 else torch.nan
        return {
            "largest": float(self.channels.max()),
            "channel_ratio": float(self.channels.max() / self.channels.median()),
            "token_ratio": float(tokens.quantile(0.99) / tokens.median()),
            "token_spread": float(tokens.std() / tokens.mean()),
            "skewness": _skewness(self.moments),
            "shortcut": float(first / second),
        }


def _skewness(moments: Tensor) -> float:
    """Third standardised moment from count and sums of powers."""
    count, *sums = moments.tolist()
    m1, m2, m3 = (s / count for s in sums)
    variance = m2 - m1**2
    return (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5 if variance > 0 else 0.0


def census(pipe, states: States) -> pd.DataFrame:
    """Every layer's input at every step, by guidance branch.

    Args:
        pipe: a full-precision pipeline of any family.
        states: its trajectories.

    Returns:
        Columns layer, step, timestep, branch, largest, channel_ratio, token_ratio, token_spread,
        skewness, shortcut; layers in execution order. Figures of tokens are NaN for layers that
        read one vector per picture, `shortcut` is NaN for layers that read no concatenation.

    """
    model, example = family_of(pipe).denoiser(pipe), states[:1]
    layers = explore(model, lambda: example.call(model)).layers
    pieces = concatenations(model, lambda: example.call(model))
    rows = []
    for part in _by_step_and_branch(states):
        seen = {layer: _Inputs() for layer in layers}
        with _watching(model, seen):
            replay(model, part)
        branch = states.branches[int(part.branch[0])] if states.branches else ""
        where = {"step": int(part.step[0]), "timestep": int(part.t[0]), "branch": branch}
        rows += [
            {"layer": layer} | where | inputs.figures(pieces.get(layer, ()))
            for layer, inputs in seen.items()
        ]
    return pd.DataFrame(rows)


def _by_step_and_branch(states: States) -> Iterator[States]:
    for step in states.step.unique().tolist():
        for branch in states.branch.unique().tolist():
            yield states[(states.step == step) & (states.branch == branch)]


@contextlib.contextmanager
def _watching(model: nn.Module, seen: dict[str, _Inputs]) -> Iterator[None]:
    """While inside, the inputs of the layers in `seen` are counted."""
    with contextlib.ExitStack() as stack:
        for path, inputs in seen.items():
            layer = model.get_submodule(path)
            hook = layer.register_forward_pre_hook(_counting(inputs), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _counting(inputs: _Inputs) -> Callable[[nn.Module, tuple, dict], None]:
    def count(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        x = (args[0] if args else kwargs["input"]).detach().float()
        rows = x if isinstance(layer, nn.Linear) else x.movedim(1, -1)
        inputs.add(rows.reshape(-1, rows.shape[-1]), positions=rows.ndim > 2)

    return count


def drift(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each layer in a census: drift and step_spread, indexed by layer."""
    per_step = frame.groupby(["layer", "step"], sort=False)["largest"].max()
    steps = per_step.groupby("layer", sort=False)
    return pd.DataFrame(
        {"drift": steps.max() / steps.min(), "step_spread": steps.std() / steps.mean()}
    )


Cut = Callable[[Tensor], Tensor]


def modulation(pipe, states: States) -> pd.DataFrame:
    """How unequally scale-shift and adaLN blocks amplify their channels.

    Returns:
        Columns norm, ratio: max / median over channels of |1 + scale|, averaged over steps and
        trajectories. Empty for networks without such norms.

    """
    model = family_of(pipe).denoiser(pipe)
    sums: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name, (module, cut) in _scales(model).items():
            stack.callback(module.register_forward_hook(_summing(sums, name, cut)).remove)
        replay(model, states)
    rows = [(name, float(total.max() / total.median())) for name, total in sums.items()]
    return pd.DataFrame(rows, columns=["norm", "ratio"])


def _summing(sums: dict[str, Tensor], name: str, cut: Cut) -> Callable:
    def add(module: nn.Module, args: tuple, output: Tensor) -> None:
        gain = (1 + cut(output.detach())).abs().sum(0)
        sums[name] = sums[name] + gain if name in sums else gain

    return add


def _scales(model: nn.Module) -> dict[str, tuple[nn.Module, Cut]]:
    """By norm: the module whose output holds its scale, and how to cut that out, `[N, C]`."""
    found: dict[str, tuple[nn.Module, Cut]] = {}
    shared = getattr(model, "adaln_single", None)
    for path, module in model.named_modules():
        if getattr(module, "time_embedding_norm", None) == "scale_shift":
            found[path] = module.time_emb_proj, lambda out: out.chunk(2, dim=1)[0]
        elif type(module).__name__ == "AdaLayerNormZero":
            for part, place in _SIX.items():
                found[f"{path} {part}"] = module.linear, _row(place)
        elif shared is not None and _table(module) is not None:
            for part, place in _SIX.items():
                found[f"{path} {part}"] = shared.linear, _row(place, _table(module))
    return found


_SIX = {"attention": 1, "mlp": 4}
"""Where adaLN's six vectors hold a scale: shift, scale, gate of attention, then of the MLP."""


def _table(module: nn.Module) -> Tensor | None:
    """A block's own six vectors, added to those that all blocks share."""
    table = getattr(module, "scale_shift_table", None)
    return table if isinstance(table, Tensor) and len(table) == 6 else None


def _row(place: int, table: Tensor | None = None) -> Cut:
    def cut(output: Tensor) -> Tensor:
        row = output.chunk(6, dim=1)[place]
        return row if table is None else row + table.detach()[place]

    return cut


def summary(pipe, trajectories: int = TRAJECTORIES, sampler: dict | None = None) -> dict[str, Any]:
    """The census of a pipeline in a few numbers, for its model card.

    Of every figure the median and the largest over layers; a layer's own figure is the median over
    steps and branches. Skewness is that of temporal layers, in absolute value.
    """
    states, _ = record(pipe, seeds.CALIBRATION[:trajectories], sampler)
    frame = census(pipe, states)
    moves = drift(frame)
    measures = ["channel_ratio", "token_ratio", "token_spread", "shortcut"]
    layers = frame.groupby("layer", sort=False)[measures].median()
    temporal = frame[frame["layer"].str.contains("|".join(TEMPORAL))]
    found = {
        "drift": _spread(moves["drift"]) | {"share_above_2": _share(moves["drift"] > 2)},
        "step_spread": _spread(moves["step_spread"]),
        **{name: _spread(layers[name]) for name in measures},
        "temporal_skewness": _spread(temporal.groupby("layer")["skewness"].median().abs()),
        "modulation": _spread(modulation(pipe, states)["ratio"]),
    }
    return {"trajectories": trajectories} | {name: value for name, value in found.items() if value}


def _spread(values: pd.Series) -> dict[str, float]:
    """Median and largest; nothing if there is nothing to report."""
    values = values.dropna()
    if values.empty:
        return {}
    return {"median": round(float(values.median()), 2), "largest": round(float(values.max()), 2)}


def _share(hits: pd.Series) -> float:
    return round(float(hits.mean()), 2)
