"""The seeds of trajectories and trainings, in one place, so that no two purposes share one.

A trajectory is named by one integer: the seed of its initial noise.
"""

CALIBRATION = range(1_000, 1_512)
"""Trajectories that quantizer ranges and reconstructions may see."""
SEARCH = range(2_000, 2_064)
"""Trajectories on which `score` ranks candidates during a search."""
HELD_OUT = range(3_000, 3_256)
"""Trajectories on which results are reported. Nothing is ever fitted on them."""
GALLERY = range(0, 64)
"""Trajectories shown in figures: always the first N, never chosen ones."""
QUALITY = range(10_000, 14_000)
"""Trajectories behind the Frechet distance and agreement in a model card."""
TRAINING = 20_260
"""Base seed of training runs; step k of a run draws from (TRAINING, k)."""
TINT = 7
"""Seed of the fixed tints that held-out images wear."""
