"""One training engine for models, reconstructions and quantization-aware fits."""

from dqlab.engine.loop import Report, TrainingDivergedError, train
from dqlab.engine.task import Budget, Progress, Stage, Task, constant, cosine

__all__ = [
    "Budget",
    "Progress",
    "Report",
    "Stage",
    "Task",
    "TrainingDivergedError",
    "constant",
    "cosine",
    "train",
]
