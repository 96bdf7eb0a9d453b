"""Published models at full width and depth: every operand of every one is found and passed.

Without numbers (meta device): what is tested is the architecture. Numbers are tested on the small
versions of the same classes in test_families.py.
"""

import pytest
from published_models import PUBLISHED

from dqlab.layers import StepContext, explore, quantizers
from dqlab.layers.wrap import LAYERS, wrap_attention, wrap_layer
from dqlab.models.families import FAMILIES


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: p.hub_id)
def test_every_operand_of_a_published_model_is_found_and_passed(published) -> None:
    network = published.build()
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions == pytest.approx(published.parameters, rel=1e-3)
    anatomy = explore(network, lambda: published.call(network))
    modules = dict(network.named_modules())
    assert anatomy.uncovered == []
    assert set(anatomy.layers) == {n for n, m in modules.items() if isinstance(m, LAYERS)}
    assert set(anatomy.attentions) == {n for n, m in modules.items() if hasattr(m, "to_q")}
    (first, last), *others = {
        (f.first, f.last) for f in FAMILIES if published.pipeline in f.pipelines
    }
    assert not others
    assert {first, last} <= set(anatomy.layers)

    for path in anatomy.layers:
        wrap_layer(modules[path], path, StepContext())
    for path in anatomy.attentions:
        wrap_attention(modules[path], path, StepContext())
    seen: set[str] = set()
    sites = quantizers(network)
    for site, quantizer in sites.items():
        quantizer.taps.append(lambda x, site=site: seen.add(site))
    published.call(network)
    assert seen == set(sites)
    assert len(sites) == 2 * len(anatomy.layers) + 4 * len(anatomy.attentions)
