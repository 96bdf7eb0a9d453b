import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Log2, LogTau, Range
from dqlab.reference import qvd as paper

CODES = {
    4: [12, 7, 4, 2, 2] + [1] * 7,
    6: [16, 15, 12, 7, 4, 2, 2] + [1] * 5,
    8: [16, 16, 16, 15, 12, 7, 4, 2, 2, 1, 1, 1],
}
"""Distinct codes of each channel of the skewed features on a uniform grid from 0, by bits."""


def skewed() -> torch.Tensor:
    """u_{t,c} = 2^(-c + t / 8): every channel moves over two octaves, and most are small."""
    t, c = torch.arange(16.0)[:, None], torch.arange(12.0)[None]
    return torch.exp2(-c + t / 8)


def test_log2_rounds_at_the_arithmetic_midpoint() -> None:
    u = torch.tensor([1, 0.8, 0.7, 0.3, 0.19, 0.18, 0.05, 0.0])
    expected = torch.tensor([1, 1, 0.5, 0.25, 0.25, 0.125, 0.0625, 0])
    for sign in (1, -1):
        assert torch.equal(paper.log2_quantize(sign * u, 1.0, 4), sign * expected)
    assert torch.equal(paper.log2_quantize(expected, 1.0, 4), expected)
    assert paper.log2_quantize(torch.tensor([-4.4]), 4.4, 4) == torch.tensor(-4.4)


def test_log2_ends_in_zero() -> None:
    u = torch.exp2(-torch.tensor([7.0, 8.0, 20.0]))
    assert paper.log2_quantize(u, 1.0, 3).tolist() == [2**-7, 0, 0]


@pytest.mark.parametrize("b", [3, 4, 8])
@pytest.mark.parametrize("octaves", [3, 6])
def test_logtaus_relative_error_is_bounded_over_its_octaves(b, octaves) -> None:
    M = 4.42
    u = M * torch.exp2(-torch.linspace(0, octaves, 999))
    tau = (2 ** (b - 1) - 2) / octaves
    relative = (paper.logtau_quantize(u, M, b, octaves) / u - 1).abs()
    assert relative.max() <= 2 ** (1 / (2 * tau)) - 1 + 1e-5
    assert paper.logtau_quantize(-u, M, b, octaves).equal(-paper.logtau_quantize(u, M, b, octaves))


def test_logtau_of_one_level_an_octave_is_log2_but_for_the_midpoint() -> None:
    u = torch.exp2(-torch.linspace(0, 5.9, 200))
    middle = u / torch.exp2(u.log2().floor())
    between = (middle > 2**0.5) & (middle < 1.5)
    found = paper.logtau_quantize(u, 1.0, 4, 6.0) == paper.log2_quantize(u, 1.0, 4)
    assert torch.equal(found, ~between) and between.any()


@pytest.mark.parametrize("M", [0.0, float("nan"), float("inf")])
def test_features_without_a_largest_value_are_refused(M) -> None:
    with pytest.raises(InvalidInputError, match="must be positive and finite"):
        paper.log2_quantize(torch.ones(2), M, 4)


def test_formats_are_the_formulas() -> None:
    u = torch.cat([torch.randn(500), torch.zeros(1), 1e-4 * torch.randn(50)])
    M = float(u.abs().max())
    r = Range(torch.tensor(M), torch.tensor(0.0))
    for fmt, formula in (
        (Log2(4, signed=True), paper.log2_quantize(u, M, 4)),
        (LogTau(4, 6), paper.logtau_quantize(u, M, 4, 6)),
    ):
        torch.testing.assert_close(fmt.fake_quant(u, r), formula)


@pytest.mark.parametrize("b", CODES)
def test_codes_left_on_skewed_features(b) -> None:
    u = skewed()
    uniform = Affine(b).fake_quant(u, Affine(b).params(u.min(), u.max()))
    assert paper.distinct_codes(uniform).tolist() == CODES[b]
    log2 = paper.log2_quantize(u, float(u.max()), b)
    assert set(paper.distinct_codes(log2)[:-1].tolist()) == {3}


@pytest.mark.parametrize("b", [4, 6])
def test_on_skewed_features_log_grids_tell_more_steps_apart(b) -> None:
    """log2 keeps 3 codes of 2 octaves whatever its bits; logtau 2 tau + 1 if tau > 1 / 2."""
    u = skewed()
    M = float(u.max())
    uniform = Affine(b).fake_quant(u, Affine(b).params(u.min(), u.max()))
    logs = paper.log2_quantize(u, M, b), paper.logtau_quantize(u, M, b, 12)
    for log in logs:
        assert paper.td_score(u, log) > paper.td_score(u, uniform)
    assert max(map(paper.distinct_code_ratio, logs)) > paper.distinct_code_ratio(uniform)


def test_more_bits_make_log2_no_finer_but_logtau_and_uniform() -> None:
    u = torch.randn(20, 64).abs()
    M, scores = float(u.max()), {}
    for b in (4, 8):
        uniform = Affine(b).fake_quant(u, Affine(b).params(u.min(), u.max()))
        scores[b] = [
            float(paper.td_score(u, q))
            for q in (paper.log2_quantize(u, M, b), paper.logtau_quantize(u, M, b, 8), uniform)
        ]
    assert scores[8][0] - scores[4][0] < 0.01
    assert scores[8][1] > scores[4][1] + 0.01 and scores[8][2] > scores[4][2] + 0.01
    assert scores[8][2] > scores[8][0]


def test_tdscore_is_one_for_the_same_and_zero_for_one_vector_at_all_steps() -> None:
    u = torch.randn(8, 5)
    assert paper.td_score(u, u) == 1
    assert float(paper.td_score(u, u.mean(0).expand(8, 5))) == pytest.approx(0, abs=1e-9)


def test_tdscore_does_not_mind_the_order_or_scale_of_channels() -> None:
    u = torch.randn(8, 5)
    u_hat = u + 0.1 * torch.randn(8, 5)
    order, factor = torch.randperm(5), torch.rand(5) + 0.5
    score = float(paper.td_score(u, u_hat))
    assert float(paper.td_score(u[:, order], u_hat[:, order])) == pytest.approx(score, abs=1e-6)
    assert float(paper.td_score(u * factor, u_hat * factor)) == pytest.approx(score, abs=1e-6)


def test_a_constant_channel_and_constant_features() -> None:
    u = torch.cat([torch.randn(8, 3), torch.full((8, 1), 2.0)], 1)
    assert paper.td_score(u, u).isfinite()
    with pytest.raises(InvalidInputError, match="the same at all steps"):
        paper.td_score(torch.ones(4, 3), torch.ones(4, 3))
    with pytest.raises(InvalidInputError, match="at least two"):
        paper.td_score(u[:1], u[:1])


def test_the_margin_falls_below_zero_when_steps_are_mistaken() -> None:
    u = torch.arange(6.0)[:, None]
    assert paper.identification_margin(u, u) == 1
    assert paper.identification_margin(u, u.roll(1, 0)) < 0


def test_skewness_of_known_shapes() -> None:
    assert abs(float(paper.skewness(torch.linspace(-1, 1, 101)))) < 1e-6
    assert float(paper.skewness(skewed())) > 1
    assert float(paper.skewness(-skewed())) < -1
    assert paper.skewness(torch.ones(5)) == 0


def test_coverage_and_asymmetry() -> None:
    low, high = torch.tensor([0.0, 0, -1]), torch.tensor([1.0, 2, 3])
    assert paper.coverage(low, high).tolist() == [0.25, 0.5, 1]
    assert paper.asymmetry(low, high).tolist() == [1, 1, 0.5]
    constant = torch.tensor([2.0, 0.0]), torch.tensor([2.0, 1.0])
    assert paper.coverage(*constant)[0] == 0
    delta, sigma = paper.scri_factors(*constant, 1.0)
    assert delta.tolist() == [2, 0.5] and sigma.tolist() == pytest.approx([1e-4, 1])


def test_after_full_integration_every_channel_covers_all_levels() -> None:
    X = torch.randn(50, 6).double() * torch.logspace(-2, 1, 6) + torch.linspace(-3, 3, 6)
    low, high = X.amin(0), X.amax(0)
    X2 = paper.scri_input(X, *paper.scri_factors(low, high, 1.0))
    torch.testing.assert_close(
        paper.coverage(X2.amin(0), X2.amax(0)), torch.ones(6).double(), atol=1e-6, rtol=0
    )
    shifted = paper.scri_input(X, *paper.scri_factors(low, high, 0.0))
    torch.testing.assert_close(shifted.amin(0), -shifted.amax(0), atol=1e-5, rtol=1e-5)


CONVOLUTIONS = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_the_rewrite_of_a_convolution_is_exact(settings) -> None:
    conv, X = torch.nn.Conv2d(6, 8, **settings), torch.randn(2, 6, 9, 9) * 3 + 2
    delta, sigma = paper.scri_factors(X.amin((0, 2, 3)), X.amax((0, 2, 3)), 0.7)
    W, b = paper.scri_weight(conv.weight, conv.bias, delta, sigma, conv.groups)
    X2 = paper.scri_input(X, delta, sigma, conv.padding[0])
    y = torch.nn.functional.conv2d(X2, W, b, conv.stride, 0, 1, conv.groups)
    torch.testing.assert_close(y, conv(X), rtol=1e-5, atol=1e-4)
    if conv.padding[0]:  # zeros around the shifted input are not the same
        wrong = paper.scri_input(X, delta, sigma)
        y = torch.nn.functional.conv2d(wrong, W, b, conv.stride, 1, 1, conv.groups)
        assert (y - conv(X)).abs().max() > 0.01


def test_the_rewrite_of_a_linear_layer_is_exact() -> None:
    linear, X = torch.nn.Linear(6, 4), torch.randn(7, 6) - 1
    delta, sigma = paper.scri_factors(X.amin(0), X.amax(0), 1.0)
    W, b = paper.scri_weight(linear.weight, linear.bias, delta, sigma)
    found = torch.nn.functional.linear(paper.scri_input(X, delta, sigma), W, b)
    torch.testing.assert_close(found, linear(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_a_share(alpha) -> None:
    with pytest.raises(InvalidInputError, match="choose 0"):
        paper.scri_factors(torch.zeros(2), torch.ones(2), alpha)


def test_ranges_must_be_finite() -> None:
    with pytest.raises(InvalidInputError, match="NaN or infinity"):
        paper.scri_factors(torch.tensor([0.0]), torch.tensor([torch.inf]), 1.0)
