"""QNCD's smoothing block by block: what the timestep embedding stretches, what evening out gains.

The second convolution of a residual block reads u = SiLU(...), whose channels the embedding
shifts or scales. The decider is the stretch: the largest factor S_c over the median one (QNCD,
Chu et al., ACM MM 2024, arXiv 2403.19140).
"""

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.formats import Affine
from dqlab.methods.unet_correction.qncd import Qncd, embeddings, timed_blocks
from dqlab.metrics import to_db
from dqlab.models.families import Sampler, family_of
from dqlab.phenomena.calibration import job_of
from dqlab.phenomena.drift import short_name
from dqlab.ranges import min_max
from dqlab.reference.qncd import smoothing_scale_shift
from dqlab.trajectory import States, replay


def block_factors(pipe, states: States, sampler: Sampler | None = None) -> dict[str, Tensor]:
    """S `[C]` of every residual block that reads the timestep, no floor."""
    method = Qncd(floor=0.0)
    job = job_of(pipe, "qncd", sampler or Sampler())
    job.calibration = states
    blocks = dict(timed_blocks(job.denoiser))
    found = embeddings(job, blocks)
    return {path: method.factors(blocks[path], emb) for path, emb in found.items()}


def stretch(S: Tensor) -> float:
    """The largest factor over the median one."""
    return float(S.max() / S.median())


@torch.no_grad()
def smoothing_gains(
    pipe, states: States, bits: int = 6, floor: float = 1.0, sampler: Sampler | None = None
) -> pd.DataFrame:
    """SQNR of each block's second convolution with its input in bits, plain and smoothed.

    Args:
        pipe: in full precision.
        states: some recorded states.
        bits: of the convolution's input, one min-max range; weights stay.
        floor: of the factors.
        sampler: whose timesteps the factors are averaged over.

    Returns:
        Columns block, ratio (`stretch`), plain, smoothed, gain (dB).

    """
    factors, model = block_factors(pipe, states, sampler), family_of(pipe).denoiser(pipe)
    inputs: dict[str, list[Tensor]] = {path: [] for path in factors}
    blocks = {path: model.get_submodule(path) for path in factors}
    handles = [
        block.conv2.register_forward_pre_hook(lambda m, x, p=path: inputs[p].append(x[0]))
        for path, block in blocks.items()
    ]
    try:
        replay(model, states)
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for path, S in factors.items():
        u, conv = torch.cat(inputs[path]), blocks[path].conv2
        pair = [_output_db(conv, u, s, bits) for s in (torch.ones_like(S), S.clamp(min=floor))]
        rows.append((short_name(path), stretch(S), *pair, pair[1] - pair[0]))
    return pd.DataFrame(rows, columns=["block", "ratio", "plain", "smoothed", "gain"])


def _output_db(conv: nn.Module, u: Tensor, S: Tensor, bits: int) -> float:
    """SQNR of conv(u) with u / S in bits, S given back afterwards as the smoothed weight does."""
    wide, fmt = S.reshape(-1, 1, 1), Affine(bits)
    rough = fmt.fake_quant(u / wide, min_max(u / wide, fmt)) * wide
    exact = conv(u)
    return float(to_db(exact.square().sum(), (conv(rough) - exact).square().sum()))


@torch.no_grad()
def synthetic_gain(ratios: Iterable[float], bits: int = 6, channels: int = 64) -> pd.DataFrame:
    """The same on a made-up block whose embedding scales every 16th channel `ratio` times more.

    Returns:
        Columns ratio (`stretch`), gain (dB).

    """
    rows = []
    for ratio in ratios:
        generator = torch.Generator().manual_seed(0)
        one_plus = torch.ones(channels)
        one_plus[::16] = ratio
        u = torch.nn.functional.silu(
            torch.randn(8, channels, 8, 8, generator=generator) * one_plus[:, None, None]
        )
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
        conv.bias.zero_()
        S = smoothing_scale_shift((one_plus - 1)[None])
        gain = _output_db(conv, u, S.clamp(min=1.0), bits) - _output_db(
            conv, u, torch.ones_like(S), bits
        )
        rows.append((stretch(S), gain))
    return pd.DataFrame(rows, columns=["ratio", "gain"])
