import json
import re

import pytest

from dqlab.models.loading import shipped
from dqlab.paths import models_dir
from dqlab.phenomena import gallery, stored
from dqlab.show import start_here


def test_every_shipped_model_is_in_the_gallery() -> None:
    assert sorted(gallery.members()) == shipped()
    kept = stored.load(gallery.NAME)
    assert kept.frames["models"]["model"].tolist() == gallery.members()
    for name in gallery.members():
        assert kept.tensors[name].shape == (gallery.SHOWN, 3, 32, 32)


@pytest.mark.parametrize("name", gallery.members())
def test_its_quality_is_that_of_its_card(name: str) -> None:
    """Every number in the sentence is one of quality.json, as it stands or in per cent."""
    found = json.dumps(json.loads((models_dir() / name / "quality.json").read_text()))
    measured = [float(text) for text in re.findall(r"-?\d+\.\d+", found)]
    words = gallery.quality(name)
    told = re.findall(r"(\d+\.\d+)( ?%)?", words)
    assert told
    for text, percent in told:
        digits = len(text.split(".")[1])
        known = {f"{100 * m if percent else m:.{digits}f}" for m in measured}
        assert text in known, words
    assert words in start_here.gallery_table(stored.load(gallery.NAME)).words


def test_each_number_stands_behind_its_own_name(monkeypatch) -> None:
    cards = {
        "sr-unet": {"x2": {"restored": {"psnr_db": 31.0, "feature_distance_ratio": 0.4},
                           "bicubic": {"psnr_db": 22.0}}},
        "latent-dit": {"prompt_agreement": {"all": 0.8}, "agreement_on_real_images": {"all": 0.9},
                       "frechet": {"multiple": 3.0}},
        "binary-latent": {"class_agreement": 0.7, "psnr_db": {"likelier_bits": 21.0}},
        "pixel-unet": {"confidence": {"ratio": 0.91}, "frechet": {"multiple": 5.0}},
        "video-unet": {"generated": {"frames_like_the_majority": {"all": {"mean": 0.6}}},
                       "real": {"frames_like_the_majority": {"all": {"mean": 0.95}}},
                       "frechet": {"multiple": 4.0}},
    }  # fmt: skip
    monkeypatch.setattr(gallery, "read_json", lambda path: cards[path.parent.name])
    told = {name: gallery.quality(name) for name in cards}
    assert "31.0 dB (bicubic: 22.0), features 0.40 times as far" in told["sr-unet"]
    assert "80.0% show all that was asked for (real pictures: 90.0%)" in told["latent-dit"]
    assert "70.0% show the class asked for; its bits alone keep 21.0 dB" in told["binary-latent"]
    assert "0.91 times as sure" in told["pixel-unet"] and "5.0 times" in told["pixel-unet"]
    assert "60.0% of frames" in told["video-unet"] and "(real clips: 95.0%)" in told["video-unet"]
