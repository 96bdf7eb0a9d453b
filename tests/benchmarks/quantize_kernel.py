"""quantize_affine on a GPU: codes equal bit for bit, and time against what bounds it.

    python tests/benchmarks/quantize_kernel.py --out FILE

Times are medians over many calls with events, every call on the next of several buffers, so that
none is found in the cache. A copy of the same tensor tells the bandwidth that can be had.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dqlab.kernels import named
from dqlab.kernels.quantize.hard_values import hard_values

SCALES = (1.0, 0.1, 1 / 3, 1e-30)
ZEROS_AND_BITS = ((0, 8), (128, 8), (-37, 8), (7, 4), (1, 1))
ELEMENTS = (2**14, 2**18, 2**22, 2**26, 2**28)
BUFFERS = 4
CALLS = 50
WARM_UP = 10


def wrong_codes(device: torch.device) -> int:
    """Codes in which the kernel and the reference differ, over all settings."""
    generator, wrong = torch.Generator(device).manual_seed(0), 0
    for scale in SCALES:
        x = hard_values(1_000_003, scale, generator)
        x[::1009], x[1::1009], x[2::1009] = float("nan"), float("inf"), -float("inf")
        for zero_point, bits in ZEROS_AND_BITS:
            numbers = settings(scale, zero_point, device)
            codes = [run(name, x, *numbers, bits) for name in ("triton", "reference")]
            wrong += int((codes[0] != codes[1]).sum())
    return wrong


def settings(scale: float, zero_point: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and zero point as the operation takes them."""
    return (
        torch.tensor(scale, device=device),
        torch.tensor(zero_point, dtype=torch.int32, device=device),
    )


def run(name: str, x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """One implementation, whatever it would refuse."""
    return named("quantize_affine", name).run(x, scale, zero_point, bits)


def microseconds(call: Callable[[Tensor], object], buffers: list[Tensor]) -> float:
    """Median time of `call`, each time on the next buffer."""
    marks = []
    for number in range(WARM_UP + CALLS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call(buffers[number % len(buffers)])
        last.record()
        marks.append((first, last))
    torch.cuda.synchronize()
    times = [1e3 * first.elapsed_time(last) for first, last in marks[WARM_UP:]]
    return float(torch.tensor(times).median())


def timings(count: int, device: torch.device) -> dict[str, float]:
    """One row: microseconds of kernel, reference and copy; the kernel's bytes per second."""
    buffers = [torch.randn(count, device=device) for _ in range(BUFFERS)]
    numbers = settings(0.05, 128, device)
    target = torch.empty(count, device=device)
    row = {
        "elements": count,
        "triton_us": microseconds(lambda x: run("triton", x, *numbers, 8), buffers),
        "reference_us": microseconds(lambda x: run("reference", x, *numbers, 8), buffers),
        "copy_us": microseconds(target.copy_, buffers),
    }
    row["triton_tb_per_s"] = 5e-6 * count / row["triton_us"]
    row["copy_tb_per_s"] = 8e-6 * count / row["copy_us"]
    return row


def main() -> None:
    """Check, time and print; with --out, keep as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write what was found to this file")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA GPU here; this benchmark needs one.")
    device = torch.device("cuda")
    found = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "wrong_codes": wrong_codes(device),
        "rows": [timings(count, device) for count in ELEMENTS],
    }
    print(f"{found['device']}: {found['wrong_codes']} wrong codes")
    for row in found["rows"]:
        print({key: float(f"{value:.4g}") for key, value in row.items()})
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
