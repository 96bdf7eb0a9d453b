"""Function-preserving injections: the same network, harder to quantize.

Small networks show some effects of large ones weakly. An injection multiplies part of what a
layer reads by a power of two, at the place where it is read, and undoes that in the layer. In
exact arithmetic the network computes what it did; a quantizer between the two meets the
difficulty. Powers of two only move exponents, so full precision does not notice either.

Three kinds:

    ShortcutImbalance  cat([x1, x2]) becomes cat([x1, c x2]) just before the block that reads it,
                       and each layer in there that reads it has W2 divided by c
    ChannelOutliers    some channels of a layer's input times c, their weights divided by c
    TimestepDrift      a layer's input times f_k at sampling step k, its output divided by f_k

A GroupNorm that reads the concatenation takes its factor out again if no group holds channels of
both parts, up to its eps: a group of variance v becomes (x - m) / sqrt(v + eps / c^2) instead of
(x - m) / sqrt(v + eps), larger by a factor of at most sqrt(1 + eps / v) for c > 1 (`norm_bound`).
There is no such bound for c < 1, where eps grows beside the variance.

An injection lives in hooks of the model, for measuring: `dqlab.trajectory.injected` makes such a
model, checks it against the original, and refuses to save it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.layers.context import StepContext
from dqlab.layers.split import Concatenations
from dqlab.layers.wrap import LAYERS


@dataclass(frozen=True)
class ShortcutImbalance:
    """The last part of channel concatenations times `factor`.

    Attributes:
        factor: a power of two.
        blocks: shell patterns of the modules that read a concatenation, such as
            "up_blocks.*.resnets.*"; the default takes all.

    """

    factor: float
    blocks: tuple[str, ...] = ("*",)

    def apply(self, model: nn.Module, run: Callable[[], object], context: StepContext) -> None:
        """Inject in place; raises as `readers` and `scale_part` do."""
        _check_factors([self.factor])
        found = {p: r for p, r in readers(model, run).items() if _named(p, self.blocks)}
        if not found:
            raise NotApplicableError(
                f"No block of this {type(model).__name__} that is named like "
                f"{', '.join(self.blocks)} reads a channel concatenation."
            )
        for reader in found.values():
            reader.check()
        for path, reader in found.items():
            reader.scale_last(model.get_submodule(path), self.factor)


@dataclass(frozen=True)
class ChannelOutliers:
    """Some input channels of some layers times `factor`.

    Attributes:
        factor: a power of two.
        layers: shell patterns of Conv and Linear paths. Layers that read the same tensor, as
            q, k and v do, should all be named.
        channels: which input channels.

    """

    factor: float
    layers: tuple[str, ...]
    channels: tuple[int, ...]

    def apply(self, model: nn.Module, run: Callable[[], object], context: StepContext) -> None:
        """Inject in place; raises InvalidInputError for a layer or channel that is not there."""
        _check_factors([self.factor])
        layers = _layers(model, self.layers)
        for path, layer in layers.items():
            self._check(path, layer)
        for layer in layers.values():
            gain = torch.ones(_inputs(layer))
            gain[list(self.channels)] = self.factor
            with torch.no_grad():
                layer.weight /= gain.to(layer.weight).reshape(-1, *[1] * (layer.weight.ndim - 2))
            layer.register_forward_pre_hook(_ChannelGain(gain, isinstance(layer, nn.Linear)))

    def _check(self, path: str, layer: nn.Module) -> None:
        size = _inputs(layer)
        if getattr(layer, "groups", 1) != 1:
            raise NotApplicableError(f"{path} is a grouped convolution; choose another layer.")
        if not self.channels or any(not 0 <= c < size for c in self.channels):
            raise InvalidInputError(
                f"channels={self.channels}; {path} reads channels 0 to {size - 1}."
            )


@dataclass(frozen=True)
class TimestepDrift:
    """The input of some layers times a factor that depends on the sampling step.

    Attributes:
        factors: powers of two, one per step of the sampler.
        layers: shell patterns of Conv and Linear paths.

    """

    factors: tuple[float, ...]
    layers: tuple[str, ...]

    def apply(self, model: nn.Module, run: Callable[[], object], context: StepContext) -> None:
        """Inject in place; the model then runs on the context's schedule alone."""
        _check_factors(self.factors)
        steps = 0 if context.schedule is None else len(context.schedule)
        if len(self.factors) != steps:
            raise InvalidInputError(
                f"{len(self.factors)} factors for a sampler of {steps} steps; give one for each."
            )
        for path, layer in _layers(model, self.layers).items():
            drift = _Drift(path, torch.tensor(self.factors), context)
            layer.register_forward_pre_hook(drift.before)
            layer.register_forward_hook(drift.after)


Injection = ShortcutImbalance | ChannelOutliers | TimestepDrift


@dataclass
class Reader:
    """A module that reads a concatenation, and what inside it does.

    Attributes:
        path: of the module.
        sizes: channels of the concatenation's parts.
        layers, norms: Conv, Linear and GroupNorm modules that read it as it is, by path.

    """

    path: str
    sizes: tuple[int, ...]
    layers: dict[str, nn.Module] = field(default_factory=dict)
    norms: dict[str, nn.GroupNorm] = field(default_factory=dict)

    def check(self) -> None:
        """Raise NotApplicableError if the last part's factor could not be undone."""
        start, channels = sum(self.sizes[:-1]), sum(self.sizes)
        for path, norm in self.norms.items():
            group = channels // norm.num_groups
            if start % group:
                raise NotApplicableError(
                    f"{path} normalizes groups of {group} channels and the parts of its input "
                    f"have {self.sizes}: one group holds channels of both, so scaling a part "
                    "changes the function. Inject elsewhere, or use a model whose groups end "
                    "where the parts do."
                )
        for path, layer in self.layers.items():
            if getattr(layer, "groups", 1) != 1:
                raise NotApplicableError(f"{path} is a grouped convolution; inject elsewhere.")

    @torch.no_grad()
    def scale_last(self, module: nn.Module, factor: float) -> None:
        """The last part times `factor` on entering `module`, its layers' weights divided."""
        for layer in self.layers.values():
            layer.weight[:, sum(self.sizes[:-1]) :] /= factor
        module.register_forward_pre_hook(_PartGain(self.sizes, factor))


def readers(model: nn.Module, run: Callable[[], object]) -> dict[str, Reader]:
    """Outermost modules whose first argument is a channel concatenation, found by one forward."""
    seen: list[tuple[str, nn.Module, int]] = []
    with torch.no_grad(), Concatenations() as watch:

        def look(path: str) -> Callable:
            def hook(module: nn.Module, args: tuple) -> None:
                if args and id(args[0]) in watch.made:
                    seen.append((path, module, id(args[0])))

            return hook

        handles = [m.register_forward_pre_hook(look(p)) for p, m in model.named_modules()]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return _grouped(seen, watch)


def _grouped(seen: list, watch: Concatenations) -> dict[str, Reader]:
    found: dict[int, Reader] = {}
    for path, module, key in seen:
        result, dim, sizes = watch.made[key]
        channel = result.ndim - 1 if isinstance(module, nn.Linear) else 1
        if result.ndim < 3 or dim % result.ndim != channel:
            continue
        reader = found.setdefault(key, Reader(path, sizes))
        if isinstance(module, LAYERS):
            reader.layers[path] = module
        elif isinstance(module, nn.GroupNorm):
            reader.norms[path] = module
    return {reader.path: reader for reader in found.values()}


def norm_bound(variance: float, eps: float) -> float:
    """Largest relative change of a GroupNorm's output when its group is scaled up.

    sqrt((v + eps) / (v + eps / c^2)) - 1 < sqrt(1 + eps / v) - 1 for every c > 1.
    """
    return math.sqrt(1 + eps / variance) - 1


@dataclass
class _PartGain:
    sizes: tuple[int, ...]
    factor: float

    def __call__(self, module: nn.Module, args: tuple) -> tuple:
        *others, last = args[0].split(self.sizes, 1)
        # Joined by torch.cat, so that whoever looks for concatenations finds this one.
        return torch.cat([*others, last * self.factor], 1), *args[1:]


@dataclass
class _ChannelGain:
    gain: Tensor
    last: bool

    def __call__(self, module: nn.Module, args: tuple) -> tuple:
        x = args[0]
        shape = [1] * x.ndim
        shape[-1 if self.last else 1] = -1
        return x * self.gain.to(x).reshape(shape), *args[1:]


@dataclass
class _Drift:
    path: str
    factors: Tensor
    context: StepContext

    def rows(self, x: Tensor) -> Tensor:
        steps = self.context.steps_of(len(x), self.path)
        return self.factors.to(x)[steps.to(x.device)].reshape(-1, *[1] * (x.ndim - 1))

    def before(self, module: nn.Module, args: tuple) -> tuple:
        return args[0] * self.rows(args[0]), *args[1:]

    def after(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        factor = self.rows(output)
        if module.bias is None:
            return output / factor
        shape = (-1,) if isinstance(module, nn.Linear) else (-1, *[1] * (output.ndim - 2))
        bias = module.bias.reshape(shape)
        return (output - bias) / factor + bias


def _check_factors(factors: Sequence[float]) -> None:
    for factor in factors:
        if not (factor > 0 and math.isfinite(factor) and math.frexp(factor)[0] == 0.5):
            raise InvalidInputError(
                f"factor={factor!r}; give a power of two, such as 64: others would round."
            )


def _layers(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LAYERS) and _named(path, patterns)
    }
    if not found:
        raise InvalidInputError(
            f"No Conv or Linear of this {type(model).__name__} is named like "
            f"{', '.join(patterns)}; see model.named_modules()."
        )
    return found


def _named(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _inputs(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
