"""What measuring a range at run time costs beside a static one and a table's row.

    python tests/benchmarks/run_time_ranges.py

Prints ratios of the time that rounding one tensor takes, medians of many calls.
"""

import statistics
import time

import torch

from dqlab.formats import Affine, Range
from dqlab.layers import Quantizer, StepContext

SHAPE = (1, 64, 128, 128)
CALLS = 30


def site(kind: str) -> Quantizer:
    """A quantizer whose range is static, looked up by step, or measured."""
    context = StepContext()
    context.bind(torch.tensor([900.0, 500.0, 100.0]))
    context.at(torch.tensor([500.0], dtype=torch.float64))
    quantizer = Quantizer("a.input", context)
    quantizer.format = Affine(8)
    one = Affine(8).params(torch.tensor(-4.0), torch.tensor(4.0))
    if kind == "static":
        quantizer.set_range(one)
    elif kind == "table":
        table = Range(one.scale.expand(3).clone(), one.zero_point.expand(3).clone())
        quantizer.set_range(table, per_step=True)
    else:
        quantizer.measure("sample")
    return quantizer


def seconds(quantizer: Quantizer, x: torch.Tensor) -> float:
    """Median time of one call."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        quantizer(x)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure on one thread."""
    torch.set_num_threads(1)
    x = torch.randn(SHAPE)
    found = {kind: seconds(site(kind), x) for kind in ("static", "table", "run time")}
    for kind, value in found.items():
        print(f"{kind}: {value / found['static']:.2f} times static ({x.numel()} values)")


if __name__ == "__main__":
    main()
