"""Samples of many seeds, in batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dqlab.models.families import Sampler, family_of


def sample(
    pipe, wanted: Sequence[int], batch_size: int = 50, sampler: Sampler | None = None
) -> Tensor:
    """What a pipeline makes of the given seeds at the default sampler or another, in [0, 1].

    Returns:
        images `[N, 3, H, W]` or videos `[N, F, 3, H, W]`.

    """
    family, wanted = family_of(pipe), list(wanted)
    parts = [wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size)]
    return torch.cat([family.run(pipe, sampler or Sampler(), part) for part in parts])
