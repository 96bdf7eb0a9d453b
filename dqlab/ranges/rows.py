"""How a range function sees a tensor: as rows [K, M], one row for each range it must find.

`axis` names the dimensions that keep ranges of their own (None: one range for all, 0: one per
output channel, (0, 1): one per token of [B, N, D]); `group_size` splits the last dimension in
groups first. The range found for the rows is shaped so that it broadcasts against the tensor, or,
with groups, against `to_groups(x, group_size)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range

Axis = int | tuple[int, ...] | None


@dataclass(frozen=True)
class Rows:
    """`values` [K, M] and the `shape` that K numbers take to broadcast against the tensor."""

    values: Tensor
    shape: tuple[int, ...]

    def range(self, fmt: Format, low: Tensor, high: Tensor) -> Range:
        """The range of `fmt` for bounds [K], in the broadcasting shape."""
        return fmt.params(low.reshape(self.shape), high.reshape(self.shape))


def rows_of(x: Tensor, axis: Axis, group_size: int | None = None, name: str = "tensor") -> Rows:
    """Check x and lay it out as rows, in float32 or float64.

    `name` is how errors call the tensor, such as the site it belongs to.
    Raises InvalidInputError if x is empty, not floating point, or holds NaN or infinity.
    """
    check_finite(x, name)
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    keep = () if axis is None else (axis,) if isinstance(axis, int) else axis
    if any(not -x.ndim <= d < x.ndim for d in keep):
        raise InvalidInputError(f"axis {axis} does not exist in {name} of shape {tuple(x.shape)}")
    if group_size is not None:
        keep = (*(d % x.ndim for d in keep), x.ndim - 1)
        x = to_groups(x, group_size)
    keep = tuple(sorted({d % x.ndim for d in keep}))
    shape = tuple(x.shape[d] if d in keep else 1 for d in range(x.ndim)) if keep else ()
    if group_size is not None:  # ranges per group alone must not depend on the batch's rank
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
    rest = tuple(d for d in range(x.ndim) if d not in keep)
    count = torch.Size(x.shape[d] for d in keep).numel()
    return Rows(x.permute(*keep, *rest).reshape(count, -1), shape)


def check_finite(x: Tensor, name: str) -> None:
    """Raise InvalidInputError, naming the tensor, if no range can be found for x."""
    if not x.is_floating_point():
        raise InvalidInputError(f"{name} must be floating point to find a range, got {x.dtype}")
    if x.numel() == 0:
        raise InvalidInputError(f"{name} is empty (shape {tuple(x.shape)}): no range to find")
    if not x.isfinite().all():
        nan, inf = int(x.isnan().sum()), int(x.isinf().sum())
        raise InvalidInputError(
            f"{name} of shape {tuple(x.shape)} holds {nan} NaN and {inf} infinite values: "
            "no range covers them; find the layer that produced them"
        )


def thinned(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random columns of the rows, the same in each, and each row's lowest and highest.

    Rows that are not longer come back whole. Raises InvalidInputError for a count below 1.
    """
    if count < 1:
        raise InvalidInputError(f"a subsample must have at least 1 value, got {count}")
    if values.shape[1] <= count:
        return values
    columns = torch.randperm(values.shape[1], generator=generator)[:count].to(values.device)
    return torch.cat([values[:, columns], torch.stack(values.aminmax(dim=1), 1)], 1)


def to_groups(x: Tensor, size: int) -> Tensor:
    """[..., D] -> [..., G, size], G = ceil(D / size); flatten a convolution weight to 2-D first.

    A short last group is filled up with zeros. They change neither a range, because every range
    holds 0, nor a search, where 0 is a level; they do count in a percentile. Raises
    InvalidInputError for a size below 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InvalidInputError(f"group_size must be an integer >= 1, got {size!r}")
    missing = -x.shape[-1] % size
    return pad(x, (0, missing)).unflatten(-1, (-1, size))


def from_groups(groups: Tensor, width: int) -> Tensor:
    """Inverse of `to_groups` for a last dimension that was `width` wide."""
    return groups.flatten(-2)[..., :width]
