"""Ranges measured at run time: `recipe("rtn", dynamic=...)`."""

from functools import cache

import pytest
import torch
from tiny_diffusion import images, new_pipeline, sampler

import dqlab
from dqlab import recipe
from dqlab.errors import InvalidInputError
from dqlab.formats import Affine
from dqlab.layers import Quantizer, StepContext, quantizers


@cache
def made(over: str = "sample"):
    return dqlab.quantize(new_pipeline(), recipe("rtn", dynamic=over), 8, 4, sampler=sampler())


def measuring(over: str) -> Quantizer:
    quantizer = Quantizer("a.input", StepContext())
    quantizer.format = Affine(4)
    quantizer.measure(over)
    return quantizer


def test_every_sample_gets_the_range_of_its_own_extremes() -> None:
    x = torch.randn(3, 4, 5, 5) * torch.tensor([0.1, 1.0, 30.0]).reshape(3, 1, 1, 1)
    found = measuring("sample")(x)
    for row, made_ in zip(x, found, strict=True):
        fmt = Affine(4)
        r = fmt.params(row.min(), row.max())
        torch.testing.assert_close(made_, fmt.fake_quant(row, r))
        assert (made_ - row).abs().max() <= 0.51 * float(r.scale)


def test_tokens_have_ranges_of_their_own() -> None:
    x = torch.randn(2, 3, 8) * torch.tensor([0.01, 1.0, 50.0]).reshape(1, 3, 1)
    r = measuring("token").current(x)
    assert r.scale.shape == (2, 3, 1)
    torch.testing.assert_close(r.scale, Affine(4).params(
        x.amin(2, keepdim=True), x.amax(2, keepdim=True)).scale)  # fmt: skip
    assert measuring("sample").current(x).scale.shape == (2, 1, 1)


def test_silence_stays_silent() -> None:
    assert torch.equal(measuring("sample")(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_setting_a_range_ends_measuring_and_the_other_way_round() -> None:
    quantizer, x = measuring("sample"), torch.randn(2, 3)
    quantizer.set_range(Affine(4).params(torch.tensor(-1.0), torch.tensor(1.0)))
    assert quantizer.measured is None and quantizer.range is not None
    quantizer.measure("token")
    assert quantizer.range is None and not torch.equal(quantizer(x), x)


def test_all_activations_measure_and_weights_do_not() -> None:
    for over in ("sample", "token"):
        for site, quantizer in quantizers(made(over).unet).items():
            expected = None if site.endswith(".weight") else "sample"
            if over == "token" and site.endswith((".to_q.input", "linear_1.input")):
                assert quantizer.measured == "token"
            elif "conv" in site or site.endswith((".q", ".p", ".weight")):
                assert quantizer.measured == expected, site


def test_a_picture_does_not_depend_on_its_batch() -> None:
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([999, 500, 1])
    with torch.no_grad():
        together = made().unet(x, t).sample
        alone = torch.cat([made().unet(x[i : i + 1], t[i]).sample for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("over", ["sample", "token"])
def test_saved_and_loaded_it_is_the_same(over, tmp_path) -> None:
    made(over).save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert torch.equal(images(again), images(made(over)))
    assert dqlab.describe(again)["recipe"]["options"] == [{"dynamic": over}]


def test_it_is_a_place_of_its_own_and_clashes_as_one() -> None:
    assert recipe("rtn").to_dict()["moments"] == {}
    assert recipe("rtn", dynamic="sample").to_dict()["moments"] == {"place": "rtn"}
    with pytest.raises(InvalidInputError, match="both act at the moment 'place'"):
        _ = recipe("rtn", dynamic="sample") | recipe("tdq")


def test_wrong_words_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="dynamic='row'; choose one of sample, token"):
        recipe("rtn", dynamic="row")
    with pytest.raises(InvalidInputError, match="a range cannot be measured"):
        Quantizer("a.input", StepContext()).measure("channel")
