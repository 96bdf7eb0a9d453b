"""What each part of a reconstruction method brings, on a shipped model; prints tables.

    python tests/benchmarks/reconstruction.py --model pixel-unet --method q-diffusion --bits 4 3

The last row is the whole method, run first so that the peak memory is its own. Seconds are wall
clock and processor time: on a shared machine the two differ.
"""

import argparse
import resource
import time

import numpy as np
import torch

from dqlab import seeds
from dqlab.fit import unit_errors, units_of
from dqlab.layers import explore, quantizers
from dqlab.methods import load, quantize, recipe
from dqlab.metrics import bootstrap_mean_sqnr_db, error_powers, mean_sqnr_db
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


def timed(pipe, chosen, weights, activations):
    """A quantized pipeline, wall seconds, processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = quantize(pipe, chosen, weights, activations)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def gain_interval(powers, baseline, draws=2000):
    """Gain in mean SQNR over a baseline, dB, 95 % interval over jointly resampled seeds."""
    generator = np.random.default_rng(0)
    tables = [
        [f.pivot(index="step", columns="seed", values=c).to_numpy() for c in ("signal", "noise")]
        for f in (powers, baseline)
    ]
    count = tables[0][0].shape[1]
    picks = generator.integers(count, size=(draws, count))
    means = [(10 * np.log10(s[:, picks].sum(-1) / n[:, picks].sum(-1))).mean(0) for s, n in tables]
    return np.quantile(means[0] - means[1], [0.025, 0.975])


def print_units(pipe, nearest, learned, states):
    """Held-out error per unit: rounding alone on full-precision inputs, and in place."""
    anatomy = explore(learned.unet, lambda: states[:1].call(learned.unet))
    units = units_of(learned.unet, anatomy.order, anatomy.layers)
    changes = {"alone": [], "in place": []}
    print(f"{'unit, held-out error':32} {'nearest':>9} {'learned':>9} {'change':>7}  in place")
    models = (nearest.unet, learned.unet)
    sites = [q for m in models for q in quantizers(m).values()]
    with inactive(q for q in sites if ".weight" not in q.site):
        alone = [unit_errors(m, pipe.unet, units, states) for m in models]
    placed = [unit_errors(m, pipe.unet, units, states, source=learned.unet) for m in models]
    for unit in units:
        before, after = (e[unit.path] for e in alone)
        moved = placed[1][unit.path] / placed[0][unit.path] - 1
        changes["alone"].append(after / before - 1)
        changes["in place"].append(moved)
        print(
            f"{unit.path:32} {before:9.5f} {after:9.5f} {after / before - 1:+7.0%} {moved:+9.0%}"
        )
    for name, found in changes.items():
        better = np.mean(np.array(found) < 0)
        print(f"{name}: below nearest in {better:.0%} of units, median {np.median(found):+.0%}")


def main():
    """Run one ladder per weight bit-width."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pixel-unet")
    parser.add_argument("--method", choices=LADDERS, default="q-diffusion")
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--activations", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load(given.model)
    states, _ = record(pipe, seeds.HELD_OUT[: given.held_out])
    for weights in given.bits:
        run_ladder(pipe, states, given, weights)


def run_ladder(pipe, states, given, weights):
    """One table of rungs, then the units of the whole method."""
    found, results = {}, {}
    rungs = {name: recipe(given.method, **o) for name, o in LADDERS[given.method].items()}
    whole = list(rungs)[-1]
    for name in [whole, *list(rungs)[:-1], "rtn"]:
        chosen = rungs.get(name) or recipe("rtn")
        results[name], wall, cpu = timed(pipe, chosen, weights, given.activations)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found[name] = error_powers(states, results[name].unet), wall, cpu, peak
    print(f"\n{given.method} W{weights}A{given.activations}, {given.held_out} held-out seeds")
    for name in ["rtn", *rungs]:
        powers, wall, cpu, peak = found[name]
        low, high = bootstrap_mean_sqnr_db(powers)
        gain = gain_interval(powers, found["rtn"][0])
        print(
            f"{name:24} {mean_sqnr_db(powers):6.2f} dB [{low:.2f}, {high:.2f}]  over rtn "
            f"[{gain[0]:+.2f}, {gain[1]:+.2f}]  {wall:6.0f} s wall {cpu:6.0f} s cpu  "
            f"peak {peak:5.0f} MB"
        )
    nearest = [n for n in rungs if n != whole and "block" not in n][-1]
    print_units(pipe, results[nearest], results[whole], states[::4])


if __name__ == "__main__":
    main()
