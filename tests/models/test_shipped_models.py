"""What must hold for the models in data/, whatever their weights."""

import pytest
import torch

import dqlab
from dqlab import seeds
from dqlab.models.classifier import load_classifier
from dqlab.models.fashion import load_held_out
from dqlab.models.tint import dress
from dqlab.trajectory import record

SAMPLER = {"num_inference_steps": 5}


@pytest.fixture(scope="module")
def pipe():
    return dqlab.load("pixel-unet")


def test_classifier_reads_held_out_garments() -> None:
    """Ten garments, eight colours, four backgrounds: chance is 10, 12.5 and 25 %."""
    grey, labels = load_held_out()
    images, shown = dress(grey[:256], labels[:256], torch.Generator().manual_seed(seeds.TINT))
    answers, confidence = load_classifier().read(images)
    right = {h: float((getattr(answers, h) == getattr(shown, h)).float().mean())
             for h in ("garment", "colour", "background")}  # fmt: skip
    assert right["garment"] > 0.8
    assert min(right["colour"], right["background"]) > 0.95
    assert confidence.mean() > 0.8


def test_quantized_pixel_unet(pipe) -> None:
    states, _ = record(pipe, seeds.CALIBRATION[:2], SAMPLER)
    db = {}
    for bits in (4, 8):
        q = dqlab.quantize(pipe, "rtn", bits, bits, sampler=SAMPLER, calibration=states)
        found = dqlab.compare(pipe, q, num_seeds=2)
        assert dqlab.describe(q)["uncovered"] == []
        db[bits] = found.sqnr_db_mean
    assert db[8] > db[4] + 6
    assert found.cost.bytes < found.cost.full_bytes / 3
