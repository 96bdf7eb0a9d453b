import json
import math
import subprocess
import sys

import pytest
from tiny_models import SAMPLER, fill_shipped, new_pipeline, pipeline, quantized, recorded

import dqlab
from dqlab import seeds
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.metrics import error_powers, mean_sqnr_db
from dqlab.trajectory import record


@pytest.fixture(scope="module", autouse=True)
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    fill_shipped(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQLAB_SHIPPED_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def found(shipped):
    return dqlab.compare(pipeline(), quantized(4, 8), num_seeds=3, baseline=True)


def test_every_public_name_is_there() -> None:
    for name in dqlab.__all__:
        assert getattr(dqlab, name) is not None
    assert set(dqlab.__all__) <= set(dir(dqlab))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = dqlab.quantise


def test_submodules_do_not_hide_functions_of_the_same_name() -> None:
    code = (
        "import dqlab, dqlab.compare; from dqlab.compare import Comparison; import dqlab.api;"
        "assert all(callable(getattr(dqlab, n)) for n in dqlab.__all__[1:] * 2); dqlab.errors"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_setup_fixes_the_threads(monkeypatch) -> None:
    import torch

    monkeypatch.delenv("DQLAB_QUIET", raising=False)
    before = torch.get_num_threads()
    try:
        dqlab.setup(threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        monkeypatch.delenv("DQLAB_QUIET", raising=False)


def test_comparison_measures_on_held_out_seeds(found) -> None:
    states, reference = record(pipeline(), seeds.HELD_OUT[:3], SAMPLER)
    expected = mean_sqnr_db(error_powers(states, quantized(4, 8).unet))
    assert found.sqnr_db_mean == pytest.approx(expected)
    assert (found.reference == reference).all()
    assert found.images.shape == reference.shape
    assert sorted(found.powers["seed"].unique()) == [3000, 3001, 3002]


def test_seeds_of_different_purpose_are_disjoint() -> None:
    named = (seeds.CALIBRATION, seeds.SEARCH, seeds.HELD_OUT, seeds.GALLERY, seeds.QUALITY)
    everything = [seed for chosen in named for seed in chosen]
    assert len(everything) == len(set(everything))


def test_baseline_is_plain_rounding_at_the_same_bits(found) -> None:
    plain = dqlab.quantize(pipeline(), "rtn", 4, 8, sampler=SAMPLER)
    again = dqlab.compare(pipeline(), plain, num_seeds=3)
    assert found.rtn_sqnr_db_mean == pytest.approx(again.sqnr_db_mean, abs=1e-6)
    assert again.rtn_sqnr_db_mean is None


@pytest.mark.parametrize("bits", ["fp4", 8])
def test_baseline_works_for_named_formats(bits) -> None:
    found = dqlab.compare(pipeline(), quantized(bits, "fp8"), num_seeds=2, baseline=True)
    assert math.isfinite(found.rtn_sqnr_db_mean)


def test_numbers_are_plain_json(found) -> None:
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["method"] == "rtn"
    assert (numbers["weights"], numbers["activations"], numbers["policy"]) == (4, 8, "common")
    assert numbers["sampler"]["num_inference_steps"] == 3
    assert numbers["num_seeds"] == 3
    assert len(numbers["sqnr_db_per_step"]) == 3
    low, high = numbers["sqnr_db_interval"]
    assert low <= numbers["sqnr_db_mean"] <= high
    assert numbers["megabytes_computed"] < numbers["megabytes_full"]
    assert numbers["bit_ops_computed"] < numbers["bit_ops_full"]
    assert numbers["flips"].keys() == {"garment", "colour", "background"}


def test_printed_comparison_says_the_same(found) -> None:
    text = str(found)
    assert "rtn, W4 A8" in text
    assert f"{found.sqnr_db_mean:.1f} dB" in text
    assert f"{found.rtn_sqnr_db_mean:.1f} dB" in text
    assert "computed" in text
    assert repr(found) == text


def test_rich_display_shows_pictures_and_numbers(found) -> None:
    show = pytest.importorskip("dqlab.show")
    if not hasattr(show, "image_grid"):
        pytest.skip("the figures are not part of this checkout")
    page = found._repr_html_()
    assert "<img" in page or "<svg" in page
    assert "noise SQNR" in page


def test_an_unquantized_twin_compares_as_exact() -> None:
    found = dqlab.compare(pipeline(), quantized(None, None), num_seeds=2)
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["sqnr_db_mean"] is None or numbers["sqnr_db_mean"] > 80
    assert str(found)
    assert found.paired.median < 1e-8


def test_a_loaded_model_compares_like_the_one_saved(tmp_path, found) -> None:
    quantized(4, 8).save_pretrained(tmp_path / "q")
    pipeline().save_pretrained(tmp_path / "full")
    again = dqlab.compare(dqlab.load(tmp_path / "full"), dqlab.load(tmp_path / "q"), num_seeds=3)
    assert again.sqnr_db_mean == pytest.approx(found.sqnr_db_mean, abs=1e-6)
    mixed = dqlab.compare(pipeline(), dqlab.load(tmp_path / "q"), num_seeds=3)
    assert mixed.sqnr_db_mean == pytest.approx(found.sqnr_db_mean, abs=1e-6)


def test_comparing_leaves_both_pipelines_alone(found) -> None:
    q = quantized(4, 8)
    before = dqlab.describe(q)["fingerprint"]
    from dqlab.methods.record import fingerprint

    assert fingerprint(q.unet, dqlab.describe(q)) == before
    for pipe in (pipeline(), q):
        hooks = [m._forward_hooks for m in pipe.unet.modules()]
        assert not any(hooks)


def test_what_cannot_be_compared_is_refused() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    q = quantized(4, 8)
    with pytest.raises(InvalidInputError, match="second pipeline is not quantized"):
        dqlab.compare(pipeline(), pipeline())
    with pytest.raises(InvalidInputError, match="first pipeline is quantized"):
        dqlab.compare(q, q)
    with pytest.raises(InvalidInputError, match="DDPMPipeline with a DDIMPipeline"):
        dqlab.compare(DDPMPipeline(pipeline().unet, DDPMScheduler()), q)
    with pytest.raises(InvalidInputError, match="different architecture"):
        dqlab.compare(new_pipeline(block_out_channels=(8, 24)), q)
    with pytest.raises(InvalidInputError, match="not quantized"):
        dqlab.compare(pipeline(), None)


@pytest.mark.parametrize("count", [0, 1, -3, 257, 2.5])
def test_too_few_or_too_many_seeds_are_refused(count) -> None:
    with pytest.raises(InvalidInputError, match=rf"num_seeds={count}; choose 2 to 256"):
        dqlab.compare(pipeline(), quantized(4, 8), num_seeds=count)


def test_a_quantized_pipeline_is_not_quantized_again() -> None:
    with pytest.raises(InvalidInputError, match="quantized already"):
        dqlab.quantize(quantized(4, 8), "rtn", 4, 8)
    with pytest.raises(NotApplicableError, match="how to drive a UNet2DModel"):
        dqlab.quantize(pipeline().unet, "rtn", 4, 8)


def test_description_of_what_is_not_quantized_is_empty() -> None:
    assert dqlab.describe(pipeline()) == {}
    assert dqlab.describe(None) == {}
    assert recorded()[0].hash == dqlab.describe(quantized(4, 8))["calibration"]["hash"]
