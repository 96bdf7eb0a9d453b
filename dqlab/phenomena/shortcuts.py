"""Two populations in one tensor: what the shortcuts of a U-Net read, layer by layer.

A shortcut convolution reads cat([x1, x2]): the deep, hidden features and the skip features of
the way down (Q-Diffusion, Li et al., ICCV 2023, arXiv 2302.04304). Its decider is

    rho_X = max|x1| / max|x2|

For two parts that contribute equally to the output, a range shared by both loses

    10 log10( (m^2 + (m / r)^2) / 2 ) dB,   r = 1 / rho_X,  m = max(1, r)

against a range for each, as each part's rounding error grows with the range it is given.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Format, Range
from dqlab.layers.inject import readers
from dqlab.metrics import to_db
from dqlab.models.families import family_of
from dqlab.phenomena.drift import short_name
from dqlab.ranges import min_max
from dqlab.trajectory import States, replay

PARTS = ("hidden", "skip")


@dataclass(frozen=True)
class Shortcut:
    """A shortcut convolution and what it reads.

    Attributes:
        layer: its path; `name` says it for people.
        sizes: channels of the hidden and of the skip part.
        low, high: extremes of each input channel over all states `[C]`.
        sample: some of its input vectors `[P, C]`, the extreme ones not among them.
        weight: its weight `[C_out, C]`.
        after_norm: reach of hidden and skip where the block's 3x3 convolution reads them.

    """

    layer: str
    sizes: tuple[int, int]
    low: Tensor
    high: Tensor
    sample: Tensor
    weight: Tensor
    after_norm: tuple[float, float]

    @property
    def name(self) -> str:
        """Such as "up 0 res 1"."""
        return short_name(self.layer.removesuffix(".conv_shortcut"))

    @property
    def reach(self) -> Tensor:
        """Largest absolute value of each channel `[C]`."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def reach_of(self, part: str) -> float:
        """Largest absolute value of the "hidden" or the "skip" part."""
        return float(self.reach.split(self.sizes)[PARTS.index(part)].max())

    @property
    def rho_x(self) -> float:
        """Reach of the hidden part over that of the skip part."""
        return self.reach_of("hidden") / self.reach_of("skip")

    @property
    def rho_w(self) -> float:
        """The same for the weight, median over output channels."""
        deep, skip = (w.abs().amax(1) for w in self.weight.split(self.sizes, 1))
        return float((deep / skip).median())

    def scaled(self, factor: float) -> "Shortcut":
        """With the injection: skip times `factor`, its weights divided by it."""
        gain = torch.cat([torch.ones(self.sizes[0]), torch.full((self.sizes[1],), float(factor))])
        return replace(
            self,
            low=self.low * gain,
            high=self.high * gain,
            sample=self.sample * gain,
            weight=self.weight / gain,
        )

    def input_range(self, fmt: Format, part: str | None = None) -> Range:
        """Min-max range of the whole input, or of one part."""
        low, high = self.low, self.high
        if part is not None:
            low, high = (x.split(self.sizes)[PARTS.index(part)] for x in (low, high))
        return fmt.params(low.min(), high.max())

    def values(self, part: str) -> Tensor:
        """The sample's values of one part, flat."""
        return self.sample.split(self.sizes, 1)[PARTS.index(part)].flatten()


def shortcuts(pipe, states: States, keep: int = 16) -> list[Shortcut]:
    """Every shortcut convolution of a full-precision pipeline, watched while states are replayed.

    Args:
        pipe: with a U-Net.
        states: what to replay.
        keep: input vectors to keep per state.

    Raises:
        InvalidInputError: if the network has no block that reads a concatenation of two.

    """
    model = family_of(pipe).denoiser(pipe)
    found = readers(model, lambda: states[:1].call(model))
    pairs = [(path, r) for r in found.values() for path in r.layers if len(r.sizes) == 2]
    if not pairs:
        raise InvalidInputError(
            f"This {type(model).__name__} has no convolution that reads a concatenation of two "
            "feature maps, so there is no shortcut to look at."
        )
    watched = {path: _Watch(keep) for path, _ in pairs}
    mains = {f"{r.path}.conv1": _Watch(0) for _, r in pairs}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(watch)
        for path, watch in (watched | mains).items()
    ]
    try:
        replay(model, states)
    finally:
        for handle in handles:
            handle.remove()
    return [
        _shortcut(path, r.sizes, watched[path], mains[f"{r.path}.conv1"], model)
        for path, r in pairs
    ]


def _shortcut(path: str, sizes: tuple, seen: "_Watch", main: "_Watch", model) -> Shortcut:
    weight = model.get_submodule(path).weight.detach().float().flatten(1)
    reach = torch.maximum(main.low.abs(), main.high.abs()).split(sizes)
    after = float(reach[0].max()), float(reach[1].max())
    return Shortcut(path, sizes, seen.low, seen.high, torch.cat(seen.kept), weight, after)


class _Watch:
    """Hook: extremes per channel, and vectors at random positions."""

    def __init__(self, keep: int) -> None:
        self.keep, self.kept = keep, []
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, module, args: tuple) -> None:
        x = args[0].detach().float().flatten(2)
        low, high = x.amin((0, 2)), x.amax((0, 2))
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        if self.keep:
            picks = torch.randint(x.shape[2], (self.keep,), generator=self.generator)
            self.kept.append(x[:, :, picks].movedim(1, 2).flatten(0, 1))


def ratio_table(found: Iterable[Shortcut]) -> pd.DataFrame:
    """Columns layer, hidden, skip (reach), rho_x, rho_w, rho_norm (behind norm and SiLU)."""
    rows = [
        (s.name, s.reach_of("hidden"), s.reach_of("skip"), s.rho_x, s.rho_w,
         s.after_norm[0] / s.after_norm[1])
        for s in found
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["layer", "hidden", "skip", "rho_x", "rho_w", "rho_norm"])


def output_db(s: Shortcut, weights: int | None, activations: int | None, split: bool) -> float:
    """SQNR in dB of the shortcut's output on its sample; None leaves an operand exact."""
    x, w = s.sample, s.weight
    if activations is not None:
        x = _quantized_input(s, Affine(activations), split)
    if weights is not None:
        pieces = w.split(s.sizes, 1) if split else (w,)
        w = torch.cat([_rounded(p, Affine(weights)) for p in pieces], 1)
    truth = (s.sample @ s.weight.T).double()
    return float(to_db(truth.square().sum(), (x @ w.T - truth).double().square().sum()))


def _rounded(weight: Tensor, fmt: Format) -> Tensor:
    return fmt.fake_quant(weight, min_max(weight, fmt, axis=0))


def _quantized_input(s: Shortcut, fmt: Format, split: bool) -> Tensor:
    if not split:
        return fmt.fake_quant(s.sample, s.input_range(fmt))
    pieces = zip(s.sample.split(s.sizes, 1), PARTS, strict=True)
    return torch.cat([fmt.fake_quant(x, s.input_range(fmt, part)) for x, part in pieces], 1)


def split_gains(
    found: Iterable[Shortcut], settings: Iterable[tuple[int | None, int | None]]
) -> pd.DataFrame:
    """What splitting gains at each layer's output, min-max ranges on both sides.

    Returns:
        Columns layer, weights, activations, shared, split, gain; the last three in dB.

    """
    rows = []
    for s in found:
        for weights, activations in settings:
            shared, split = (output_db(s, weights, activations, k) for k in (False, True))
            rows.append((s.name, weights, activations, shared, split, split - shared))
    names = ["layer", "weights", "activations", "shared", "split", "gain"]
    return pd.DataFrame(rows, columns=names)


def expected_gain_db(ratio: float) -> float:
    """Gain of splitting for two equally strong parts, skip reaching `ratio` times as far, dB."""
    wide = max(1.0, ratio)
    return 10 * math.log10((wide**2 + (wide / ratio) ** 2) / 2)


def synthetic_gain(ratios: Iterable[float], bits: int = 8, size: int = 4096) -> pd.DataFrame:
    """The same measured on a made-up layer with uniform parts: columns ratio, gain (dB)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, 16, generator=generator) * 2 - 1
    weight = torch.randn(16, 16, generator=generator)
    ends = x.amin(0), x.amax(0)
    plain = Shortcut("made up", (8, 8), *ends, x, weight, (1.0, 1.0))
    rows = []
    for ratio in ratios:
        s = plain.scaled(ratio)
        rows.append((ratio, output_db(s, None, bits, True) - output_db(s, None, bits, False)))
    return pd.DataFrame(rows, columns=["ratio", "gain"])


def levels_on(s: Shortcut, part: str, bits: int) -> int:
    """How many levels of the comb shared by both parts lie within one part's range."""
    fmt = Affine(bits)
    levels, own = fmt.levels(s.input_range(fmt)), s.input_range(fmt, part)
    ends = fmt.levels(own)
    half = float(own.scale) / 2
    return int(((levels >= ends[0] - half) & (levels <= ends[-1] + half)).sum())
