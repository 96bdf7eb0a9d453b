"""What the training engine is asked to minimise: rounding, step sizes, block reconstruction."""

from dqlab.fit.capture import Captured, Tape, capture
from dqlab.fit.errors import unit_errors
from dqlab.fit.profiles import Settings
from dqlab.fit.reconstruct import UnitReport, reconstruct, reconstruct_all
from dqlab.fit.sensitivity import output_gradients
from dqlab.fit.units import Unit, inner_layers, units_of

__all__ = [
    "Captured",
    "Settings",
    "Tape",
    "Unit",
    "UnitReport",
    "capture",
    "inner_layers",
    "output_gradients",
    "reconstruct",
    "reconstruct_all",
    "unit_errors",
    "units_of",
]
