"""Measure the figures of the base: `python tests/benchmarks/first_light.py`.

Ratios are taken in one run on one thread. Times are this machine's and asserted nowhere.
"""

import json
import statistics
import subprocess
import sys
import time

import torch

import dqlab
from dqlab import seeds
from dqlab.models.families import Sampler, family_of
from dqlab.models.training import machine_kind

REPEATS = 9


def median_seconds(run, repeats: int = REPEATS) -> float:
    """Median wall time of `run()` after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def import_ratio() -> float:
    """Time of `import dqlab` plus torch over that of torch alone, each in a fresh process."""

    def start(code: str):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    nothing = median_seconds(start("pass"), 5)
    alone = median_seconds(start("import torch"), 5)
    ours = median_seconds(start("import torch, dqlab"), 5)
    return (ours - nothing) / (alone - nothing)


def forward_ratio(pipe) -> dict[str, float]:
    """Simulated static W8A8 forward over the full-precision one, batch 16, both layouts."""
    q = dqlab.quantize(pipe, "rtn", weights=8, activations=8)
    plain = torch.randn(16, 3, 32, 32)
    found = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        x = plain.contiguous(memory_format=layout)
        with torch.no_grad():
            full = median_seconds(lambda x=x: pipe.unet(x, 500))
            simulated = median_seconds(lambda x=x: q.unet(x, 500))
        found[str(layout).removeprefix("torch.")] = simulated / full
    return found


def main() -> None:
    """Print everything as JSON."""
    torch.set_num_threads(1)
    pipe = dqlab.load("pixel-unet")
    family = family_of(pipe)
    sample = median_seconds(lambda: family.run(pipe, Sampler(), seeds.GALLERY[:16]), 3)
    found = {
        "machine": machine_kind(),
        "import dqlab / import torch": import_ratio(),
        "W8A8 forward / full precision": forward_ratio(pipe),
        "seconds for 16 samples, 20 steps": sample,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
