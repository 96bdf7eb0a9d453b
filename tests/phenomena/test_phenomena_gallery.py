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
