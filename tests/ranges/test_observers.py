"""Ranges over calibration batches and sampler steps."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.formats import Affine, Float
from dqlab.ranges import (
    RULES,
    Ema,
    First,
    Mean,
    MinMax,
    Observer,
    PerStep,
    Pooled,
    Running,
    min_max,
    percentile,
    shrink_search,
)
from dqlab.ranges.rules import quantile_rule

FMT = Affine(8)
MAKERS: list[Callable[..., Observer]] = [
    MinMax,
    First,
    Ema,
    Running,
    Mean,
    Pooled,
    partial(Ema, "shrink", FMT),
    partial(Pooled, "kl", capacity=50),
]


def name_of(make: Callable[..., Observer]) -> str:
    return getattr(make, "__name__", "") or "-".join(map(str, (make.func.__name__, *make.args)))


makers = pytest.mark.parametrize("make", MAKERS, ids=name_of)


def batches(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(i + 1) * torch.randn(shape, generator=generator) for i in range(count)]


def spans(widths: list[float]) -> list[torch.Tensor]:
    """Batches from 0 to each width, whose 8-bit min-max scale is width / 255."""
    return [torch.tensor([0.0, width]) for width in widths]


def after(observer: Observer, data: list[torch.Tensor]) -> float:
    for x in data:
        observer.update(x)
    return observer.range(FMT).scale.item() * 255


def test_min_max_is_that_of_all_batches() -> None:
    data = batches(4, 10, 3)
    observer = MinMax(axis=1)
    for x in data:
        observer.update(x)
    expected = min_max(torch.cat(data), FMT, axis=1)
    assert torch.equal(observer.range(FMT).scale, expected.scale)
    assert torch.equal(observer.range(FMT).zero_point, expected.zero_point)


def test_first_ignores_later_batches() -> None:
    assert after(First(), spans([2, 50, 7])) == pytest.approx(2)


def test_first_batch_weighs_729_of_1000_after_four() -> None:
    """0.9^3 = 0.729, the weight that the first of four batches keeps."""
    assert after(Ema(), spans([1, 0, 0, 0])) == pytest.approx(0.729)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.integers(1, 30), st.floats(0, 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_ema_closed_form(a: float, b: float, updates: int, momentum: float) -> None:
    value = after(Ema(momentum=momentum), spans([a] + [b] * updates))
    assert value == pytest.approx(b + (a - b) * momentum**updates, rel=1e-4)


@makers
def test_a_constant_stream_is_a_fixed_point(make: Callable[..., Observer]) -> None:
    assert after(make(), [torch.full((40,), 3.0)] * 5) == pytest.approx(3, rel=1e-5)


def test_mean_is_the_plain_mean() -> None:
    assert after(Mean(), spans([1, 2, 6])) == pytest.approx(3)


def test_running_starts_with_the_rule_and_follows_min_max() -> None:
    x, later = batches(2, 5000)
    fmt = Affine(4)
    observer = Running("shrink", fmt)
    observer.update(x)
    start = observer.range(fmt).scale
    assert start == shrink_search(x, fmt).scale < min_max(x, fmt).scale
    observer.update(later)
    expected = 0.95 * start + 0.05 * min_max(later, fmt).scale
    torch.testing.assert_close(observer.range(fmt).scale, expected)


def test_ema_of_found_ranges_finds_on_each_batch() -> None:
    one, two = batches(2, 2000)
    fmt = Affine(4)
    observer = Ema("shrink", fmt)
    observer.update(one)
    observer.update(two)
    expected = 0.9 * shrink_search(one, fmt).scale + 0.1 * shrink_search(two, fmt).scale
    torch.testing.assert_close(observer.range(fmt).scale, expected)


def test_pooled_on_all_values_equals_the_rule_on_the_concatenation() -> None:
    data = batches(3, 200)
    for rule, find in (("percentile", percentile), ("shrink", shrink_search)):
        observer = Pooled(rule)
        for x in data:
            observer.update(x)
        torch.testing.assert_close(observer.range(FMT).scale, find(torch.cat(data), FMT).scale)


def test_pooled_sample_is_uniform_over_batches_and_bounded() -> None:
    """Batch i holds the constant i, so the sample shows where its values came from."""
    observer = Pooled(capacity=4000)
    for i in range(8):
        observer.update(torch.full((5000,), float(i)))
    assert observer.sample.shape == (1, 4000) and observer.keys.shape == (4000,)
    counts = torch.bincount(observer.sample.long().flatten(), minlength=8)
    # hypergeometric: mean 500, variance 500 (7/8) (36000/39999), so 5 sigma is about 99
    assert (counts - 500).abs().max() <= 99


def test_pooled_min_max_is_exact_beyond_its_capacity() -> None:
    data = batches(5, 300)
    observer = Pooled("min_max", capacity=10)
    for x in data:
        observer.update(x)
    assert torch.equal(observer.range(FMT).scale, min_max(torch.cat(data), FMT).scale)


def test_pooled_keeps_channels_apart() -> None:
    observer = Pooled(capacity=20, axis=0)
    x = torch.stack([torch.zeros(100), torch.ones(100)])
    observer.update(x)
    assert torch.equal(observer.sample, x[:, :20])


def test_rules_may_be_functions() -> None:
    x = batches(1, 1000)[0]
    observer = Pooled(partial(quantile_rule, q=0.5))
    observer.update(x)
    torch.testing.assert_close(observer.range(FMT).scale, percentile(x, FMT, q=0.5).scale)
    any_format = First(partial(quantile_rule, q=0.5))
    any_format.update(x)
    assert any_format.range(Affine(4)).scale > 0


@makers
def test_states_resume_where_they_stopped(make: Callable[..., Observer]) -> None:
    data = batches(4, 300)
    whole, start, rest = make(), make(), make(seed=9) if make is not MinMax else make()
    for x in data:
        whole.update(x)
    for x in data[:2]:
        start.update(x)
    state = start.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    start.update(100 * data[0])  # must not reach into the saved state
    rest.load_state_dict(state)
    for x in data[2:]:
        rest.update(x)
    assert torch.equal(rest.range(FMT).scale, whole.range(FMT).scale)


@makers
def test_an_empty_state_loads(make: Callable[..., Observer]) -> None:
    other = make()
    other.load_state_dict(make().state_dict())
    assert not other.batches


def test_states_of_other_observers_are_refused() -> None:
    full = MinMax()
    full.update(torch.ones(3))
    with pytest.raises(InvalidInputError, match="not a state of Pooled: no draws, keys"):
        Pooled().load_state_dict(full.state_dict())
    with pytest.raises(InvalidInputError, match="no batches, shape"):
        MinMax().load_state_dict({})


@makers
def test_no_data_is_an_error_that_names_the_tensor(make: Callable[..., Observer]) -> None:
    with pytest.raises(InvalidInputError, match=r"mid\.q: no calibration data"):
        make(name="mid.q").range(FMT)


@makers
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_batches_are_refused_whole(make: Callable[..., Observer], bad: float) -> None:
    observer = make(name="mid.q")
    observer.update(torch.linspace(-1, 1, 30))
    before = observer.range(FMT).scale
    with pytest.raises(InvalidInputError, match=r"mid\.q"):
        observer.update(torch.tensor([1.0, bad]))
    with pytest.raises(InvalidInputError, match="empty"):
        observer.update(torch.ones(0))
    assert observer.range(FMT).scale == before


def test_channels_must_not_change() -> None:
    observer = MinMax(axis=0)
    observer.update(torch.ones(3, 5))
    with pytest.raises(InvalidInputError, match="earlier batches"):
        observer.update(torch.ones(4, 5))


def test_searched_bounds_belong_to_their_format() -> None:
    observer = Ema("shrink", Affine(4))
    observer.update(torch.linspace(-1, 1, 30))
    with pytest.raises(InvalidInputError, match="searched for uint4, not for fp4"):
        observer.range(Float(2, 1))
    with pytest.raises(InvalidInputError, match="give fmt"):
        Ema("shrink")


def test_unknown_rules_list_the_known() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Ema("median")
    assert all(rule in str(caught.value) for rule in RULES)


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_momentum_is_checked(momentum: float) -> None:
    with pytest.raises(InvalidInputError, match="momentum"):
        Ema(momentum=momentum)


def test_capacity_is_checked() -> None:
    with pytest.raises(InvalidInputError, match="capacity"):
        Pooled(capacity=0)


def test_steps_have_ranges_of_their_own() -> None:
    table = PerStep(MinMax, 3)
    x = torch.tensor([[1.0, 0], [2, 0], [3, 0], [5, 0]])
    table.update(x, torch.tensor([2, 0, 0, 1]))
    table.update(torch.tensor([[7.0]]), 1)
    scale = table.range(FMT).scale
    assert scale.shape == (3,)
    assert (scale * 255).tolist() == pytest.approx([3, 7, 1])


def test_steps_and_channels() -> None:
    table = PerStep(partial(MinMax, axis=1), 2)
    for step in range(2):
        table.update(torch.rand(4, 3, 2, 2) + step, step)
    r = table.range(FMT)
    assert r.scale.shape == (2, 1, 3, 1, 1)


def test_unseen_and_unknown_steps_are_named() -> None:
    table = PerStep(partial(MinMax, name="up.k"), 4)
    table.update(torch.ones(2), 1)
    with pytest.raises(InvalidInputError, match=r"up\.k: .* steps \[0, 2, 3\] of 4"):
        table.range(FMT)
    with pytest.raises(InvalidInputError, match=r"step 4 .* 0\.\.3"):
        table.update(torch.ones(2), 4)
    with pytest.raises(InvalidInputError, match="do not fit"):
        table.update(torch.ones(2), torch.tensor([1, 2, 3]))
    with pytest.raises(InvalidInputError, match="at least 1"):
        PerStep(MinMax, 0)


def test_step_states_resume() -> None:
    table, other = PerStep(Pooled, 2), PerStep(Pooled, 2)
    for step in range(2):
        table.update(torch.rand(10) + step, step)
    other.load_state_dict(table.state_dict())
    assert torch.equal(other.range(FMT).scale, table.range(FMT).scale)
    with pytest.raises(InvalidInputError, match="step '1'"):
        PerStep(Pooled, 1).load_state_dict(table.state_dict())
