"""Floating point, log2, codebook and binary formats against their published values."""

import pytest
import torch
from format_cases import FLOATS, quick, tensors
from hypothesis import given
from hypothesis import strategies as st

from dqlab.errors import InvalidInputError
from dqlab.formats import Binary, Codebook, Float, Format, Log2, LogTau, Range

ONE = Range(torch.tensor(1.0), torch.tensor(0.0))


def values(fmt: Format, *x: float, scale: float = 1.0) -> list[float]:
    return fmt.fake_quant(torch.tensor(x), Range(torch.tensor(scale), ONE.zero_point)).tolist()


@pytest.mark.parametrize(
    ("fmt", "positive"),
    [
        (Float(2, 1), [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        (Float(1, 2), [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
        (Float(3, 0), [0, 0.25, 0.5, 1, 2, 4, 8, 16]),
    ],
    ids=str,
)
def test_four_bit_levels(fmt: Float, positive: list[float]) -> None:
    levels = fmt.levels(ONE)
    assert levels[7:].tolist() == positive
    assert torch.equal(levels, -levels.flip(0))


@pytest.mark.parametrize(
    ("x", "y"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4), (6, 6), (1e9, 6)],
)
def test_e2m1_ties_go_to_the_even_mantissa(x: float, y: float) -> None:
    assert values(Float(2, 1), x, -x) == [y, -y]


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [(Float(4, 3), torch.float8_e4m3fn), (Float(5, 2), torch.float8_e5m2)],
    ids=str,
)
def test_eight_bit_floats_are_those_of_torch(fmt: Float, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(dtype).float()
    ours = fmt.decode(codes, ONE)
    number = theirs.isfinite()
    assert torch.equal(ours.isfinite(), number)
    assert torch.equal(ours[number], theirs[number])
    assert fmt.largest == theirs[number].max() == torch.finfo(dtype).max
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-7, 3, 5000)
    x = x[x.abs() <= fmt.largest]
    assert torch.equal(fmt.fake_quant(x, ONE), x.to(dtype).float())
    assert torch.equal(
        fmt.encode(x, ONE)[x.to(dtype) != 0], x.to(dtype).view(torch.uint8)[x.to(dtype) != 0].int()
    )


@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_float_codes_round_trip(fmt: Float) -> None:
    codes = torch.arange(2**fmt.bits)
    decoded = fmt.decode(codes, ONE)
    keep = decoded.isfinite() & (codes != 2 ** (fmt.bits - 1))  # minus zero has no code of its own
    assert torch.equal(fmt.encode(decoded[keep], ONE), codes[keep].int())


@pytest.mark.parametrize("fmt", FLOATS, ids=str)
@quick
@given(tensors(), st.integers(-6, 6))
def test_float_rounds_to_a_nearest_level(fmt: Float, x: torch.Tensor, exponent: int) -> None:
    r = Range(torch.tensor(2.0**exponent), ONE.zero_point)
    distance = (x.flatten()[:, None] - fmt.levels(r)).abs().amin(1)
    assert torch.equal((fmt.fake_quant(x, r) - x).abs().flatten(), distance)
    assert torch.equal(fmt.fake_quant(-x, r), -fmt.fake_quant(x, r))
    double = Range(2 * r.scale, r.zero_point)
    assert torch.equal(fmt.fake_quant(2 * x, double), 2 * fmt.fake_quant(x, r))


@pytest.mark.parametrize("fmt", [*FLOATS, Log2(4), Log2(4, True), Codebook((-1, 0, 1))], ids=str)
def test_nan_stays_nan_and_infinity_saturates(fmt: Format) -> None:
    low, nan, high = fmt.fake_quant(torch.tensor([-torch.inf, torch.nan, torch.inf]), ONE)
    levels = fmt.levels(ONE)
    assert nan.isnan()
    assert (low, high) == (levels[0], levels[-1])


@pytest.mark.parametrize(("e", "m"), [(0, 3), (1, 0), (5, 3), (2, -1)])
def test_impossible_floats_are_refused(e: int, m: int) -> None:
    with pytest.raises(InvalidInputError, match="3 to 8 bits"):
        Float(e, m)


def test_log2_on_published_values() -> None:
    x = (1, 0.8, 0.7, 0.3, 0.19, 0.18, 0.05)
    y = [1, 1, 0.5, 0.25, 0.25, 0.125, 0.0625]
    assert values(Log2(4), *x) == y
    assert values(Log2(4, signed=True), *(-v for v in x)) == [-v for v in y]
    assert values(Log2(4), -0.5, 3.0) == [0, 1]


def test_log2_drops_what_lies_below_its_last_exponent() -> None:
    assert values(Log2(3), 2.0**-7, 2.0**-8, 2.0**-20) == [2.0**-7, 0, 0]


@quick
@given(tensors(), st.integers(1, 8))
def test_log2_relative_error_is_at_most_a_third(x: torch.Tensor, bits: int) -> None:
    fmt = Log2(bits, signed=True)
    r = fmt.params(x.min(), x.max())
    kept = x.abs() >= r.scale * 2.0**-fmt.last
    error = (fmt.fake_quant(x, r) - x).abs()
    assert (error <= x.abs() * (1 / 3 + 1e-6))[kept].all()


@pytest.mark.parametrize("signed", [False, True])
def test_log2_codes_count_exponents_from_one(signed: bool) -> None:
    fmt = Log2(3, signed)
    assert fmt.encode(torch.tensor([0, 1, 0.5, 2**-7]), ONE).tolist() == [0, 1, 2, 8]
    assert fmt.encode(torch.tensor([-0.25]), ONE).tolist() == [-3 if signed else 0]


@quick
@given(tensors())
def test_codebook_takes_a_nearest_level(x: torch.Tensor) -> None:
    fmt = Codebook((-3.0, -0.5, 0.0, 0.25, 7.0))
    distance = (x.flatten()[:, None] - fmt.levels(ONE)).abs().amin(1)
    assert torch.equal((fmt.fake_quant(x, ONE) - x).abs().flatten(), distance)


def test_codebook_ties_go_towards_zero_and_order_does_not_matter() -> None:
    assert values(Codebook((1, -1, 0)), -0.5, 0.5, -0.51, 0.51) == [0, 0, -1, 1]
    assert Codebook((1, -1, 0)) == Codebook((-1, 0, 1))


@pytest.mark.parametrize("levels", [(), (1,), (1, 1), (0, torch.inf), (1, 1 + 1e-12)])
def test_codebooks_need_levels_that_differ(levels: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInputError, match="at least 2 finite values"):
        Codebook(levels)


def test_binary_sign_of_zero_is_plus() -> None:
    assert values(Binary(), -2, -0.1, 0, -0.0, 0.1, scale=0.5) == [-0.5, -0.5, 0.5, 0.5, 0.5]


def test_binary_gradients() -> None:
    x = torch.tensor([-1.5, -1.0, 0.0, 0.3, 1.0, 2.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    weight = torch.arange(1.0, 7.0)
    (
        Binary().fake_quant(x, Range(scale, ONE.zero_point), grad_scale=0.1) * weight
    ).sum().backward()
    assert x.grad.tolist() == [0, 1, 1.5, 2, 2.5, 0]
    assert scale.grad.item() == pytest.approx(0.1 * (-1 - 2 + 3 + 4 + 5 + 6))


def test_logtau_has_bits_with_a_sign_in_them_and_octaves() -> None:
    levels = LogTau(4, 6).levels(ONE)
    assert levels.tolist() == [-(2.0**-q) for q in range(7)] + [0] + [
        2.0**-q for q in range(6, -1, -1)
    ]
    assert LogTau(4, 6).tau == 1 and LogTau(8, 12).tau == pytest.approx(126 / 12)
    assert LogTau(4, 6).name == "logtau-4-6"
    assert values(LogTau(4, 6), 2**-6.4, 2**-6.6, 2.0, -2.0) == [2**-6, 0, 1, -1]


@pytest.mark.parametrize(("bits", "octaves"), [(2, 3), (9, 3), (4, 0), (4, 2.5), (True, 3)])
def test_logtau_says_what_it_takes(bits, octaves) -> None:
    with pytest.raises(InvalidInputError, match="LogTau"):
        LogTau(bits, octaves)
