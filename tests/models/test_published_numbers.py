"""Published models at full width and one block of each kind, with random numbers.

Quantized, saved and loaded as networks without a pipeline. Takes minutes and up to 20 GB, so it
runs only when asked for: DQLAB_PUBLISHED=1 pytest tests/models/test_published_numbers.py
"""

import os

import pytest
import torch
from published_models import PUBLISHED
from tiny_models import seeded

import dqlab
from dqlab.layers import quantizers
from dqlab.trajectory import record

if not os.environ.get("DQLAB_PUBLISHED"):
    pytest.skip("takes minutes and 20 GB; set DQLAB_PUBLISHED=1", allow_module_level=True)

SAMPLER = {"num_inference_steps": 2}
SHALLOW = {"layers_per_block": 1, "num_layers": 1, "num_single_layers": 1}
SMALLER = {"sample": 16, "hidden_states": 16}
"""Side of the pictures: widths, not sizes, are what is published here."""


def shallow(published):
    import diffusers

    cut = {k: v for k, v in SHALLOW.items() if k in published.config}
    if "transformer_layers_per_block" in published.config:
        cut["transformer_layers_per_block"] = 1
    kind = getattr(diffusers, published.network)
    return seeded(lambda: kind(**published.config | cut)).eval()


def inputs(published, generator):
    """Random arguments of one call; pictures are cut to 16 on a side."""

    def shape(name, given):
        spatial = name in SMALLER and len(given) > 3
        return (*given[:-2], 16, 16) if spatial else given

    found = {
        name: torch.randn(shape(name, given), generator=generator)
        for name, given in published.inputs.items()
    }
    if "class_labels" in found:
        found["class_labels"] = torch.tensor([3, 1000])
    if "encoder_attention_mask" in found:
        found["encoder_attention_mask"] = torch.ones_like(found["encoder_attention_mask"])
    added = {k: torch.randn(v, generator=generator) for k, v in published.more.items()}
    if added or published.network.startswith("PixArt"):
        found["added_cond_kwargs"] = added or {"resolution": None, "aspect_ratio": None}
    return found


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: p.hub_id)
def test_quantized_saved_and_loaded_at_full_width(published, tmp_path) -> None:
    name = next(iter(published.inputs))
    given = inputs(published, torch.Generator().manual_seed(0))

    def sample(denoiser, seeds, sampler):
        """The same pictures whatever the seeds: what counts here is the network."""
        rows = len(given[name])
        for k in range(sampler.num_inference_steps):
            asked = given | {"timestep": torch.full((rows,), 999.0 - 500 * k)}
            answer = denoiser(**asked, return_dict=False)[0]
        return answer.reshape(rows, 1, -1, answer.shape[-1])[: len(seeds)].sigmoid()

    model = dqlab.wrap_module(shallow(published), sample)
    rows = list(range(len(given[name])))
    states, _ = record(model, rows, SAMPLER)
    q = dqlab.quantize(model, "rtn", 4, 8, sampler=SAMPLER, calibration=states)
    assert dqlab.describe(q)["uncovered"] == []
    assert all(s.scale is not None for s in quantizers(q.denoiser).values())
    answer = states[:1].call(q.denoiser)
    q.save_pretrained(tmp_path)
    again = dqlab.load(tmp_path, into=model)
    assert torch.equal(states[:1].call(again.denoiser), answer)
