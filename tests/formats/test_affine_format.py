import math

import pytest
import torch
from format_cases import AFFINE, covering, quick, tensors
from hypothesis import given
from hypothesis import strategies as st

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.formats import Affine, Range, lsq_grad_scale
from dqlab.formats.affine import SUFFIXES


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0, 4, 4 / 255, 0),
        (-5, -2, 5 / 255, 255),
        (1, 2, 2 / 255, 0),
        (0, 0, 1e-8, 0),
        (-1, 254, 1, 1),
    ],
)
def test_canonical_parameters(low: float, high: float, scale: float, zero_point: float) -> None:
    r = Affine(8).params(torch.tensor(float(low)), torch.tensor(float(high)))
    assert r.scale.item() == pytest.approx(scale, rel=1e-6)
    assert r.zero_point.item() == zero_point


@pytest.mark.parametrize(
    ("variant", "scale", "zero_point", "q_min", "q_max"),
    [
        ("sym_offset", 2 * 3 / 15, 8, 0, 15),
        ("sym_signed_narrow", 3 / 7, 0, -8, 7),
        ("sym_signed_full", 3 / 7.5, 0, -8, 7),
        ("always_zero", 2 / 15, 0, 0, 15),
    ],
)
def test_variants(variant: str, scale: float, zero_point: int, q_min: int, q_max: int) -> None:
    fmt = Affine(4, variant)
    r = fmt.params(torch.tensor(-3.0), torch.tensor(2.0))
    assert r.scale.item() == pytest.approx(scale)
    assert (r.zero_point.item(), fmt.q_min, fmt.q_max) == (zero_point, q_min, q_max)


@pytest.mark.parametrize("bits", range(1, 17))
def test_sym_offset_zero_point_is_within_one_of_the_half_way_case(bits: int) -> None:
    r = Affine(bits, "sym_offset").params(torch.tensor(-0.7), torch.tensor(0.3))
    assert abs(r.zero_point.item() - (2**bits - 1) / 2) <= 1


def test_sym_offset_keeps_one_sided_data_one_sided() -> None:
    fmt = Affine(4, "sym_offset")
    positive = fmt.params(torch.tensor(1.0), torch.tensor(3.0))
    negative = fmt.params(torch.tensor(-3.0), torch.tensor(-1.0))
    assert (positive.zero_point.item(), negative.zero_point.item()) == (0, 15)
    assert positive.scale.item() == pytest.approx(3 / 15)
    assert negative.scale.item() == pytest.approx(3 / 15)


def test_integers_up_to_127_are_exact_with_the_narrow_grid_only() -> None:
    x = torch.arange(-127.0, 128.0)
    narrow, offset = Affine(8, "sym_signed_narrow"), Affine(8, "sym_offset")
    assert torch.equal(narrow.fake_quant(x, covering(narrow, x)), x)
    assert covering(offset, x).scale.item() == pytest.approx(254 / 255)
    assert not torch.equal(offset.fake_quant(x, covering(offset, x)), x)


@pytest.mark.parametrize("fmt", AFFINE, ids=str)
@quick
@given(tensors(), st.floats(1, 4))
def test_error_is_at_most_half_a_step_inside_the_range(
    fmt: Affine, x: torch.Tensor, slack: float
) -> None:
    r = covering(fmt, x * slack)
    error = (fmt.fake_quant(x, r) - x).abs()
    low, high = ((q - r.zero_point) * r.scale for q in (fmt.q_min, fmt.q_max))
    inside = (x >= low) & (x <= high)
    # float32: the quotient and the product each round once
    room = r.scale / 2 + 2**-22 * x.abs()
    assert (error <= room)[inside].all()


@pytest.mark.parametrize("variant", ["asymmetric", "sym_signed_narrow", "sym_signed_full"])
@quick
@given(tensors())
def test_covered_data_is_never_off_by_more_than_half_a_step(variant: str, x: torch.Tensor) -> None:
    for bits in (2, 4, 8):
        fmt = Affine(bits, variant)
        r = covering(fmt, x)
        # rounding the zero point may move the asymmetric grid's ends by half a step
        steps = 1.0 if variant == "asymmetric" else 0.5
        assert ((fmt.fake_quant(x, r) - x).abs() <= r.scale * (steps + 1e-4)).all()


@pytest.mark.parametrize("fmt", AFFINE, ids=str)
@quick
@given(tensors())
def test_codes_stay_within_bounds(fmt: Affine, x: torch.Tensor) -> None:
    codes = fmt.encode(1e3 * x, covering(fmt, x))
    assert fmt.q_min <= codes.min() and codes.max() <= fmt.q_max


@quick
@given(st.integers(2, 8), st.integers(-6, 6), st.data())
def test_grid_aligned_data_is_exact(bits: int, exponent: int, data: st.DataObject) -> None:
    fmt = Affine(bits, "sym_signed_full")
    codes = data.draw(st.lists(st.integers(fmt.q_min, fmt.q_max), min_size=1))
    x = torch.tensor(codes) * 2.0**exponent
    r = Range(torch.tensor(2.0**exponent), torch.tensor(0.0))
    assert torch.equal(fmt.fake_quant(x, r), x)
    assert fmt.encode(x, r).tolist() == codes


@quick
@given(tensors(), st.integers(-8, 8))
def test_scaling_data_and_step_by_a_power_of_two_scales_the_result(
    x: torch.Tensor, exponent: int
) -> None:
    fmt, c = Affine(4), 2.0**exponent
    r = covering(fmt, x)
    if r.scale <= 1e-6:
        return
    scaled = Range(r.scale * c, r.zero_point)
    assert torch.equal(fmt.fake_quant(c * x, scaled), c * fmt.fake_quant(x, r))


def test_ties_round_to_even() -> None:
    r = Range(torch.tensor(1.0), torch.tensor(0.0))
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    assert Affine(4, "sym_signed_full").encode(x, r).tolist() == [-2, 0, 0, 2, 2]


def test_gradients_against_closed_form() -> None:
    x = torch.tensor([-3, -0.6, -0.5, 0.2, 0.74, 5], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    fmt = Affine(3, "sym_signed_full")
    y = fmt.fake_quant(x, Range(scale, torch.tensor(0.0)))
    assert y.tolist() == [-2, -0.5, -0.5, 0, 0.5, 1.5]
    (dx,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert dx.tolist() == [0, 1, 1, 1, 1, 0]
    slopes = [torch.autograd.grad(y[i], scale, retain_graph=True)[0].item() for i in range(len(x))]
    assert slopes == pytest.approx([-4, 0.2, 0, -0.4, -0.48, 3], abs=1e-6)


def test_lsq_gradient_inside_and_above_with_grad_scale() -> None:
    fmt, g = Affine(4), 1 / math.sqrt(15)
    for value, slope in ((3.3, -0.3), (100.0, 10.0)):
        for grad_scale in (1.0, g):
            scale = torch.tensor(1.0, requires_grad=True)
            r = Range(scale, torch.tensor(5.0))
            fmt.fake_quant(torch.tensor([value]), r, grad_scale).sum().backward()
            assert scale.grad.item() == pytest.approx(slope * grad_scale, rel=1e-5)


def test_zero_point_gradient_counts_the_clipped() -> None:
    zero_point = torch.tensor(1.0, requires_grad=True)
    x = torch.tensor([-50.0, 0.5, 2.0, 50.0, 60.0])
    Affine(2).fake_quant(x, Range(torch.tensor(2.0), zero_point)).sum().backward()
    assert zero_point.grad.item() == -2.0 * 3


@quick
@given(tensors(), st.sampled_from([(), (1,), "rows"]))
def test_function_equals_composed_autograd(x: torch.Tensor, kind: object) -> None:
    """Against u + (round(u) - u).detach() of a clip, which autograd differentiates itself."""
    shape = (x.shape[0], *[1] * (x.ndim - 1)) if kind == "rows" else kind
    fmt = Affine(4)
    scale, zero_point = torch.full(shape, 0.37), torch.full(shape, 6.0)
    one = x.clone().requires_grad_(), scale.clone().requires_grad_()
    two = x.clone().requires_grad_(), scale.clone().requires_grad_()
    y = fmt.fake_quant(one[0], Range(one[1], zero_point))
    u = (two[0] / two[1]).clamp(fmt.q_min - zero_point, fmt.q_max - zero_point)
    expected = (u + (u.round() - u).detach()) * two[1]
    weight = torch.linspace(-1, 1, x.numel()).view_as(x)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one[0].grad, two[0].grad)
    # clip's terms Q - u cancel in another order
    torch.testing.assert_close(one[1].grad, two[1].grad, rtol=1e-4, atol=1e-2)


def test_backward_keeps_one_input_alive() -> None:
    x = torch.randn(1000, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, id):
        Affine(8).fake_quant(x, covering(Affine(8), x.detach()))
    assert sum(saved) <= 1000 + 2


def test_lsq_grad_scale_counts_elements_that_share_a_scale() -> None:
    x = torch.zeros(8, 4, 3, 3)
    whole = Range(torch.tensor(1.0), torch.tensor(0.0))
    channels = Range(torch.ones(8, 1, 1, 1), torch.zeros(8, 1, 1, 1))
    assert lsq_grad_scale(x, whole, Affine(4)) == pytest.approx(1 / math.sqrt(288 * 15))
    assert lsq_grad_scale(x, whole, Affine(4), batch=True) == pytest.approx(1 / math.sqrt(36 * 15))
    assert lsq_grad_scale(x, channels, Affine(4)) == pytest.approx(1 / math.sqrt(36 * 15))
    signed = Affine(4, "sym_signed_full")
    assert lsq_grad_scale(x, whole, signed) == pytest.approx(1 / math.sqrt(288 * 7))


@pytest.mark.parametrize("bits", [0, 17, -1, True, 4.0, "4"])
def test_impossible_bits_are_refused(bits: object) -> None:
    with pytest.raises(InvalidInputError, match="bits must be"):
        Affine(bits)


def test_narrow_grid_needs_two_bits() -> None:
    with pytest.raises(InvalidInputError, match="Binary"):
        Affine(1, "sym_signed_narrow")


def test_unknown_variant_lists_the_known() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Affine(4, "symmetric")
    assert all(variant in str(caught.value) for variant in SUFFIXES)
