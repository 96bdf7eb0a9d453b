"""Which step every block reads at 4 and 2 bits, rounded to nearest and by TIAR, for 1.4.

    python -m dqlab.phenomena.clock_tables

writes data/results/time-information-clock: a minute on one core. The notebook learns 4 bits again.
"""

from collections.abc import Sequence

import pandas as pd

from dqlab import seeds
from dqlab.phenomena import clock, stored
from dqlab.reference import tfmq_dm
from dqlab.trajectory import record

NAME = "time-information-clock"
COMMAND = "python -m dqlab.phenomena.clock_tables"
MODEL = "latent-unet"
BITS = (4, 2)
ARMS = ("nearest", "tiar")


def measure(pipe, bits: Sequence[int] = BITS, say: stored.Say = stored.silent) -> stored.Found:
    """Frames perceived (bits, arm, layer, t, perceived) and losses (bits, arm, loss)."""
    states, _ = record(pipe, seeds.CALIBRATION[:1])
    now, always = clock.clock(pipe, states), clock.clock(pipe, states, clock.ALL_STEPS)
    tables, losses = [], []
    for b in bits:
        for arm in ARMS:
            found = now.of(clock.only_clock(pipe, states, b, None, temporal=arm))
            tables.append(clock.perceived_table(now, found, always).assign(bits=b, arm=arm))
            losses.append((b, arm, float(tfmq_dm.tiar_loss(now.features, found))))
            say(f"W{b} {arm}: loss {losses[-1][2]:.3g}")
    perceived = pd.concat(tables, ignore_index=True)
    return {
        "perceived": perceived, "losses": pd.DataFrame(losses, columns=["bits", "arm", "loss"])
    }, {}  # fmt: skip


def loss(found: stored.Stored, bits: int, arm: str) -> float:
    """One stored L_TIAR."""
    frame = found.frames["losses"]
    return float(frame[(frame["bits"] == bits) & (frame["arm"] == arm)]["loss"].item())


def perceived(found: stored.Stored) -> dict[tuple[int, str], pd.DataFrame]:
    """Tables by bits and arm, as `clock.perceived_table` makes them."""
    groups = found.frames["perceived"].groupby(["bits", "arm"], sort=False)
    return {key: part.reset_index(drop=True) for key, part in groups}


def main() -> None:
    """Measure the shipped model and replace data/results/time-information-clock."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
