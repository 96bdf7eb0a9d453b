"""How good is a quantized model, and what does it cost."""

from dqlab.metrics.artefacts import artefacts, summarise_artefacts
from dqlab.metrics.cost import Cost, cost
from dqlab.metrics.fidelity import prompt_fidelity
from dqlab.metrics.frechet import features, frechet_distance, frechet_with_error
from dqlab.metrics.intervals import bootstrap_median, bootstrap_ratio, median, wilson
from dqlab.metrics.paired import PairedError, paired_error
from dqlab.metrics.sqnr import (
    bootstrap_gain_db,
    bootstrap_mean_sqnr_db,
    error_powers,
    mean_sqnr_db,
    sqnr_intervals,
    sqnr_per_step,
    to_db,
)

__all__ = [
    "Cost",
    "PairedError",
    "artefacts",
    "bootstrap_gain_db",
    "bootstrap_mean_sqnr_db",
    "bootstrap_median",
    "bootstrap_ratio",
    "cost",
    "error_powers",
    "features",
    "frechet_distance",
    "frechet_with_error",
    "mean_sqnr_db",
    "median",
    "paired_error",
    "prompt_fidelity",
    "sqnr_intervals",
    "sqnr_per_step",
    "summarise_artefacts",
    "to_db",
    "wilson",
]
