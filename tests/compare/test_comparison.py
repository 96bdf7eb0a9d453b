"""One comparison: what is measured, and that page, terminal, frame and JSON say the same."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from by_hand import made, powers
from rich.console import Console
from tiny_models import SAMPLER, fill_shipped, new_pipeline, pipeline, quantized, recorded
from tiny_pipelines import animatediff, tiny

import dqlab
from dqlab import seeds
from dqlab.compare import Comparison, Ranking, measure
from dqlab.compare.comparison import Frechet
from dqlab.compare.entry import Entry
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.methods.corrected import corrected
from dqlab.methods.correction import Correction
from dqlab.methods.corrector import Corrector
from dqlab.metrics import artefacts, error_powers, mean_sqnr_db
from dqlab.models.families import Sampler, family_of
from dqlab.trajectory import record


class Remembers(Correction):
    """Its answer depends on what the run did before."""

    kind = "test-compare-remembers"
    remembers = True

    def eps(self, eps, step):
        step.state["seen"] = step.state.get("seen", 0) + 1
        return eps * (1 + 0.01 * step.state["seen"])


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


def again(bits=4):
    """Quantized anew, so that a test may change it."""
    return dqlab.quantize(pipeline(), "rtn", bits, 8, sampler=SAMPLER, calibration=recorded()[0])


def test_measured_on_held_out_seeds(found) -> None:
    states, reference = record(pipeline(), seeds.HELD_OUT[:3], SAMPLER)
    expected = mean_sqnr_db(error_powers(states, quantized(4, 8).unet))
    assert found.sqnr_db_mean == pytest.approx(expected)
    assert (found.reference == reference).all()
    assert found.images.shape == reference.shape
    assert sorted(found.powers["seed"].unique()) == [3000, 3001, 3002]
    assert found.artefacts.equals(artefacts(found.reference, found.images))


def test_baseline_is_plain_rounding_at_the_same_bits(found) -> None:
    plain = dqlab.quantize(pipeline(), "rtn", 4, 8, sampler=SAMPLER)
    alone = dqlab.compare(pipeline(), plain, num_seeds=3)
    assert found.rtn_sqnr_db_mean == pytest.approx(alone.sqnr_db_mean, abs=1e-6)
    assert found.baseline.paired.median == pytest.approx(alone.paired.median)
    assert alone.rtn_sqnr_db_mean is None
    assert alone.gain() is None


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
    steps = zip(numbers["sqnr_db_per_step"], numbers["sqnr_db_per_step_interval"], strict=True)
    assert [low <= value <= high for value, (low, high) in steps] == [True] * 3
    low, high = numbers["sqnr_db_interval"]
    assert low <= numbers["sqnr_db_mean"] <= high
    assert numbers["megabytes_computed"] < numbers["megabytes_full"]
    assert numbers["bit_ops_computed"] < numbers["bit_ops_full"]
    assert numbers["flips"].keys() == {"garment", "colour", "background"}
    assert numbers["colour_shift_signed"].keys() == {"red", "green", "blue"}
    assert numbers["prompt_fidelity"] is None
    assert numbers["frechet_own_features"] is None


def test_every_measurement_has_an_interval_or_is_exact(found) -> None:
    exact = [e.measure for e in found.entries() if e.interval == "exact"]
    assert exact == ["size", "bit-operations"]
    for e in found.entries():
        assert e.low is None or e.low <= e.value <= e.high


def test_the_four_artefacts_are_measured() -> None:
    """Every value 0.1 brighter: a colour shift of 0.1, edges and details as they were."""
    rows = {e.measure: e for e in made(error=0.1).entries()}
    shift = rows["colour shift, largest channel"]
    assert (shift.low, shift.value, shift.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-6)
    assert rows["over-exposure, variance ratio"].value == pytest.approx(1, abs=1e-4)
    assert rows["structure change, 1 - edge overlap"].value == pytest.approx(0, abs=0.01)
    assert rows["detail blurring, Laplacian ratio"].value > 0
    for artefact in ("colour shift", "over-exposure", "structure change", "detail blurring"):
        assert any(name.startswith(artefact) for name in rows)


def test_gain_is_paired_with_the_baseline() -> None:
    """Half the noise on every trajectory is 3.01 dB, however much trajectories differ."""
    wide, halved = powers(10.0, 0.8), powers(10.0, 0.8)
    halved["noise"] /= 2
    gain = made(powers=halved, baseline=made(powers=wide)).gain()
    exactly = 10 * math.log10(2)
    assert (gain.low, gain.value, gain.high) == pytest.approx((exactly,) * 3)
    low, high = made(powers=wide).to_dict()["sqnr_db_interval"]
    assert high - low > 0.5


def test_all_displays_say_the_same(found) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found)
    shown, page, text = console.export_text(), found._repr_html_(), str(found)
    assert repr(found) == text
    assert "rtn, W4 A8" in text
    for e in found.entries():
        for told in (text, shown, page):
            assert e.measure in told
            assert e.text in told
    assert list(found.to_frame()["measure"]) == [e.measure for e in found.entries()]
    for told in ("computed from codes and scales", "MACs x bits of one operand"):
        assert told in text
        assert told in page


def test_page_reads_without_a_kernel_and_aloud(found) -> None:
    page = found._repr_html_()
    pictures = re.findall("<img[^>]*>", page)
    assert len(pictures) == 2
    assert all(re.search('alt="[^"]{30,}"', p) and "data:image/png" in p for p in pictures)
    assert "<script" not in page
    assert 'scope="col"' in page
    assert 'scope="row"' in page
    styles = " ".join(re.findall('style="([^"]*)"', page))
    assert "color" not in styles  # both themes bring their own
    assert "background" not in styles


def test_an_unquantized_twin_compares_as_exact() -> None:
    found = dqlab.compare(pipeline(), quantized(None, None), num_seeds=2)
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["sqnr_db_mean"] is None or numbers["sqnr_db_mean"] > 80
    assert "W full A full" in str(found)
    assert found.paired.median < 1e-8


def test_infinite_sqnr_leaves_the_curve_out() -> None:
    exact = made(powers=powers(10.0).assign(noise=0.0), error=0.0)
    json.dumps(exact.to_dict(), allow_nan=False)
    assert exact._repr_html_().count("<img") == 1
    assert "inf dB" in str(exact)
    assert "SQNR per step" not in str(exact)


def test_a_loaded_model_compares_like_the_one_saved(tmp_path, found) -> None:
    quantized(4, 8).save_pretrained(tmp_path / "q")
    pipeline().save_pretrained(tmp_path / "full")
    loaded = dqlab.compare(dqlab.load(tmp_path / "full"), dqlab.load(tmp_path / "q"), num_seeds=3)
    assert loaded.sqnr_db_mean == pytest.approx(found.sqnr_db_mean, abs=1e-6)
    mixed = dqlab.compare(pipeline(), dqlab.load(tmp_path / "q"), num_seeds=3)
    assert mixed.sqnr_db_mean == pytest.approx(found.sqnr_db_mean, abs=1e-6)


def test_comparing_leaves_both_pipelines_alone(found) -> None:
    from dqlab.methods.record import fingerprint

    q = quantized(4, 8)
    assert fingerprint(q.unet, dqlab.describe(q)) == dqlab.describe(q)["fingerprint"]
    for pipe in (pipeline(), q):
        assert not any(m._forward_hooks for m in pipe.unet.modules())


def test_a_correction_that_remembers_has_pictures_and_a_reason() -> None:
    q, sampler = again(), Sampler.of(SAMPLER)
    family = family_of(q)
    schedule = family.schedule(q, sampler)
    corrected(q, Corrector(Remembers({}), family, sampler, schedule, seed=0))
    found = dqlab.compare(pipeline(), q, num_seeds=3, baseline=True)
    assert found.powers is None
    assert found.sqnr_db_mean is None
    assert found.entries()[0].text == "none"
    for told in (str(found), found._repr_html_(), found.to_dict()["sqnr_absent"]):
        assert "test-compare-remembers depends on what a run did before" in told
    assert found.paired.median > 0
    gain = found.gain()
    assert gain.measure == "image MSE over that of plain rounding"
    assert gain.value == pytest.approx(found.paired.median / found.baseline.paired.median)
    json.dumps(found.to_dict(), allow_nan=False)
    both = dqlab.compare(pipeline(), q, again(), num_seeds=2)
    assert both.by_images


def test_several_pipelines_are_ranked(found) -> None:
    both = dqlab.compare(pipeline(), quantized(4, 8), quantized(8, 8), num_seeds=3)
    assert isinstance(both, Ranking)
    assert [c.label for c in both.comparisons] == ["rtn, W8 A8", "rtn, W4 A8"]
    assert both.comparisons[1].sqnr_db_mean == pytest.approx(found.sqnr_db_mean)
    assert isinstance(found, Comparison)


def test_pipelines_made_for_different_samplers_need_one_named() -> None:
    other = dqlab.quantize(
        pipeline(), "rtn", 8, 8, sampler={"num_inference_steps": 2}, calibration=recorded()[0]
    )
    with pytest.raises(InvalidInputError, match=r"different samplers.*steps=2"):
        dqlab.compare(pipeline(), quantized(8, 8), other, num_seeds=2)
    both = dqlab.compare(pipeline(), quantized(8, 8), other, num_seeds=2, sampler=SAMPLER)
    assert {c.sampler.num_inference_steps for c in both.comparisons} == {3}


def test_prompts_are_compared_where_there_are_any() -> None:
    images = torch.rand(2, 3, 32, 32)
    held = SimpleNamespace(
        pipe=None, seeds=[3000, 3001], reference=images,
        family=SimpleNamespace(conditions=lambda pipe, seeds: {"prompt": ["a"]}),
    )  # fmt: skip
    shares = measure.HeldOut._fidelity(held, images)
    assert shares["full"] == shares["quantized"]
    assert shares["full"].keys() == {"garment", "colour", "background", "all"}
    held.family.conditions = lambda pipe, seeds: {"batch_size": 1}
    assert measure.HeldOut._fidelity(held, images) is None
    agreement = {"garment": 0.5, "all": 0.25}
    told = made(fidelity={"full": agreement, "quantized": agreement}).entries()
    rows = {e.measure: e for e in told}
    assert rows["prompt shown: garment"].text == "50 %"
    assert rows["prompt shown: garment"].note == "full precision: 50 %"
    assert rows["prompt shown: all"].low < 0.25 < rows["prompt shown: all"].high


def test_frechet_is_named_as_ours_and_has_error_bars() -> None:
    found = made(frechet=Frechet(3.0, 0.2, 2.0, 0.1, 1.0, 512))
    rows = {e.measure: e for e in found.entries()}
    ours = rows["Frechet distance"]
    assert (ours.low, ours.value, ours.high) == pytest.approx((2.6, 3.0, 3.4))
    assert "not FID" in ours.note
    assert rows["Frechet distance, full precision"].value == 2.0
    assert found.to_dict()["frechet_own_features"]["samples"] == 512


def test_frechet_samples_both_pipelines(monkeypatch) -> None:
    from dqlab.metrics import quality
    from dqlab.models import tint

    train = torch.randn(400, 64)
    monkeypatch.setattr(quality, "reference_features", lambda classifier: train)
    real = torch.rand(300, 3, 8, 8) * 2 - 1, None
    monkeypatch.setattr(tint, "held_out_pictures", lambda: real)
    monkeypatch.setattr(measure, "SMALLEST_FRECHET", 280)
    found = dqlab.compare(pipeline(), quantized(4, 8), num_seeds=2, frechet=280).frechet
    assert found.samples == 280
    assert found.distance > 0
    assert found.error > 0
    assert found.full != found.distance


@pytest.mark.parametrize("count", [1, 511, 4001, "many", 600.0])
def test_too_few_pictures_for_frechet_are_refused(count) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(f"frechet={count!r}")):
        dqlab.compare(pipeline(), quantized(4, 8), num_seeds=2, frechet=count)


def test_what_cannot_be_compared_is_refused() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    q = quantized(4, 8)
    with pytest.raises(InvalidInputError, match="second pipeline is not quantized"):
        dqlab.compare(pipeline(), pipeline())
    with pytest.raises(InvalidInputError, match="third pipeline is not quantized"):
        dqlab.compare(pipeline(), q, pipeline())
    with pytest.raises(InvalidInputError, match="first pipeline is quantized"):
        dqlab.compare(q, q)
    with pytest.raises(InvalidInputError, match="DDPMPipeline with a DDIMPipeline"):
        dqlab.compare(DDPMPipeline(pipeline().unet, DDPMScheduler()), q)
    with pytest.raises(InvalidInputError, match="different architecture"):
        dqlab.compare(new_pipeline(block_out_channels=(8, 24)), q)
    with pytest.raises(InvalidInputError, match="not quantized"):
        dqlab.compare(pipeline(), None)
    with pytest.raises(InvalidInputError, match="nothing to compare"):
        dqlab.compare(pipeline())


@pytest.mark.parametrize("count", [0, 1, -3, 257, 2.5])
def test_too_few_or_too_many_seeds_are_refused(count) -> None:
    with pytest.raises(InvalidInputError, match=rf"num_seeds={count}; choose 2 to 256"):
        dqlab.compare(pipeline(), quantized(4, 8), num_seeds=count)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34, "dB", "12.3 dB"), (0.256, "share", "26 %"), (1.234, "MB", "1.23 MB"),
        (0.012345, "", "0.0123"), (1.5, "x", "1.5 x"), (2.5e9, "bit-ops", "2.5e+09"),
        (math.inf, "dB", "inf dB"), (None, "dB", "none"),
    ],
)  # fmt: skip
def test_numbers_are_written_by_unit(value, unit, text) -> None:
    assert Entry("", value, unit=unit).text == text
    assert Entry("", None).interval == ""


def test_worst_step_is_named() -> None:
    frame = powers(20.0)
    frame.loc[frame["step"] == 2, "noise"] *= 10
    worst = next(e for e in made(powers=frame).entries() if e.measure == "worst step")
    assert worst.value == pytest.approx(10)
    assert worst.note == "step 2, t = 500"


def test_videos_are_compared_frame_by_frame() -> None:
    pipe = tiny(animatediff)
    found = dqlab.compare(
        pipe, dqlab.quantize(pipe, "rtn", 8, 8, sampler={"num_inference_steps": 2}), num_seeds=2
    )
    assert found.images.ndim == 5
    assert len(found.artefacts) == 2
    assert "<img" in found._repr_html_()
    with pytest.raises(NotApplicableError, match="frechet"):
        dqlab.compare(
            pipe,
            dqlab.quantize(pipe, "rtn", 8, 8, sampler={"num_inference_steps": 2}),
            frechet=True,
        )
