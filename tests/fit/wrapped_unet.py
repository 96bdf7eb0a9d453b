"""The tiny U-Net wrapped, its units, and weight ranges: what every test of fitting starts from."""

import copy
from dataclasses import dataclass
from functools import partial

from tiny_models import new_unet, recorded
from torch import nn

from dqlab.fit import Unit, units_of
from dqlab.formats import Affine
from dqlab.layers import Anatomy, StepContext, explore, quantizers
from dqlab.methods.run import wrap_sites
from dqlab.ranges import min_max
from dqlab.trajectory import States, replay, tapped


@dataclass
class Bench:
    student: nn.Module
    teacher: nn.Module
    anatomy: Anatomy
    units: list[Unit]
    states: States

    def unit(self, path: str) -> Unit:
        return next(u for u in self.units if u.path == path)


def bench(weights: int | None = 3, activations: int | None = None, rows: int = 12) -> Bench:
    """Min-max ranges; activation ranges from the states themselves."""
    states = recorded()[0][:rows]
    student = new_unet().requires_grad_(False)
    anatomy = explore(student, lambda: states[:1].call(student))
    wrap_sites(student, StepContext(), anatomy.layers, anatomy.attentions)
    teacher = copy.deepcopy(student)
    if weights:
        for path in anatomy.layers:
            layer = student.get_submodule(path)
            layer.weight_quantizer.format = Affine(weights)
            found = min_max(layer.weight, Affine(weights), axis=0)
            layer.weight_quantizer.set_range(found)
    if activations:
        sites = {s: q for s, q in quantizers(student).items() if not s.endswith(".weight")}

        def watch(site, x):
            sites[site].format = Affine(activations)
            sites[site].set_range(min_max(x, Affine(activations)))

        with tapped(student, sites, watch):
            replay(student, states)
    units = units_of(student, anatomy.order, anatomy.layers)
    return Bench(student, teacher, anatomy, units, states)


weight_bench = partial(bench, 3, None)
