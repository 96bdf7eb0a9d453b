"""What every format promises."""

import json

import pytest
import torch
from format_cases import FORMATS, WITH_ZERO, covering, quick, tensors
from hypothesis import given
from hypothesis import strategies as st

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.formats import Affine, Binary, Codebook, Float, Format, Log2, Range, parse


def ranges_of(fmt: Format, x: torch.Tensor) -> list[Range]:
    """One range, one per row, and one that clips."""
    rows = (x.shape[0], *[1] * (x.ndim - 1))
    flat = x.reshape(len(x), -1)
    per_row = fmt.params(flat.amin(1).view(rows), flat.amax(1).view(rows))
    return [covering(fmt, x), per_row, covering(fmt, x / 3)]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@quick
@given(tensors())
def test_fake_quant_is_decode_of_encode(fmt: Format, x: torch.Tensor) -> None:
    for r in ranges_of(fmt, x):
        y = fmt.fake_quant(x, r)
        assert torch.equal(y, fmt.decode(fmt.encode(x, r), r))
        learned = Range(r.scale.clone().requires_grad_(), r.zero_point)
        assert torch.equal(y, fmt.fake_quant(x, learned))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@quick
@given(tensors())
def test_idempotent(fmt: Format, x: torch.Tensor) -> None:
    for r in ranges_of(fmt, x):
        y = fmt.fake_quant(x, r)
        assert torch.equal(fmt.fake_quant(y, r), y)
        assert torch.equal(fmt.encode(y, r), fmt.encode(x, r))


@pytest.mark.parametrize("fmt", WITH_ZERO, ids=str)
@quick
@given(tensors())
def test_zero_is_exact(fmt: Format, x: torch.Tensor) -> None:
    r = covering(fmt, x)
    assert not fmt.fake_quant(torch.zeros(3), r).any()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@quick
@given(tensors())
def test_monotone(fmt: Format, x: torch.Tensor) -> None:
    y = fmt.fake_quant(x.flatten().sort().values, covering(fmt, x))
    assert (y.diff() >= 0).all()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@quick
@given(tensors(max_side=4))
def test_results_are_levels_and_levels_are_fixed(fmt: Format, x: torch.Tensor) -> None:
    r = covering(fmt, x)
    levels = fmt.levels(r)
    assert (levels.diff() > 0).all()
    assert torch.isin(fmt.fake_quant(x, r), levels).all()
    assert torch.equal(fmt.fake_quant(levels, r), levels)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_levels_follow_the_shape_of_the_range(fmt: Format) -> None:
    one = fmt.params(torch.tensor(-1.0), torch.tensor(2.0))
    many = fmt.params(torch.full((5, 1), -1.0), torch.full((5, 1), 2.0))
    assert fmt.levels(many).shape == (5, 1, *fmt.levels(one).shape)
    assert torch.equal(fmt.levels(many)[3, 0], fmt.levels(one))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_channels_last_stays_channels_last(fmt: Format) -> None:
    x = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last)
    for r in ranges_of(fmt, x):
        assert fmt.fake_quant(x, r).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_input_is_left_alone(fmt: Format) -> None:
    x = torch.randn(64)
    before = x.clone()
    r = covering(fmt, x)
    fmt.fake_quant(x, r)
    fmt.encode(x, r)
    assert torch.equal(x, before)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_that_of_the_scale(fmt: Format, dtype: torch.dtype) -> None:
    x = torch.randn(256).to(dtype)
    r = covering(fmt, x.float())
    y = fmt.fake_quant(x, r)
    assert y.dtype == dtype
    assert torch.equal(y, fmt.fake_quant(x.float(), r).to(dtype))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_tensor_of_zeros_has_a_finite_range_and_no_gradient_trouble(fmt: Format) -> None:
    x = torch.zeros(10, requires_grad=True)
    r = covering(fmt, x.detach())
    scale = r.scale.clone().requires_grad_()
    y = fmt.fake_quant(x, Range(scale, r.zero_point))
    y.sum().backward()
    assert r.scale.item() == pytest.approx(1e-8, rel=10) and y.abs().max() <= 1e-7
    assert x.grad.isfinite().all() and scale.grad.isfinite()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_gradient_is_cut_outside_and_the_scale_learns(fmt: Format) -> None:
    x = torch.tensor([-50.0, -0.3, 0.4, 50.0], requires_grad=True)
    r = fmt.params(torch.tensor(-1.0), torch.tensor(1.0))
    scale = r.scale.clone().requires_grad_()
    y = fmt.fake_quant(x, Range(scale, r.zero_point))
    (y * torch.tensor([1.0, 1.0, 1.0, 3.0])).sum().backward()
    assert x.grad[0] == 0 and x.grad[3] == 0 and x.grad[1:3].any()
    top = fmt.levels(Range(torch.tensor(1.0), r.zero_point))[-1]
    alone = Range(r.scale.clone().requires_grad_(), r.zero_point)
    fmt.fake_quant(torch.tensor([50.0]), alone).sum().backward()
    assert alone.scale.grad == pytest.approx(top.item())


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_descriptions_round_trip(fmt: Format) -> None:
    assert Format.from_dict(json.loads(json.dumps(fmt.to_dict()))) == fmt
    assert parse(fmt.name) == fmt
    assert parse(fmt) is fmt
    assert {fmt: 1}[parse(fmt.name)] == 1


@pytest.mark.parametrize(
    ("spec", "fmt"),
    [
        (8, Affine(8)),
        ("uint8", Affine(8)),
        (" INT4 ", Affine(4, "sym_signed_full")),
        ("int4-narrow", Affine(4, "sym_signed_narrow")),
        ("uint4-offset", Affine(4, "sym_offset")),
        ("uint8-zero", Affine(8, "always_zero")),
        ("fp4", Float(2, 1)),
        ("fp4-e2m1", Float(2, 1)),
        ("fp6", Float(3, 2)),
        ("fp8", Float(4, 3)),
        ("fp8-e5m2", Float(5, 2)),
        ("log2-4", Log2(4)),
        ("log2-4-signed", Log2(4, signed=True)),
        ("codebook(-1, 0, 1)", Codebook((-1, 0, 1))),
        ("binary", Binary()),
    ],
)
def test_parse(spec: int | str, fmt: Format) -> None:
    assert Format.parse(spec) == fmt


@pytest.mark.parametrize(
    "spec", ["int", "fp5", "ternary", "int8-offset", "uint8-narrow", "", None, 4.5, True]
)
def test_unknown_names_list_what_exists(spec: object) -> None:
    with pytest.raises(UnknownNameError, match=r"int8-narrow.*fp4.*log2-4.*codebook.*binary"):
        parse(spec)


@pytest.mark.parametrize(
    "spec", [0, 17, "uint40", "fp4-e4m3", "fp9-e5m3", "log2-9", "codebook(a)", "codebook(1)"]
)
def test_known_kinds_with_impossible_numbers(spec: int | str) -> None:
    with pytest.raises(InvalidInputError):
        parse(spec)


def test_from_dict_refuses_nonsense() -> None:
    with pytest.raises(UnknownNameError, match=r"affine, binary, codebook, .*float, log2"):
        Format.from_dict({"kind": "posit"})
    with pytest.raises(InvalidInputError, match="affine"):
        Format.from_dict({"kind": "affine", "width": 3})


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [(Affine(3), 3), (Float(2, 1), 4), (Codebook((-1, 0, 1)), 1.584962500721156), (Binary(), 1)],
)
def test_bits(fmt: Format, bits: float) -> None:
    assert fmt.bits == pytest.approx(bits)


@quick
@given(st.integers(1, 5), st.integers(2, 4), st.data())
def test_range_index_picks_the_step_of_each_sample(
    steps: int, ndim: int, data: st.DataObject
) -> None:
    rows = torch.tensor(data.draw(st.lists(st.integers(0, steps - 1), min_size=1, max_size=6)))
    table = Range(torch.arange(1.0, steps + 1), torch.zeros(steps))
    picked = table.index(rows, ndim)
    assert picked.scale.shape == (len(rows), *[1] * (ndim - 1))
    assert torch.equal(picked.scale.flatten(), rows + 1.0)
    assert table.index(int(rows[0]), ndim).scale == rows[0] + 1


def test_range_index_keeps_channels() -> None:
    scale = torch.rand(7, 1, 3, 1, 1)
    table = Range(scale, torch.zeros_like(scale))
    steps = torch.tensor([4, 0])
    picked = table.index(steps, 4)
    assert picked.scale.shape == (2, 3, 1, 1)
    x = torch.randn(2, 3, 5, 5)
    y = Affine(8, "sym_signed_full").fake_quant(x, picked)
    for i, step in enumerate(steps.tolist()):
        alone = Affine(8, "sym_signed_full").fake_quant(x[i : i + 1], table.index(step, 4))
        assert torch.equal(y[i : i + 1], alone)


def test_range_index_aligns_the_rest_of_the_shape_to_the_right() -> None:
    last = Range(torch.rand(7, 3), torch.zeros(7, 3))
    assert last.index(torch.tensor([4, 0]), 4).scale.shape == (2, 1, 1, 3)
    with pytest.raises(InvalidInputError, match="does not fit 1 dimensions"):
        last.index(torch.tensor([4, 0]), 1)


def test_range_index_refuses_missing_steps() -> None:
    table = Range(torch.ones(3), torch.zeros(3))
    with pytest.raises(InvalidInputError, match=r"step 3 .* 0\.\.2"):
        table.index(3, 4)
    with pytest.raises(InvalidInputError, match="no step axis"):
        Range(torch.tensor(1.0), torch.tensor(0.0)).index(0, 4)


def test_range_moves_as_one() -> None:
    r = Range(torch.tensor(1.0), torch.tensor(0.0)).to(torch.float64)
    assert (r.scale.dtype, r.zero_point.dtype) == (torch.float64, torch.float64)
