"""What every number format is: a frozen value that maps tensors to codes and back.

With a scale s and an integer zero point z, a format snaps u = x / s to the nearest of its levels
Q(u) and gives back s Q(u). Three functions say the same thing at different costs:

    encode(x)     -> integer codes
    decode(codes) -> s Q(u)
    fake_quant(x) =  decode(encode(x)), equal element by element, in one pass over floats

(equal as numbers: codes cannot tell -0.0 from 0.0). Gradients of fake_quant are straight-through
for x and those of LSQ for s (Esser et al., ICLR 2020, arXiv 1902.08153, equations 3 and 5):

    dxhat/dx = 1[inside],   dxhat/ds = Q(u) - u 1[inside],   dxhat/dz = -s 1[outside]

where inside means that u lies between the lowest and the highest level, both included.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dqlab.errors import InvalidInputError, UnknownNameError

SMALLEST_SCALE = 1e-8  # keeps an all-zero tensor from dividing by zero


@dataclass(frozen=True, eq=False)
class Range:
    """Where the levels lie: `scale` > 0 and integer-valued `zero_point`, both floating point.

    Shapes: scalar (per tensor), [C, 1, 1, 1] (per channel), [T] or [T, ...] (one per sampler
    step).
    """

    scale: Tensor
    zero_point: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Range:
        """Move or cast both tensors, with the arguments of `Tensor.to`."""
        return Range(self.scale.to(*args, **kwargs), self.zero_point.to(*args, **kwargs))

    def index(self, rows: int | Tensor, ndim: int) -> Range:
        """Pick steps from a [T, ...] range, for a batch with `ndim` dimensions.

        `rows` is one step for the whole batch, or an [N] tensor with the step of each sample. Then
        the result is [N, 1, .., 1, ...]: what a step's range has after T broadcasts against one
        sample just as it does alone. Raises InvalidInputError for a single step outside 0..T-1
        and for a range that does not fit; a tensor's steps are the caller's to check.
        """
        if self.scale.ndim == 0:
            raise InvalidInputError("this range has no step axis: it is one scale for every step")
        if isinstance(rows, Tensor):
            return Range(
                _per_sample(self.scale[rows], ndim), _per_sample(self.zero_point[rows], ndim)
            )
        if not 0 <= rows < len(self.scale):
            raise InvalidInputError(
                f"step {rows} is outside this range's steps 0..{len(self.scale) - 1}"
            )
        return Range(self.scale[rows], self.zero_point[rows])


def _per_sample(x: Tensor, ndim: int) -> Tensor:
    rest = x.shape[1:]
    if len(rest) == ndim and rest[0] == 1:  # the place of the batch, now taken by the samples
        rest = rest[1:]
    if len(rest) >= ndim:
        raise InvalidInputError(
            f"a range of shape {tuple(x.shape[1:])} per step does not fit {ndim} dimensions"
        )
    return x.reshape(len(x), *[1] * (ndim - 1 - len(rest)), *rest)


class Format:
    """Base of all number formats; subclasses are frozen dataclasses.

    A subclass gives `bits`, `name`, `params`, `encode`, `decode`, `levels`, and two protected
    functions in units of the scale: `_snap` (nearest level) and `_bounds` (lowest, highest level).
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Format]]] = {}

    bits: float
    name: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Format.kinds[cls.kind] = cls

    def __str__(self) -> str:
        return self.name

    def params(self, low: Tensor, high: Tensor) -> Range:
        """Scale and zero point whose levels cover [low, high] and 0."""
        raise NotImplementedError

    def encode(self, x: Tensor, r: Range) -> Tensor:
        """Integer codes of x, int32, same shape as x."""
        raise NotImplementedError

    def decode(self, codes: Tensor, r: Range) -> Tensor:
        """Values of integer codes, in the dtype of r.scale."""
        raise NotImplementedError

    def levels(self, r: Range) -> Tensor:
        """Representable values, ascending; [..., L] for a range of shape [...]."""
        raise NotImplementedError

    def _snap(self, u: Tensor, zero_point: Tensor) -> Tensor:
        """Nearest level of u = x / s, in units of s; may overwrite u."""
        raise NotImplementedError

    def _bounds(self, zero_point: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Lowest and highest level, in units of s."""
        raise NotImplementedError

    def fake_quant(self, x: Tensor, r: Range, grad_scale: float = 1.0) -> Tensor:
        """The values x has after a round trip through codes, in x's dtype and memory format.

        Computed in the dtype of r.scale, so that half-precision inputs do not overflow in x / s.
        `grad_scale` multiplies the gradient of r.scale and r.zero_point (see `lsq_grad_scale`).
        """
        needs_grad = torch.is_grad_enabled() and (
            x.requires_grad or r.scale.requires_grad or r.zero_point.requires_grad
        )
        if needs_grad:
            return StraightThrough.apply(x, r.scale, r.zero_point, self, grad_scale)
        return self._values(x, r.scale, r.zero_point)

    def _values(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        u = x.to(scale.dtype).div(scale)
        return self._snap(u, zero_point).mul_(scale).to(x.dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able description; `Format.from_dict` reads it back."""
        return {"kind": self.kind, **asdict(self)}

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Format:
        """Inverse of `to_dict`; UnknownNameError or InvalidInputError for a wrong description."""
        fields = dict(d)
        kind = fields.pop("kind", None)
        if kind not in Format.kinds:
            raise UnknownNameError(
                f"unknown format kind {kind!r}; there are {', '.join(sorted(Format.kinds))}"
            )
        try:
            return Format.kinds[kind](**fields)
        except TypeError as error:
            raise InvalidInputError(
                f"not a description of a {kind} format: {d} ({error})"
            ) from error

    @staticmethod
    def parse(spec: int | str | Format) -> Format:
        """The format that a number of bits or a name stands for; see `dqlab.formats.parse`."""
        from dqlab.formats.names import parse

        return parse(spec)


class StraightThrough(torch.autograd.Function):
    """fake_quant with the gradients of this module's docstring; saves only its inputs."""

    @staticmethod
    def forward(ctx, x, scale, zero_point, fmt, grad_scale):  # noqa: D102
        ctx.save_for_backward(x, scale, zero_point)
        ctx.fmt, ctx.grad_scale = fmt, grad_scale
        return fmt._values(x, scale, zero_point)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # noqa: D102
        x, scale, zero_point = ctx.saved_tensors
        u = x.to(scale.dtype).div(scale)
        low, high = ctx.fmt._bounds(zero_point)
        inside = (u >= low) & (u <= high)
        dx = ds = dz = None
        if ctx.needs_input_grad[0]:
            dx = grad * inside
        if ctx.needs_input_grad[1]:
            slope = ctx.fmt._snap(u.clone(), zero_point) - u * inside
            ds = (grad * slope).sum_to_size(scale.shape) * ctx.grad_scale
        if ctx.needs_input_grad[2]:
            dz = -(grad * scale * ~inside).sum_to_size(zero_point.shape) * ctx.grad_scale
        return dx, ds, dz, None, None


def one_scale(low: Tensor, high: Tensor, largest: float) -> Range:
    """Range of a format without zero point: s = max(|low|, |high|) / largest, z = 0."""
    tau = torch.maximum(torch.as_tensor(low).abs(), torch.as_tensor(high).abs())
    return Range((tau / largest).clamp(min=SMALLEST_SCALE), torch.zeros_like(tau))


def lsq_grad_scale(x: Tensor, r: Range, fmt: Format, batch: bool = False) -> float:
    """LSQ's gradient scale g = 1 / sqrt(N q_max) (Esser et al. 2020, section 2.2).

    N is the number of elements that share one scale. With `batch`, dimension 0 of x is a batch
    and does not count (the paper's rule for activations; public code counts it).
    q_max is the format's highest level in units of s, at zero point 0.
    """
    sharing = x.numel() / max(r.scale.numel(), 1)
    if batch:
        sharing /= 1 if r.scale.ndim == x.ndim and len(r.scale) == len(x) else len(x)
    q_max = float(fmt._bounds(torch.zeros(()))[1])
    return 1 / math.sqrt(sharing * q_max)
