"""`compare`: quantized pipelines beside their original, on held-out trajectories."""

from dqlab.compare.comparison import Comparison
from dqlab.compare.measure import compare
from dqlab.compare.ranking import Ranking

__all__ = ["Comparison", "Ranking", "compare"]
