"""Search: score a candidate by running the rest of the moments on a throwaway copy.

A method that searches asks `job.choice` where its candidate matters and `job.score` inside the
search, so that what was scored and what is chosen take the same path:

    def formats(self, job):
        bits = job.choice("place", lambda: max(self.candidates, key=job.score))
        ...
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dqlab import seeds
from dqlab.engine.state import write_atomically
from dqlab.errors import CheckpointError, InvalidInputError, UnknownNameError
from dqlab.layers import StepContext
from dqlab.methods.corrected import prediction_correction
from dqlab.methods.job import Job, as_json
from dqlab.metrics import error_powers, mean_sqnr_db
from dqlab.trajectory import States, record

TRAJECTORIES = {"teach": 8, "paper": 64}
"""Search trajectories a candidate is measured on."""
FILE = "scores.jsonl"


@dataclass(frozen=True)
class Trial:
    """A finished throwaway copy, for a metric to look at.

    Attributes:
        pipe: the quantized pipeline; sample with seeds of `dqlab.seeds.SEARCH` only.
        job: how it was made.
        states: full-precision search trajectories with the original's answers.

    """

    pipe: Any
    job: Job
    states: States


Metric = Callable[[Trial], float]
Finish = Callable[[Job, str, bool], Any]


def eps_sqnr_db(trial: Trial) -> float:
    """Mean over steps of the noise prediction's SQNR, dB, after guidance.

    A correction that depends on a whole run is left out: given states do not show it.
    """
    corrector = getattr(trial.pipe, "corrector", None)
    whole_run = corrector is not None and corrector.correction.remembers
    correct = None if whole_run else prediction_correction(trial.pipe)
    return mean_sqnr_db(error_powers(trial.states, trial.job.denoiser, correct=correct))


METRICS: dict[str, Metric] = {"eps_sqnr_db": eps_sqnr_db}


class Scorer:
    """Scores of one job's candidates, each computed once.

    Args:
        finish: runs a job from one moment to its end and returns the pipeline.
        path: file the scores are kept in; None keeps them for this job only.

    """

    def __init__(self, finish: Finish, path: Path | None = None):
        self.finish, self.path = finish, path
        self.known: dict[str, float] = read_scores(path) if path and path.is_file() else {}
        self.states: States | None = None

    def score(self, job: Job, candidate: Any, metric: str | Metric, fit: bool) -> float:
        """See `Job.score`."""
        name, measure = _metric(metric)
        if job.moment not in ("reshape", "place"):
            raise InvalidInputError(
                f"score ranks candidates of the moments reshape and place; this is {job.moment}. "
                "Search in `reshape` or `formats`; `job.choice` remembers what was found."
            )
        if job.moment in job.choices:
            raise InvalidInputError(
                f"score was called at {job.moment}, which is decided already. Call it inside "
                f"job.choice({job.moment!r}, search)."
            )
        key = as_json([job.choices, job.moment, candidate, name, fit])
        if key not in self.known:
            found = self.measure(job, candidate, measure, fit)
            self.keep(key, -math.inf if math.isnan(found) else found)
        return self.known[key]

    def measure(self, job: Job, candidate: Any, metric: Metric, fit: bool) -> float:
        """The metric of a throwaway copy; nothing of `job` changes, nor the global generator."""
        if self.states is None:
            chosen = seeds.SEARCH[: TRAJECTORIES[job.profile]]
            self.states = record(job.original, chosen, job.sampler)[0].check("search")
        trial = _throwaway(job, candidate)
        with torch.random.fork_rng(devices=[]):
            pipe = self.finish(trial, job.moment, fit)
            found = metric(Trial(pipe, trial, self.states))
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise InvalidInputError(
                f"The metric gave {found!r} for the candidate {candidate!r}; it must return a "
                "number, higher for better."
            )
        return float(found)

    def keep(self, key: str, score: float) -> None:
        """Remember a score; on disk at once, so that a kill loses no finished candidate."""
        self.known[key] = score
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps({"of": key, "score": score}) + "\n")
                file.flush()
                os.fsync(file.fileno())


def read_scores(path: Path) -> dict[str, float]:
    """What `Scorer.keep` wrote. A last line that a kill cut off is dropped, from the file too.

    Raises:
        CheckpointError: if another line is damaged.

    """
    whole, newline, torn = path.read_text(errors="replace").rpartition("\n")
    if torn:
        write_atomically(path, lambda fresh: fresh.write_text(whole + newline))
    known = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            known[str(entry["of"])] = float(entry["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"Line {number} of {path} is no score ({error}). Delete the file to start again."
            ) from error
    return known


def _metric(metric: str | Metric) -> tuple[str, Metric]:
    name = getattr(metric, "__qualname__", None)
    if callable(metric) and name and "<lambda>" not in name:
        return f"{metric.__module__}.{name}", metric
    if not isinstance(metric, str) or metric not in METRICS:
        raise UnknownNameError(
            f"No metric {metric!r}; there is {', '.join(METRICS)}, or give a function of the "
            "finished trial that has a name, by which its scores are kept."
        )
    return metric, METRICS[metric]


def _throwaway(job: Job, candidate: Any) -> Job:
    """A job like this one at the start of its moment, in which that moment chose `candidate`."""
    source = job.family.denoiser(job.original) if job.moment == "reshape" else job.denoiser
    denoiser = copy.deepcopy(source).eval().requires_grad_(False)
    return replace(
        job,
        denoiser=denoiser,
        context=getattr(denoiser, "step_context", None) or StepContext(),
        choices=job.choices | {job.moment: candidate},
        state_dir=None,
    )
