import pytest
import torch

from dqlab.reference import softmax_bias_correction as sbc


def rows(keys: int, deviation: float, count: int = 512):
    generator = torch.Generator().manual_seed(0)
    logits = deviation * torch.randn(count, keys, generator=generator, dtype=torch.float64)
    return logits.softmax(-1)


def unit(P, bits: int):
    return sbc.quantize(P, 1 / (2**bits - 1), bits)


def test_two_ways_to_the_bias_agree() -> None:
    P = rows(256, 1.0)
    Pq = unit(P, 6)
    assert abs(sbc.bias(P, Pq) - sbc.bias_of_row_sums(Pq)) < 1e-12
    assert abs(sbc.corrected(Pq, sbc.lost_mass(Pq)).sum(-1).mean() - 1) < 1e-6


@pytest.mark.parametrize(
    ("keys", "bits", "deviation", "zero", "total"),
    [
        (64, 8, 0.5, 0.00, 1.00),
        (64, 8, 2.0, 0.45, 0.99),
        (256, 8, 0.5, 0.13, 1.04),
        (1024, 8, 1.0, 0.88, 0.52),
        (4096, 8, 2.0, 0.98, 0.54),
        (256, 4, 1.0, 1.00, 0.07),
        (64, 4, 0.5, 0.97, 0.15),
        (64, 4, 1.0, 0.90, 0.49),
    ],
)
def test_mass_is_lost_as_keys_per_level_grow(keys, bits, deviation, zero, total) -> None:
    Pq = unit(rows(keys, deviation), bits)
    assert abs((Pq == 0).double().mean() - zero) < 0.02
    assert abs(Pq.sum(-1).mean() - total) < 0.02


def test_uniform_attention_is_lost_whole_and_given_back_whole() -> None:
    P = torch.full((4, 4096), 1 / 4096, dtype=torch.float64)
    V = torch.randn(4096, 3, dtype=torch.float64)
    Pq = unit(P, 8)
    assert (Pq == 0).all()
    beta = sbc.bias_of_row_sums(Pq)
    assert beta == 1 / 4096
    torch.testing.assert_close(sbc.corrected_attention(Pq, V, beta), V.mean(0).expand(4, 3))


def test_peaks_need_nothing_and_halves_are_too_much() -> None:
    assert sbc.bias_of_row_sums(unit(torch.eye(8), 8)) == 0
    halves = unit(torch.full((1, 2), 0.5, dtype=torch.float64), 8)
    assert abs(sbc.bias_of_row_sums(halves) + (256 / 255 - 1) / 2) < 1e-9


def test_the_constant_can_be_absorbed() -> None:
    """Added to P, taken through V, or as an offset of the integer product: all the same."""
    generator = torch.Generator().manual_seed(1)
    P, s, bits = rows(64, 1.0, 16), 1 / 15, 4
    codes = torch.randint(0, 256, (64, 5), generator=generator).double()
    V = 0.02 * (codes - 120)
    Pq = sbc.quantize(P, s, bits)
    beta = sbc.bias(P, Pq)
    expected = (Pq + beta) @ V
    torch.testing.assert_close(sbc.corrected_attention(Pq, V, beta), expected)
    whole = sbc.integer_attention(Pq / s, codes, s, 0.02, 120, sbc.zero_point(beta, s))
    torch.testing.assert_close(whole, expected)


def test_a_row_correction_keeps_a_constant_value() -> None:
    P, v = rows(64, 0.5), torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    Pq = unit(P, 4)
    delta = 1 - Pq.sum(-1, keepdim=True)
    found = sbc.corrected(Pq, delta) @ v.expand(64, 2)
    torch.testing.assert_close(found, v.expand(len(P), 2))


def test_masked_keys_stay_zero() -> None:
    P = torch.zeros(1, 77)
    P[0, :3] = torch.tensor([0.5, 0.3, 0.2])
    Pq = unit(P, 4)
    found = sbc.corrected(Pq, 1 - Pq.sum(-1, keepdim=True), P > 0)
    assert (found[0, 3:] == 0).all() and abs(found.sum() - 1) < 1e-6


def test_sixteen_bits_need_nothing() -> None:
    assert sbc.bias_of_row_sums(unit(rows(256, 1.0), 16)).abs() < 1e-5
