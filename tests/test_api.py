import subprocess
import sys

import pytest
from tiny_models import fill_shipped, pipeline, quantized, recorded

import dqlab
from dqlab import seeds
from dqlab.errors import InvalidInputError, NotApplicableError


@pytest.fixture(scope="module", autouse=True)
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    fill_shipped(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQLAB_SHIPPED_DIR", str(folder))
        yield folder


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


def test_seeds_of_different_purpose_are_disjoint() -> None:
    named = (seeds.CALIBRATION, seeds.SEARCH, seeds.HELD_OUT, seeds.GALLERY, seeds.QUALITY)
    everything = [seed for chosen in named for seed in chosen]
    assert len(everything) == len(set(everything))


def test_a_quantized_pipeline_is_not_quantized_again() -> None:
    with pytest.raises(InvalidInputError, match="quantized already"):
        dqlab.quantize(quantized(4, 8), "rtn", 4, 8)
    with pytest.raises(NotApplicableError, match="how to drive a UNet2DModel"):
        dqlab.quantize(pipeline().unet, "rtn", 4, 8)


def test_description_of_what_is_not_quantized_is_empty() -> None:
    assert dqlab.describe(pipeline()) == {}
    assert dqlab.describe(None) == {}
    assert recorded()[0].hash == dqlab.describe(quantized(4, 8))["calibration"]["hash"]
