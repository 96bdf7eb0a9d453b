"""quantize_affine: the reference against arithmetic by hand, Triton against the reference."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists
from torch import Tensor

from dqlab.kernels import explain, named, quantize_affine
from dqlab.kernels.quantize.hard_values import hard_values

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed (it exists for Linux only)"
)
INFINITY = float("inf")


def numbers(scale: float, zero_point: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)


def run(name: str, x: Tensor, scale: float, zero_point: int, bits: int = 8) -> Tensor:
    return named("quantize_affine", name).run(x, *numbers(scale, zero_point), bits)


@pytest.mark.parametrize("name", ["reference", pytest.param("triton", marks=needs_triton)])
def test_codes_worked_out_by_hand(name: str) -> None:
    x = torch.tensor([-1.25, -0.75, -0.25, 0.0, 0.25, 0.75, 1.25, INFINITY, -INFINITY, torch.nan])
    # Steps are -2.5 -1.5 -0.5 0 0.5 1.5 2.5; halves go to the even neighbour.
    expected = [2, 2, 4, 4, 4, 6, 6, 15, 0, 4]
    assert run(name, x, 0.5, 4, bits=4).tolist() == expected


@needs_triton
@pytest.mark.triton
@pytest.mark.parametrize("count", [1, 2, 127, 511, 512, 513, 5000])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.1, 1 / 3, 1e-30])
@pytest.mark.parametrize(
    ("zero_point", "bits"), [(0, 8), (128, 8), (255, 8), (-37, 8), (7, 4), (1, 1)]
)
def test_triton_matches_reference_bit_for_bit(count, scale, zero_point, bits) -> None:
    x = hard_values(count, scale, torch.Generator().manual_seed(0))
    assert torch.equal(
        run("triton", x, scale, zero_point, bits), run("reference", x, scale, zero_point, bits)
    )


@needs_triton
@pytest.mark.triton
@pytest.mark.filterwarnings("ignore:overflow encountered in divide")
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    values=lists(floats(width=32), min_size=1, max_size=40),
    scale=floats(2.0**-120, 2.0**120, width=32),
    zero_point=integers(-(2**21) + 1, 2**21 - 1),
    bits=integers(1, 8),
)
def test_triton_matches_reference_on_any_float(values, scale, zero_point, bits) -> None:
    x = torch.tensor(values)
    codes = run("triton", x, scale, zero_point, bits)
    assert torch.equal(codes, run("reference", x, scale, zero_point, bits))


@needs_triton
@pytest.mark.triton
def test_triton_handles_strides_and_empty_tensors() -> None:
    x = torch.randn(6, 10)
    for view in (x.t(), x[:, ::3], x[:0], torch.tensor(0.3)):
        codes = run("triton", view, 0.02, 128)
        assert codes.is_contiguous()
        assert torch.equal(codes, run("reference", view, 0.02, 128))


def test_operator_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    for x in (torch.randn(3, 5), torch.randn(4, 6).t()):
        torch.library.opcheck(quantize_affine, (x, *numbers(0.1, 12), 8))


def test_dispatch_gives_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    reasons = explain("quantize_affine", torch.randn(3), *numbers(0.1, 12), 8)
    assert list(reasons) == ["triton", "reference"]
    assert "Triton" in reasons["triton"]
    assert reasons["reference"] is None


@needs_triton
@pytest.mark.triton
def test_dispatch_takes_triton_when_interpreted() -> None:
    assert explain("quantize_affine", torch.randn(3), *numbers(0.1, 12), 8)["triton"] is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bits": 9}, "bits is 9"),
        ({"x": torch.zeros(2, dtype=torch.float64)}, "x is torch.float64"),
        ({"scale": torch.ones(3)}, r"scale is torch.float32, shape \(3,\)"),
        ({"zero_point": torch.tensor(1.0)}, "zero_point is torch.float32"),
    ],
)
def test_bad_arguments_are_named(change: dict, sentence: str) -> None:
    scale, zero_point = numbers(0.1, 3)
    good = {"x": torch.zeros(2), "scale": scale, "zero_point": zero_point, "bits": 8}
    with pytest.raises(ValueError, match=sentence):
        quantize_affine(**(good | change))


@needs_triton
@pytest.mark.triton
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_for_a_gpu_that_is_not_there(capability: int, tmp_path: Path) -> None:
    kernel = "dqlab.kernels.quantize.triton_kernel:quantize_affine_kernel"
    names = (
        "x_pointer",
        "scale_pointer",
        "zero_pointer",
        "codes_pointer",
        "count",
        "TOP",
        "BLOCK",
    )
    kinds = ("*fp32", "*fp32", "*i32", "*u8", "i32", "constexpr", "constexpr")
    signature = json.dumps(dict(zip(names, kinds, strict=True)))
    script = Path(__file__).with_name("emit_ptx.py")
    command = [
        sys.executable,
        script,
        kernel,
        str(capability),
        signature,
        '{"TOP": 255, "BLOCK": 512}',
    ]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    ptx = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert f".target sm_{capability}" in ptx
    assert "div.rn.f32" in ptx
    assert "div.full.f32" not in ptx
    assert "st.global" in ptx


def test_the_readme_tells_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    found = json.loads((root / "data/results/measured/quantize-kernel.json").read_text())
    told = (root / "kernels/quantize/README.md").read_text()
    assert found["wrong_codes"] == 0 and found["device"] in told
    for row in found["rows"]:
        times = [f"{row[f'{name}_us']:,.0f}" for name in ("triton", "reference", "copy")]
        rates = [f"{row[f'{name}_tb_per_s']:.3f}" for name in ("triton", "copy")]
        assert "| " + " | ".join([f"{row['elements']:,}", *times, *rates]) + " |" in told
