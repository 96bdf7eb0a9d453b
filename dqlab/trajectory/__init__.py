"""Sampling loops as data: record trajectories, replay them, watch tensors pass."""

from dqlab.trajectory.arguments import take_rows
from dqlab.trajectory.injected import injected
from dqlab.trajectory.probe import inactive, replay, tapped
from dqlab.trajectory.states import States, concatenate, record

__all__ = [
    "States",
    "concatenate",
    "inactive",
    "injected",
    "record",
    "replay",
    "take_rows",
    "tapped",
]
