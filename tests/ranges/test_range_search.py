"""Ranges by formula and by search."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Binary, Codebook, Float, Format, Log2, Range
from dqlab.ranges import (
    cosine,
    from_groups,
    grid_search,
    kl,
    l1,
    mean_abs,
    min_max,
    percentile,
    percentile_search,
    shrink_search,
    to_groups,
)

quick = settings(max_examples=10, deadline=None, derandomize=True)
FINDERS = [
    min_max,
    percentile,
    shrink_search,
    l1,
    cosine,
    kl,
    percentile_search,
    grid_search,
]
FORMATS = [Affine(2), Affine(4, "sym_offset"), Affine(4, "sym_signed_narrow"), Float(2, 1)]


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(x: torch.Tensor, fmt: Format, r: Range, p: float = 2.4) -> torch.Tensor:
    return (fmt.fake_quant(x, r) - x).abs().pow(p)


def matrices(least: int = 1) -> st.SearchStrategy[torch.Tensor]:
    shapes = st.tuples(st.integers(1, 4), st.integers(least, 12))
    value = st.one_of(st.floats(-100, 100, width=32), st.just(0.0))
    return shapes.flatmap(lambda s: hnp.arrays("float32", s, elements=value)).map(torch.from_numpy)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("p", [1.0, 2.0, 2.4])
@quick
@given(matrices())
def test_shrink_search_is_never_worse_than_min_max(fmt: Format, p: float, x: torch.Tensor) -> None:
    widest = error(x, fmt, min_max(x, fmt, axis=0), p).mean(1)
    searched = error(x, fmt, shrink_search(x, fmt, axis=0, p=p), p).mean(1)
    assert (searched <= widest).all()


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f != Affine(2)], ids=str)
@quick
@given(matrices())
def test_grid_search_of_symmetric_formats_is_never_worse(fmt: Format, x: torch.Tensor) -> None:
    widest = error(x, fmt, min_max(x, fmt, axis=0)).mean(1)
    assert (error(x, fmt, grid_search(x, fmt, axis=0)).mean(1) <= widest).all()


@quick
@given(matrices(least=2))
def test_two_dimensional_grid_holds_min_max(x: torch.Tensor) -> None:
    fmt = Affine(2)
    widest = error(x, fmt, min_max(x, fmt)).mean()
    searched = error(x, fmt, grid_search(x, fmt)).mean()
    # the grid's last width is that of min-max up to float32 rounding of its two ends
    assert searched <= widest * (1 + 1e-4) + 1e-12


@pytest.mark.parametrize("find", [shrink_search, l1, cosine, kl, percentile_search, min_max])
@pytest.mark.parametrize("fmt", [Affine(4), Affine(4, "sym_signed_narrow")], ids=str)
@quick
@given(matrices())
def test_channels_are_searched_as_if_alone(
    find: Callable[..., Range], fmt: Format, x: torch.Tensor
) -> None:
    together = find(x, fmt, axis=0)
    assert together.scale.shape == (len(x), 1)
    for i, row in enumerate(x):
        alone = find(row, fmt)
        torch.testing.assert_close(together.scale[i, 0], alone.scale)
        assert together.zero_point[i, 0] == alone.zero_point


@pytest.mark.parametrize("bits", [2, 4])
def test_grid_aligned_data_has_no_error(bits: int) -> None:
    fmt = Affine(bits)
    x = (torch.arange(2**bits) - 1.0) / 4
    for find in (shrink_search, grid_search, l1):
        assert not error(x, fmt, find(x, fmt)).any()
        assert not error(x.expand(3, -1), fmt, find(x.expand(3, -1), fmt, axis=0)).any()


def test_ties_keep_the_wider_range() -> None:
    x = torch.zeros(50)
    x[0] = 1e-9
    fmt = Affine(4)
    assert shrink_search(x, fmt).scale == min_max(x, fmt).scale


def test_shrink_candidates_end_at_21_percent() -> None:
    """One far outlier among many small values of which 2 bits should see something."""
    x = torch.cat([torch.linspace(0, 0.2, 10**6), torch.ones(1)])
    fmt = Affine(2)
    assert shrink_search(x, fmt).scale.item() == pytest.approx(0.21 / 3, rel=1e-4)


def test_grid_search_one_sided_data_stays_one_sided() -> None:
    fmt = Affine(3, "sym_offset")
    x = seeded(400).abs()
    assert grid_search(x, fmt).zero_point == 0
    assert grid_search(-x, fmt).zero_point == 7
    assert grid_search(x, Affine(3)).zero_point == 0


def test_grid_search_in_two_dimensions_beats_one_on_skewed_data() -> None:
    x = torch.cat([seeded(4000), 6 + 0.1 * seeded(4000)])
    fmt = Affine(3)
    one, two = (error(x, fmt, grid_search(x, fmt, dims=d)).mean() for d in (1, 2))
    assert two < one


def test_grid_search_refuses_what_would_take_minutes() -> None:
    x = torch.zeros(10**6 + 1)
    x[0], x[1] = -1, 1
    with pytest.raises(InvalidInputError, match=r"25600 passes .* subsample=10000 or dims=1"):
        grid_search(x, Affine(8))
    with pytest.raises(InvalidInputError, match="use dims=1"):
        grid_search(x[:10], Affine(9))
    with pytest.raises(InvalidInputError, match="asymmetric"):
        grid_search(x, Float(2, 1), dims=2)
    with pytest.raises(InvalidInputError, match="dims must be"):
        grid_search(x, Affine(4), dims=3)
    with pytest.raises(InvalidInputError, match="at least 1"):
        grid_search(x, Affine(4), subsample=0)


def test_grid_search_subsample_repeats_and_sees_the_ends() -> None:
    x = seeded(2, 3000)
    x[:, 7] = 30
    fmt = Affine(4)
    a, b = (grid_search(x, fmt, axis=0, dims=1, subsample=100, seed=3) for _ in range(2))
    assert torch.equal(a.scale, b.scale)
    assert torch.equal(
        grid_search(x, fmt, axis=0, dims=1, subsample=3000).scale,
        grid_search(x, fmt, axis=0, dims=1).scale,
    )


def test_percentile_against_numpy() -> None:
    x = seeded(3, 1001)
    fmt = Affine(8)
    r = percentile(x, fmt, q=0.98, axis=0)
    low, high = torch.quantile(x, 0.01, dim=1), torch.quantile(x, 0.99, dim=1)
    torch.testing.assert_close(r.scale[:, 0], fmt.params(low, high).scale)
    assert torch.equal(percentile(x, fmt, q=1.0).scale, min_max(x, fmt).scale)
    assert percentile(torch.tensor([3.0]), fmt).scale.item() == pytest.approx(3 / 255)


@pytest.mark.parametrize("q", [0, -0.5, 1.01])
def test_percentile_shares_are_checked(q: float) -> None:
    with pytest.raises(InvalidInputError, match=r"\(0, 1\]"):
        percentile(torch.ones(3), Affine(8), q=q)


def test_percentile_search_clips_an_outlier_at_four_bits() -> None:
    x = seeded(200_000)
    x[0] = 1000
    fmt = Affine(4)
    assert percentile_search(x, fmt).scale < min_max(x, fmt).scale / 10


def test_mean_abs_is_the_best_binary_scale() -> None:
    """|W - a sign W|^2 = sum W^2 - n a^2 at a = mean |W|: a share 1 - 2/pi of a Gaussian."""
    w = seeded(4, 50_000)
    r = mean_abs(w, Binary(), axis=0)
    torch.testing.assert_close(r.scale[:, 0], w.abs().mean(1))
    relative = error(w, Binary(), r, 2.0).sum() / w.square().sum()
    assert relative.item() == pytest.approx(1 - 2 / torch.pi, abs=5e-3)
    for factor in (0.99, 1.01):
        other = Range(r.scale * factor, r.zero_point)
        assert error(w, Binary(), other, 2.0).sum() > error(w, Binary(), r, 2.0).sum()


def test_gaussian_step_is_near_the_published_optimum() -> None:
    """Least squared error of a 4-bit signed grid on N(0, 1) is at a step of 0.343."""
    fmt = Affine(4, "sym_signed_full")
    x = seeded(400_000)
    r = shrink_search(x, fmt, p=2.0)
    # one candidate is 1 % of min-max away from the next
    assert r.scale.item() == pytest.approx(0.343, abs=0.01 * min_max(x, fmt).scale.item() + 0.005)


def test_kl_is_zero_when_every_bin_has_a_level_of_its_own() -> None:
    x = torch.linspace(-1, 1, 5001)
    assert kl(x, Affine(16)).scale == min_max(x, Affine(16)).scale


def test_kl_matches_its_definition() -> None:
    """Against P and Q written out bin by bin."""
    from dqlab.ranges.kl import BINS, divergence_from

    x, fmt = seeded(1, 5000), Affine(3)
    r = min_max(x * 0.6, fmt, axis=0)
    counts = torch.histc(x, BINS)
    width = (x.max() - x.min()) / BINS
    levels = fmt.fake_quant(
        x.min() + width * (torch.arange(BINS) + 0.5), fmt.params(x.min() * 0.6, x.max() * 0.6)
    )
    p = counts / counts.sum()
    q = torch.zeros(BINS)
    for level in levels.unique():
        cell = (levels == level) & (counts > 0)
        q[cell] = p[levels == level].sum() / cell.sum()
    expected = torch.xlogy(p, p / q.clamp(min=1e-30)).sum()
    torch.testing.assert_close(
        divergence_from(x, fmt)(r)[0].float(), expected, rtol=1e-2, atol=1e-4
    )


def test_cosine_ignores_length() -> None:
    x = seeded(500)
    fmt = Affine(4, "sym_signed_full")
    torch.testing.assert_close(cosine(8 * x, fmt).scale, 8 * cosine(x, fmt).scale)


@pytest.mark.parametrize("find", FINDERS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_data_is_refused_by_name(find: Callable[..., Range], bad: float) -> None:
    x = torch.ones(4, 4)
    x[2, 1] = bad
    with pytest.raises(InvalidInputError, match=r"conv_in\.input of shape \(4, 4\) holds"):
        find(x, Affine(4), name="conv_in.input")


@pytest.mark.parametrize("find", FINDERS)
def test_empty_and_integer_data_are_refused(find: Callable[..., Range]) -> None:
    with pytest.raises(InvalidInputError, match=r"conv_in\.weight is empty"):
        find(torch.ones(0, 3), Affine(4), name="conv_in.weight")
    with pytest.raises(InvalidInputError, match="floating point"):
        find(torch.ones(3, dtype=torch.int64), Affine(4))


@pytest.mark.parametrize("find", FINDERS)
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1e-30])
def test_constants(find: Callable[..., Range], value: float) -> None:
    """A constant is a grid point of its own range, so that every rule keeps it."""
    x, fmt = torch.full((20,), value), Affine(4)
    r = find(x, fmt)
    assert r.scale.isfinite() and r.scale >= 1e-8
    assert (fmt.fake_quant(x, r) - x).abs().max() <= 1e-6
    assert r.zero_point == (15 if value < 0 else 0)


@pytest.mark.parametrize("find", FINDERS)
def test_all_negative_data_puts_zero_at_the_top(find: Callable[..., Range]) -> None:
    assert find(-1 - seeded(100).abs(), Affine(4)).zero_point == 15


@pytest.mark.parametrize("find", FINDERS)
def test_strictly_positive_data_far_from_zero_survives(find: Callable[..., Range]) -> None:
    x, fmt = 5 + torch.linspace(0, 1, 100), Affine(8)
    r = find(x, fmt)
    # percentiles and searches may clip the ends, by no more than a tenth of the data's width
    assert (fmt.fake_quant(x, r) - x).abs().mean() <= 0.1


@pytest.mark.parametrize(
    ("axis", "shape"),
    [(None, ()), (0, (6, 1, 1, 1)), (1, (1, 5, 1, 1)), ((0, 1), (6, 5, 1, 1)), (-1, (1, 1, 1, 3))],
)
def test_shapes_broadcast(axis: object, shape: tuple[int, ...]) -> None:
    x = seeded(6, 5, 4, 3)
    r = min_max(x, Affine(8), axis=axis)
    assert r.scale.shape == r.zero_point.shape == shape
    assert Affine(8).fake_quant(x, r).shape == x.shape


def test_axis_out_of_range_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="axis 4"):
        min_max(seeded(2, 2), Affine(8), axis=4)


def test_groups_of_a_weight_have_ranges_of_their_own() -> None:
    w, fmt = seeded(6, 10), Affine(4)
    r = shrink_search(w, fmt, axis=0, group_size=4)
    assert r.scale.shape == (6, 3, 1)
    torch.testing.assert_close(r.scale[2, 1, 0], shrink_search(w[2, 4:8], fmt).scale)
    torch.testing.assert_close(
        min_max(w, fmt, axis=0, group_size=4).scale[3, 2, 0], min_max(w[3, 8:], fmt).scale
    )
    y = from_groups(fmt.fake_quant(to_groups(w, 4), r), 10)
    assert y.shape == w.shape
    assert (y - w).square().sum() < error(w, fmt, shrink_search(w, fmt, axis=0), 2.0).sum()


def test_groups_of_tokens_share_ranges_over_the_batch() -> None:
    x, fmt = seeded(2, 5, 12), Affine(4)
    r = min_max(x, fmt, group_size=4)
    assert r.scale.shape == (3, 1)
    torch.testing.assert_close(r.scale[1, 0], min_max(x[..., 4:8], fmt).scale)
    per_token = min_max(x, fmt, axis=(0, 1), group_size=4)
    assert per_token.scale.shape == (2, 5, 3, 1)


@given(st.integers(1, 9), st.integers(1, 20))
@quick
def test_groups_round_trip(size: int, width: int) -> None:
    x = seeded(3, width)
    assert torch.equal(from_groups(to_groups(x, size), width), x)


@pytest.mark.parametrize("size", [0, -2, 2.0, True])
def test_group_sizes_are_checked(size: object) -> None:
    with pytest.raises(InvalidInputError, match="group_size"):
        min_max(seeded(2, 4), Affine(4), axis=0, group_size=size)


@pytest.mark.parametrize(
    "fmt", [Float(2, 1), Log2(4, True), Codebook((-1, 0, 1)), Binary()], ids=str
)
def test_every_format_can_be_searched(fmt: Format) -> None:
    x = seeded(4, 300)
    for find in FINDERS:
        r = find(x, fmt, axis=0)
        assert r.scale.shape == (4, 1) and (r.scale > 0).all()


def test_half_precision_and_gradients_do_not_matter() -> None:
    x = seeded(100).half().requires_grad_()
    r = shrink_search(x, Affine(4))
    assert r.scale.dtype == torch.float32 and not r.scale.requires_grad


def test_many_rows_are_searched_in_chunks_with_the_same_result() -> None:
    w, fmt = seeded(600, 300), Affine(4)
    r = shrink_search(w, fmt, axis=0)
    for row in (0, 436, 437, 599):
        torch.testing.assert_close(r.scale[row, 0], shrink_search(w[row], fmt).scale)
