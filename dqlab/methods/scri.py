"""QVD's scattered channel range integration on single layers: the rewrite and its exponent.

Equal ranges leave no headroom. One range for all channels covers what a narrow channel may do
beyond what was seen of it; once every channel fills the range, that is clipped. So factors and
ranges from either half of the trajectories are judged on the other one. Judged on their own rows,
layers that read captions look best fully evened out, and a caption they have not seen is clipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dqlab.formats import Format, Range
from dqlab.layers import StepContext, smooth_layer
from dqlab.layers.wrap import wrap_layer
from dqlab.methods.channels import ChannelRange, some_inputs
from dqlab.ranges import min_max
from dqlab.ranges.rows import thinned
from dqlab.ranges.rules import rule_of
from dqlab.reference import qvd as paper
from dqlab.trajectory import States

ALPHAS = (None, 0.0, 0.25, 0.5, 0.75, 1.0)
ROWS = 16
"""States of each half that alpha is judged on."""
VALUES = 2**13
"""Of a layer's input, in that search."""
RULE = "shrink"


def halves(states: States) -> list[States]:
    """Trajectories by turns in two sets; a single one stays whole."""
    kept = states.seed.unique()
    if len(kept) < 2:
        return [states]
    first = torch.isin(states.seed, kept[::2])
    return [states[first], states[~first]]


def best_alphas(
    denoiser: nn.Module,
    layers: Sequence[str],
    sets: Sequence[States],
    ranges: Sequence[dict[str, ChannelRange]],
    formats: Callable[[str], Sequence[Format | None]],
) -> dict[str, float | None]:
    """The exponent with the least output error for each layer; None leaves the layer alone.

    Args:
        denoiser: in full precision, not yet wrapped.
        layers: paths in execution order.
        sets: `halves` of the calibration set; each is judged by what the other one yields.
        ranges: channel ranges on each set.
        formats: of a layer's input and weight.

    """
    inputs = [some_inputs(denoiser, layers, one, ROWS) for one in sets]
    chosen = {}
    for path in layers:
        seen, on = [found[path] for found in ranges], [found.pop(path) for found in inputs]
        turns = list(zip(seen, on, on[::-1], strict=True))
        chosen[path] = _best(denoiser.get_submodule(path), turns, formats(path))
    return chosen


def _best(layer: nn.Module, turns: Sequence[tuple], formats: Sequence) -> float | None:
    def error(alpha: float | None) -> float:
        return sum(output_error(layer, x, seen, formats, alpha, on) for seen, on, x in turns)

    return min(ALPHAS, key=error)  # the first of equals: "none"


def integrate(layer: nn.Module, seen: ChannelRange, alpha: float) -> nn.Module:
    """Rewrite a plain layer by SCRI, in place."""
    delta, sigma = paper.scri_factors(seen.low, seen.high, alpha)
    smooth_layer(layer, sigma, seen.path, delta)
    return layer


@torch.no_grad()
def output_error(
    layer: nn.Module,
    x: Tensor,
    seen: ChannelRange,
    formats: Sequence[Format | None],
    alpha: float | None,
    on: Tensor | None = None,
) -> float:
    """Mean squared error of a layer's output with input and weight in `formats`, rewritten.

    The input's range is searched on `on`, other inputs of the layer, or on x itself.
    """
    twin, y = copy.deepcopy(layer), layer(x)
    if alpha is not None:
        integrate(twin, seen, alpha)
    wrap_layer(twin, seen.path, StepContext())
    of_input, of_weight = twin.input_quantizer, twin.weight_quantizer
    if formats[0] is not None:
        found = _searched(_passing(twin, x if on is None else on), formats[0])
        of_input.format = formats[0]
        of_input.set_range(found)
    of_weight.format = formats[1]
    if formats[1] is not None:
        of_weight.set_range(min_max(twin.weight, formats[1], axis=0))
    return float((twin(x) - y).square().mean())


def _passing(layer: nn.Module, x: Tensor) -> Tensor:
    """What reaches the input quantizer of a wrapped layer."""
    seen: list[Tensor] = []
    layer.input_quantizer.taps.append(seen.append)
    layer(x)
    layer.input_quantizer.taps.clear()
    return seen[0]


def _searched(x: Tensor, fmt: Format) -> Range:
    rows = thinned(x.reshape(1, -1), VALUES, torch.Generator().manual_seed(0))
    low, high = rule_of(RULE)(rows, fmt)
    return fmt.params(low.reshape(()), high.reshape(()))
