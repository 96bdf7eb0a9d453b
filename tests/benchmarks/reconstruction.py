"""What each part of a reconstruction method brings, on a shipped model; prints tables.

    python tests/benchmarks/reconstruction.py --method q-diffusion --bits 4:8 4:4 3:8 --out FILE

Every rung has the same bits, policy and calibration set, and is compared with two baselines:
`rtn` as it comes, and plain rounding on the method's own sites and calibration set. The whole
method runs first, so that the peak memory is its own. Seconds are wall clock and processor time:
on a shared machine the two differ.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from dqlab import describe, seeds
from dqlab.fit import unit_errors, units_of
from dqlab.layers import common_policy, explore, quantizers
from dqlab.methods import load, quantize, recipe
from dqlab.methods.job import Job
from dqlab.metrics import (
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    error_powers,
    mean_sqnr_db,
)
from dqlab.metrics.results import Result, append
from dqlab.models.families import Sampler, family_of
from dqlab.trajectory import inactive, record

LADDERS = {
    "q-diffusion": {
        "min-max": {"split": False, "search": False, "reconstruct": False},
        "+ range search": {"split": False, "reconstruct": False},
        "+ split": {"reconstruct": False},
        "+ reconstruction": {},
    },
    "eda-dm": {
        "calibration and ranges": {"reconstruct": False},
        "+ block loss": {"layer_weight": 0.0},
        "+ layer losses": {},
    },
}
OWN_BASELINE = {"q-diffusion": "min-max", "eda-dm": "block loss, uniform steps"}
"""What the method's own paper improves on."""
ROUNDED = "plain rounding, same sites and calibration"


def calibration_of(pipe, chosen):
    """The calibration set that a recipe chooses at the default sampler."""
    family = family_of(pipe)
    policy = common_policy(family.first, family.last)
    return chosen.calibrate(Job(pipe, None, family, chosen, Sampler(), 8, 8, policy))


def uniform_like(pipe, states):
    """About as many states, the same number of each step."""
    steps = Sampler().num_inference_steps
    count = max(1, round(len(states) / steps))
    return record(pipe, seeds.CALIBRATION[:count])[0]


def timed(pipe, chosen, bits, **options):
    """A quantized pipeline, wall seconds, processor seconds, peak memory so far in MB."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = quantize(pipe, chosen, *bits, **options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result, time.perf_counter() - wall, time.process_time() - cpu, peak


def rungs_of(pipe, method):
    """Name -> (recipe, options of quantize): the whole method, the baselines, the other rungs."""
    ladder = {name: (recipe(method, **o), {}) for name, o in LADDERS[method].items()}
    whole = list(ladder)[-1]
    own = calibration_of(pipe, ladder[whole][0])
    rounded = recipe(method).only("reshape"), {"calibration": own}
    found = {whole: ladder.pop(whole), "rtn": (recipe("rtn"), {}), ROUNDED: rounded}
    if method == "eda-dm":
        block = recipe(method, layer_weight=0.0)
        found[OWN_BASELINE[method]] = block, {"calibration": uniform_like(pipe, own)}
    return found | ladder


def run_ladder(pipe, states, given, bits):
    """Yields records as they are measured: the rungs, then the units of the whole method."""
    rungs, results, powers, costs = rungs_of(pipe, given.method), {}, {}, {}
    whole, waiting = next(iter(rungs)), []
    print(f"\n{given.method} W{bits[0]}A{bits[1]}, {given.held_out} held-out seeds", flush=True)
    for name, (chosen, options) in rungs.items():
        results[name], *costs[name] = timed(pipe, chosen, bits, **options)
        powers[name] = error_powers(states, results[name].unet)
        waiting.append(name)
        if all(other in powers for other in baselines(given.method)):
            yield [r for done in waiting for r in rung(given, results, done, powers, costs)]
            waiting = []
    nearest = "+ split" if given.method == "q-diffusion" else "calibration and ranges"
    yield print_units(pipe, given, results[nearest], results[whole], states[::4])


def baselines(method):
    """Names of what every rung is compared with."""
    return "rtn", ROUNDED, OWN_BASELINE[method]


def rung(given, results, name, powers, costs):
    """Print one line and return its records."""
    info = describe(results[name])
    label = f"{given.method}: {name}" if name != "rtn" else name
    common = {"recipe": label, "seeds": (seeds.HELD_OUT[0], given.held_out)}
    mean, interval = mean_sqnr_db(powers[name]), bootstrap_mean_sqnr_db(powers[name])
    rows = [measured(given, info, common, "eps_sqnr_db", "dB", mean, interval)]
    told = f"{name:44} {mean:6.2f} dB [{interval[0]:.2f}, {interval[1]:.2f}]"
    for other in baselines(given.method):
        gain = mean - mean_sqnr_db(powers[other])
        low_high = bootstrap_gain_db(powers[name], powers[other])
        rows.append(measured(given, info, common, "eps_sqnr_gain_db", "dB", gain, low_high, other))
        told += f"  {gain:+.2f} [{low_high[0]:+.2f}, {low_high[1]:+.2f}] over {other}"
    for metric, unit, value in zip(
        ("fit_wall_seconds", "fit_cpu_seconds", "peak_memory_mb"), ("s", "s", "MB"), costs[name],
        strict=True,
    ):  # fmt: skip
        rows.append(measured(given, info, common, metric, unit, value, None))
    wall, cpu, peak = costs[name]
    print(f"{told}  {wall:.0f} s wall {cpu:.0f} s cpu {peak:.0f} MB", flush=True)
    return rows


def measured(given, info, common, metric, unit, value, interval, against=None):
    """One record."""
    return Result.of(
        given.model, info, **common, metric=metric, unit=unit, value=value, interval=interval,
        against=against,
    )  # fmt: skip


def print_units(pipe, given, nearest, learned, states):
    """Held-out error per unit: rounding alone on full-precision inputs, and in place."""
    anatomy = explore(learned.unet, lambda: states[:1].call(learned.unet))
    units = units_of(learned.unet, anatomy.order, anatomy.layers)
    models = (nearest.unet, learned.unet)
    sites = [q for m in models for q in quantizers(m).values()]
    with inactive(q for q in sites if ".weight" not in q.site):
        alone = [unit_errors(m, pipe.unet, units, states) for m in models]
    placed = [unit_errors(m, pipe.unet, units, states, source=learned.unet) for m in models]
    rows, common = [], {
        "recipe": f"{given.method}: whole", "seeds": (seeds.HELD_OUT[0], given.held_out),
    }  # fmt: skip
    for kind, (before, after) in {"weights alone": alone, "in place": placed}.items():
        changes = np.array([after[u.path] / before[u.path] - 1 for u in units])
        share, median = float((changes < 0).mean()), float(np.median(changes))
        print(f"{kind}: below nearest in {share:.0%} of {len(units)} units, median {median:+.0%}")
        worse = [f"{u.path} {c:+.0%}" for u, c in zip(units, changes, strict=True) if c >= 0]
        print(f"  not below: {', '.join(worse) or 'none'}", flush=True)
        for metric, value in (("units_below_nearest", share), ("unit_error_change", median)):
            rows.append(
                measured(
                    given, describe(learned), common, f"{metric} ({kind})", "share",
                    value, bootstrap(changes, metric), "nearest rounding, same ranges",
                )
            )  # fmt: skip
    return rows


def bootstrap(changes, metric, draws=2000):
    """95 % interval over resampled units of the share below zero, or of the median."""
    generator = np.random.default_rng(0)
    drawn = changes[generator.integers(len(changes), size=(draws, len(changes)))]
    found = (drawn < 0).mean(1) if metric == "units_below_nearest" else np.median(drawn, 1)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def main():
    """Run one ladder per pair of bit-widths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pixel-unet")
    parser.add_argument("--method", choices=LADDERS, default="q-diffusion")
    parser.add_argument("--bits", nargs="+", default=["4:8"], help="weights:activations")
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load(given.model)
    states, _ = record(pipe, seeds.HELD_OUT[: given.held_out])
    for pair in given.bits:
        for rows in run_ladder(pipe, states, given, tuple(int(b) for b in pair.split(":"))):
            if given.out:  # at once, so that what is measured survives an interrupt
                append(given.out, rows)


if __name__ == "__main__":
    main()
