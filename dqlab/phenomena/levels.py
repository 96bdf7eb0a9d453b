"""What rounding to a few levels does to a tensor: error against scale, clip point, granularity.

Values uniform within a level's cell lose s^2 / 12 in power (Widrow and Kollar, "Quantization
Noise", 2008, chapter 1); clipping loses the square of what was cut off.
"""

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Format, Range
from dqlab.metrics import to_db
from dqlab.ranges import min_max


def place(fmt: Affine, low: float, high: float, scale: float = 1.0, shift: int = 0) -> Range:
    """Min-max range of `fmt` for [low, high], its scale multiplied, its zero point moved.

    Raises:
        InvalidInputError: if `scale` is not above 0.

    """
    if scale <= 0:
        raise InvalidInputError(f"scale={scale}: levels need a distance above 0.")
    found = fmt.params(torch.tensor(float(low)), torch.tensor(float(high)))
    zero_point = (found.zero_point + shift).clamp(fmt.q_min, fmt.q_max)
    return Range(found.scale * scale, zero_point)


def fitted(x: Tensor, bits: int) -> tuple[Affine, Range]:
    """The affine format of so many bits, and its min-max range for `x`."""
    return Affine(bits), min_max(x, Affine(bits))


def rounding_error(x: Tensor, fmt: Format, r: Range) -> dict[str, float]:
    """Error power of one range on `x`: total, variance, mean, s^2 / 12, their ratio, dB, clipped.

    `ratio` is variance / (s^2 / 12), near 1 where cells are evenly filled and nothing is clipped.
    """
    error = (fmt.fake_quant(x, r) - x).double()
    levels = fmt.levels(r).double()
    half = float(r.scale) / 2
    outside = (x < levels[0] - half) | (x > levels[-1] + half)
    expected = float(r.scale) ** 2 / 12
    return {
        "power": float(error.square().mean()),
        "variance": float(error.var(correction=0)),
        "mean": float(error.mean()),
        "expected": expected,
        "ratio": float(error.var(correction=0)) / expected,
        "sqnr_db": float(to_db(x.double().square().mean(), error.square().mean())),
        "clipped": float(outside.double().mean()),
        "scale": float(r.scale),
    }


def gaussian(count: int = 100_000, seed: int = 0) -> Tensor:
    """Standard normal values `[count]`, the same for the same seed."""
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def clip_curve(x: Tensor, bits: int, points: Sequence[float]) -> pd.DataFrame:
    """Error power of symmetric `bits`-bit levels on [-c, c] for each clip point c.

    Returns:
        Columns clip, rounding, clipping, total (mean squares; total is their sum).

    """
    fmt, rows = Affine(bits, "sym_signed_full"), []
    for clip in points:
        scale = torch.tensor(2.0 * clip / (2**bits - 1))
        square = (fmt.fake_quant(x, Range(scale, torch.zeros(()))) - x).double().square()
        outside = (x.abs() > clip).double()
        parts = (square * (1 - outside)).mean(), (square * outside).mean()
        rows.append((float(clip), *map(float, parts), float(sum(parts))))
    return pd.DataFrame(rows, columns=["clip", "rounding", "clipping", "total"])


def min_max_loss(curve: pd.DataFrame) -> dict[str, float]:
    """Best clip point of `clip_curve`, and what its widest point loses against it in dB."""
    best, widest = curve.loc[curve["total"].idxmin()], curve.loc[curve["clip"].idxmax()]
    return {
        "best": float(best["clip"]),
        "widest": float(widest["clip"]),
        "loss_db": float(to_db(widest["total"], best["total"])),
        "rounding": float(best["rounding"]),
        "clipping": float(best["clipping"]),
    }


def granularity(weights: Iterable[tuple[str, Tensor]], bits: int) -> pd.DataFrame:
    """SQNR of each weight with one range for all, and with one per output channel.

    Returns:
        Columns layer, per_tensor, per_channel, gain, all in dB.

    """
    fmt, rows = Affine(bits), []
    for name, weight in weights:
        found = [_sqnr(weight, fmt, axis) for axis in (None, 0)]
        rows.append((name, *found, found[1] - found[0]))
    return pd.DataFrame(rows, columns=["layer", "per_tensor", "per_channel", "gain"])


def _sqnr(x: Tensor, fmt: Format, axis: int | None) -> float:
    error = fmt.fake_quant(x, min_max(x, fmt, axis=axis)) - x
    return float(to_db(x.double().square().sum(), error.double().square().sum()))


def weights_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Name and detached weight of every Conv and Linear, in the module tree's order."""
    kinds = (nn.Linear, nn.Conv2d)
    return [(n, m.weight.detach()) for n, m in model.named_modules() if isinstance(m, kinds)]
