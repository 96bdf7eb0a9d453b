"""Searching methods: `job.score` and `job.choice`."""

import math
from functools import cache, partial

import pytest
import torch
from tiny_models import SAMPLER, STEPS, pipeline, recorded

import dqlab
from dqlab import seeds
from dqlab.errors import CheckpointError, InvalidInputError, UnknownNameError
from dqlab.layers import quantizers
from dqlab.methods import Method, Paper, Recipe
from dqlab.methods import score as scoring
from dqlab.methods.method import SetRanges
from dqlab.metrics import error_powers, mean_sqnr_db
from dqlab.models.families import family_of
from dqlab.trajectory import record


class Searching(Method):
    """Runs `search(job)` at a moment and keeps the job for a look."""

    slug = "searching"
    paper = Paper("Searching", "here", "0000.00000")
    category = "test"

    def __init__(self, search):
        self.search, self.jobs = search, []


class Clipping(Searching):
    """Multiplies every activation range by a factor found by search."""

    def formats(self, job):
        self.jobs.append(job)
        job.choice("place", lambda: self.search(job))
        return super().formats(job)

    def ranges(self, job, sites):
        super().ranges(job, sites)
        for site in set(sites) & set(job.sites("activation")):
            quantizers(job.denoiser)[site].scale.mul_(job.choices["place"])


class Scaling(Searching):
    """Multiplies the first layer by a factor found by search: 1 alone keeps the function."""

    def reshape(self, job):
        self.jobs.append(job)
        factor = job.choice("reshape", lambda: self.search(job))
        with torch.no_grad():
            job.denoiser.conv_in.weight.mul_(factor)


class PerLayer(Searching):
    """Weights at 2 bits but for one layer at 8; which one is searched."""

    def formats(self, job):
        self.jobs.append(job)
        chosen = job.choice("place", lambda: self.search(job))
        found = super().formats(job)
        fine = job.policy.format(f"{chosen}.weight", 8, 8)
        return found | {f"{chosen}.weight": fine}


def as_recipe(method):
    return Recipe((method,), dict.fromkeys(method.moments(), method))


def quantized(method, weights=8, activations=8, **more):
    states = recorded()[0]
    return dqlab.quantize(
        pipeline(), as_recipe(method), weights, activations, sampler=SAMPLER, calibration=states,
        **more,
    )  # fmt: skip


def best_of(candidates, job, **more):
    return max(candidates, key=partial(job.score, **more))


FACTORS = (0.01, 1.0, 100.0)


@cache
def search_states():
    return record(pipeline(), seeds.SEARCH[:8], SAMPLER)[0]


def sqnr(pipe) -> float:
    return mean_sqnr_db(error_powers(search_states(), pipe.unet))


@pytest.mark.parametrize("kind", [Clipping, Scaling])
def test_the_best_candidate_is_found_and_recorded(kind) -> None:
    """Min-max ranges cover all: 100 times narrower or wider ones lose; so does a changed layer."""
    q = quantized(kind(partial(best_of, FACTORS)))
    moment = "place" if kind is Clipping else "reshape"
    assert dqlab.describe(q)["choices"] == {moment: 1.0}


@pytest.mark.parametrize("kind", [Clipping, Scaling, PerLayer])
def test_a_score_is_what_the_result_would_measure(kind) -> None:
    candidates = ("conv_in", "conv_out") if kind is PerLayer else FACTORS[:2]
    for candidate in candidates:
        scores = []

        def search(job, given=candidate, into=scores):
            into.append(job.score(given))
            return given

        q = quantized(kind(search), weights=2)
        assert scores == [pytest.approx(sqnr(q), abs=1e-9)]


def test_bits_per_layer() -> None:
    layers = (
        "down_blocks.0.resnets.0.conv1",
        "mid_block.resnets.0.conv2",
        "time_embedding.linear_1",
    )
    q = quantized(PerLayer(partial(best_of, layers)), weights=2)
    chosen = dqlab.describe(q)["choices"]["place"]
    alone = {
        layer: sqnr(quantized(PerLayer(lambda job, it=layer: it), weights=2)) for layer in layers
    }
    assert alone[chosen] == max(alone.values())


def test_scoring_leaves_the_job_as_it_was() -> None:
    """The same bytes come out, whether candidates were scored on the way or not."""

    def look(job):
        before = torch.random.get_rng_state()
        for factor in FACTORS:
            job.score(factor)
        assert torch.equal(before, torch.random.get_rng_state())
        return 1.0

    for kind in (Clipping, Scaling):
        searched, given = quantized(kind(look)), quantized(kind(lambda job: 1.0))
        prints = [dqlab.describe(q)["fingerprint"] for q in (searched, given)]
        assert prints[0] == prints[1]


def test_trials_are_copies_of_their_own() -> None:
    method = Clipping(partial(best_of, FACTORS))
    quantized(method)
    job, *trials = method.jobs
    assert [t.choices["place"] for t in trials] == list(FACTORS)
    assert len({id(j.denoiser) for j in method.jobs}) == 1 + len(FACTORS)
    assert len({id(j.context) for j in method.jobs}) == 1 + len(FACTORS)
    for each in method.jobs:
        assert each.denoiser.step_context is each.context
    assert job.calibration is trials[0].calibration


def test_search_seeds_alone_are_used(monkeypatch) -> None:
    used = []

    def spy(pipe, chosen, sampler):
        used.append(list(chosen))
        return record(pipe, chosen, sampler)

    monkeypatch.setattr(scoring, "record", spy)
    quantized(Clipping(partial(best_of, FACTORS)))
    assert used == [list(seeds.SEARCH[:8])]
    assert not set(seeds.SEARCH) & (set(seeds.HELD_OUT) | set(seeds.CALIBRATION))


class Counted:
    """Counts how often a metric is asked; breaks off before the n-th candidate is done."""

    def __init__(self, stop: int | None = None):
        self.calls, self.stop = 0, stop
        self.__qualname__, self.__module__ = "counted", "tests"

    def __call__(self, trial) -> float:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        return -abs(math.log(next(iter(trial.job.choices.values()))))


def test_a_candidate_is_scored_once() -> None:
    metric = Counted()
    quantized(Clipping(partial(best_of, [*FACTORS, *FACTORS, 1.0], metric=metric)))
    assert metric.calls == len(FACTORS)


def test_scores_differ_by_metric_fit_and_earlier_choice() -> None:
    metric = Counted()

    def search(job):
        for fit in (True, False):
            job.score(2.0, metric, fit=fit)
        return 2.0

    class Both(Clipping):
        reshape = Scaling.reshape

    quantized(Both(search))
    # Two moments, each with and without the fit; the search at place is scored within the first
    # trial of the search at reshape, and its scores serve the other trial and the job.
    assert metric.calls == 2 * 2


def test_an_interrupted_search_continues(tmp_path) -> None:
    first, again = Counted(stop=3), Counted()
    with pytest.raises(KeyboardInterrupt):
        quantized(Clipping(partial(best_of, FACTORS, metric=first)), state_dir=tmp_path)
    q = quantized(Clipping(partial(best_of, FACTORS, metric=again)), state_dir=tmp_path)
    assert (first.calls, again.calls) == (3, 1)
    assert dqlab.describe(q)["choices"] == {"place": 1.0}


def test_a_torn_line_costs_one_candidate(tmp_path) -> None:
    quantized(Clipping(partial(best_of, FACTORS, metric=Counted())), state_dir=tmp_path)
    (file,) = tmp_path.glob("*/scores.jsonl")
    file.write_text(file.read_text()[:-5])
    again = Counted()
    quantized(Clipping(partial(best_of, FACTORS, metric=again)), state_dir=tmp_path)
    assert again.calls == 1
    assert len(scoring.read_scores(file)) == len(FACTORS)


def test_another_job_takes_no_scores(tmp_path) -> None:
    for named in ({}, {"weights": 4}, {"seed": 1}, {"softmax": 6}):
        metric = Counted()
        method = Clipping(partial(best_of, FACTORS, metric=metric))
        quantized(method, state_dir=tmp_path, **named)
        assert metric.calls == len(FACTORS)


@pytest.mark.parametrize("line", ["{", "[]", '{"of": 1}', '{"of": "a", "score": "b"}', "\x00"])
def test_damaged_scores_are_refused(tmp_path, line) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(CheckpointError, match=r"Line 1 of .*scores\.jsonl is no score"):
        scoring.read_scores(path)


def test_without_the_fit_nothing_is_learned() -> None:
    class Learning(Clipping):
        def fit(self, job):
            runs.append(job.choices)
            return [SetRanges("weight"), SetRanges("activation")]

    runs = []
    quantized(Learning(partial(best_of, FACTORS, fit=False)))
    assert runs == [{"place": 1.0}]


def test_nan_ranks_last(monkeypatch) -> None:
    def not_a_number(trial) -> float:
        return math.nan if trial.job.choices["place"] == 1.0 else -5.0

    q = quantized(Clipping(partial(best_of, FACTORS, metric=not_a_number)))
    assert dqlab.describe(q)["choices"] == {"place": FACTORS[0]}


def test_a_metric_sees_the_finished_pipeline() -> None:
    seen = []

    def images(trial) -> float:
        found = family_of(trial.pipe).run(trial.pipe, trial.job.sampler, [seeds.SEARCH[0]])
        seen.append((found.shape, set(trial.states.seed.tolist()) <= set(seeds.SEARCH)))
        return float(found.mean())

    quantized(Clipping(partial(best_of, FACTORS[:1], metric=images)))
    assert seen == [((1, 3, 8, 8), True)]
    assert STEPS == 3


def words(trial) -> str:
    return "good"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda job: job.score(1.0, "fid"),
            UnknownNameError,
            "No metric 'fid'; there is eps_sqnr",
        ),
        (lambda job: job.score(1.0, lambda t: 1), UnknownNameError, "function .* has a name"),
        (lambda job: job.score(1.0, None), UnknownNameError, "No metric None"),
        (lambda job: job.score(1.0, words), InvalidInputError, "metric gave 'good'"),
        (lambda job: job.score(torch.ones(1)), InvalidInputError, "cannot be written as JSON"),
        (lambda job: job.score(math.nan), InvalidInputError, "candidate .*nan.* as JSON"),
        (lambda job: torch.ones(1), InvalidInputError, r"tensor\(\[1.\]\) cannot be written"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, error, match) -> None:
    with pytest.raises(error, match=match):
        quantized(Clipping(call))


def test_only_two_moments_search() -> None:
    class Late(Clipping):
        def fit(self, job):
            return job.score(1.0)

    with pytest.raises(InvalidInputError, match="reshape and place; this is fit"):
        quantized(Late(lambda job: 1.0))


def test_scoring_outside_a_choice_is_refused() -> None:
    class Endless(Searching):
        def formats(self, job):
            job.score(1.0)
            return super().formats(job)

    with pytest.raises(InvalidInputError, match=r"Call it inside job\.choice\('place', search\)"):
        quantized(Endless(None))
