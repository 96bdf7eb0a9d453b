"""How activations change over the sampling steps, and what one step size for all steps costs.

The decider of a site is its drift, R = max over steps / min over steps of its largest absolute
value. An error power and an SQNR are sums over steps and values, so steps where a tensor is large
weigh more, as they do in the error of a product.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range
from dqlab.layers import quantizers
from dqlab.methods import quantize, recipe
from dqlab.methods.step_networks import best_steps, encoding_width, fit_networks
from dqlab.metrics import to_db
from dqlab.models.families import family_of
from dqlab.phenomena.drift import activation_sites, branch_of, short_name, watchable
from dqlab.reference import tdq as paper
from dqlab.trajectory import States, replay, tapped

SCHEMES = ("min-max", "static", "table", "network")
"""One step from the extremes; the best one; every step's own best; the step networks'."""
TIME_LAYERS = ("time_embedding", "time_emb_proj", "conv_in", "conv_out")
"""What the paper leaves in full precision: the ends, and layers that see the time alone."""
GAUSSIAN_STEPS = 20


@dataclass(frozen=True)
class Timed:
    """What passed some sites at every step.

    Attributes:
        sites: their names; `grids`: TDQ's grid of each.
        t: timesteps `[T]`.
        values: random values `[sites, T, samples, m]`.
        low, high: extremes of every sample `[sites, T, samples]`.
        d: width of the network's own timestep encoding.

    """

    sites: tuple[str, ...]
    grids: tuple[Format, ...]
    t: Tensor
    values: Tensor
    low: Tensor
    high: Tensor
    d: int = 128

    def of(self, sites: Iterable[str]) -> "Timed":
        """Some of the sites, in the order given.

        Raises:
            InvalidInputError: if one was not watched.

        """
        wanted = list(sites)
        if missing := [s for s in wanted if s not in self.sites]:
            raise InvalidInputError(f"{missing[0]} was not watched; {', '.join(self.sites)} were.")
        rows = [self.sites.index(s) for s in wanted]
        parts = {n: getattr(self, n)[rows] for n in ("values", "low", "high")}
        return replace(
            self, sites=tuple(wanted), grids=tuple(self.grids[i] for i in rows), **parts
        )

    def at(self, steps: Sequence[int]) -> "Timed":
        """Some of the steps."""
        rows = list(steps)
        parts = {n: getattr(self, n)[:, rows] for n in ("values", "low", "high")}
        return replace(self, t=self.t[rows], **parts)

    @property
    def reach(self) -> Tensor:
        """Largest absolute value `[sites, T, samples]`."""
        return torch.maximum(-self.low, self.high)

    @property
    def flat(self) -> Tensor:
        """Values of all samples of a step together `[sites, T, M]`."""
        return self.values.flatten(2)


def watch(
    pipe, states: States, bits: int = 4, keep: int = 256, sites: Sequence[str] | None = None
) -> Timed:
    """Watch activations while whole trajectories are replayed; nothing is quantized.

    Args:
        pipe: a full-precision pipeline.
        states: whole trajectories of one sampler.
        bits: of the grids.
        keep: values kept of every sample, at random positions.
        sites: some of those that TDQ places a grid on; default: all but `TIME_LAYERS`.

    """
    grids = grids_of(pipe, states, bits)
    chosen = [s for s in grids if not is_time_layer(s)] if sites is None else list(sites)
    seen = _seen(watchable(pipe, states), states, chosen, keep)
    order = (states.step * (int(states.seed.max()) + 1) + states.seed).argsort(stable=True)
    steps = int(states.step.max()) + 1
    ordered = [torch.stack(p)[:, order].unflatten(1, (steps, -1)) for p in zip(*seen, strict=True)]
    values, low, high = ordered
    times = torch.stack([states.t[states.step == k][0] for k in range(steps)]).double()
    kinds, d = tuple(grids[s] for s in chosen), encoding_width(family_of(pipe).denoiser(pipe))
    return Timed(tuple(chosen), kinds, times, values, low, high, d)


def grids_of(pipe, states: States, bits: int) -> dict[str, Format]:
    """The grid TDQ places at each of its sites, in execution order."""
    sampler = {"num_inference_steps": int(states.step.max()) + 1}
    made = quantize(pipe, recipe("tdq", steps="min-max"), 8, bits, calibration=states[:1],
                    sampler=sampler)  # fmt: skip
    found = quantizers(family_of(made).denoiser(made))
    named = {s: found[s].format for s in activation_sites(made) if s in found}
    return {s: f for s, f in named.items() if f is not None and f.kind == "tdq"}


def is_time_layer(site: str) -> bool:
    """Whether the paper leaves this site in full precision."""
    return any(part in TIME_LAYERS for part in site.split("."))


def _seen(watched, states: States, sites: list[str], keep: int) -> list:
    """Per site: kept values `[rows, m]`, lowest and highest `[rows]`."""
    model = family_of(watched).denoiser(watched)
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {site: [] for site in sites}
    generator = torch.Generator().manual_seed(0)

    def see(site: str, x: Tensor) -> None:
        rows = x.detach().float().flatten(1)
        picks = torch.randint(rows.shape[1], (keep,), generator=generator)
        parts[site].append((rows[:, picks], rows.amin(1), rows.amax(1)))

    with tapped(model, sites, see):
        replay(model, states)
    return [tuple(torch.cat(p) for p in zip(*parts[site], strict=True)) for site in sites]


def time_table(seen: Timed) -> pd.DataFrame:
    """How each site's range moves.

    Returns:
        Columns site, layer (for people), branch, R, r (Pearson's correlation of t with the mean
        over samples of the largest absolute value), between and within (variance of the largest
        absolute value between steps, and within one on average).

    """
    rows = []
    for site, reach in zip(seen.sites, seen.reach, strict=True):
        top, mean = reach.amax(1), reach.mean(1)
        r, _ = paper.time_correlation(seen.t, mean)
        within = float(reach.var(1, correction=0).mean())
        rows.append((
            site, name_of(site), branch_of(site), float(top.max() / top.min().clamp(min=1e-12)),
            r, float(mean.var(correction=0)), within,
        ))  # fmt: skip
    names = ["site", "layer", "branch", "R", "r", "between", "within"]
    return pd.DataFrame(rows, columns=names)


def name_of(site: str) -> str:
    """A site for people: its layer, and the operand where it is no input."""
    layer, operand = site.rsplit(".", 1)
    name = short_name(layer).replace("transformer_blocks", "block")
    return name + ("" if operand == "input" else f", operand {operand.upper()}")


def step_sizes(seen: Timed, scheme: str, updates: tuple[int, int] = (200, 300), **shape) -> Tensor:
    """Step sizes `[sites, T]` by one of `SCHEMES`, from the values and extremes in `seen`.

    `updates` and `shape` are the networks' (`dqlab.methods.step_networks.fit_networks`).

    Raises:
        InvalidInputError: for another scheme.

    """
    if scheme not in SCHEMES:
        raise InvalidInputError(f"scheme={scheme!r}; choose one of {', '.join(SCHEMES)}.")
    if scheme == "table":
        return best_steps(seen.flat, seen.grids)
    if scheme == "network":
        found = fit_networks(seen.flat, seen.grids, seen.t, seen.d, updates, **shape)
        return found(seen.t).detach().float()
    if scheme == "static":
        one = best_steps(seen.values.flatten(1)[:, None], seen.grids)
    else:
        ends = zip(seen.grids, seen.low.flatten(1), seen.high.flatten(1), strict=True)
        one = torch.stack([g.params(low.min(), high.max()).scale for g, low, high in ends])[
            :, None
        ]
    return one.expand(-1, len(seen.t)).clone()


def rounded(seen: Timed, s: Tensor) -> Tensor:
    """The values as their grids leave them; `s` `[sites, T]`, or `[sites, T, samples]`."""
    s = s.reshape(*s.shape, *[1] * (4 - s.ndim))
    parts = zip(seen.values, seen.grids, s, strict=True)
    return torch.stack([g.fake_quant(x, Range(k, torch.zeros_like(k))) for x, g, k in parts])


def errors(seen: Timed, s: Tensor) -> Tensor:
    """Mean squared error `[sites, T]`."""
    return (rounded(seen, s) - seen.values).double().square().flatten(2).mean(2)


def site_db(seen: Timed, s: Tensor) -> Tensor:
    """SQNR of every site in dB, powers summed over steps."""
    power = seen.values.double().square().flatten(2).mean(2)
    return torch.as_tensor(to_db(power.sum(1), errors(seen, s).sum(1)))


def run_time_steps(seen: Timed) -> Tensor:
    """The step sizes a range measured at run time would have, `[sites, T, samples]`."""
    ends = zip(seen.grids, seen.low, seen.high, strict=True)
    return torch.stack([g.params(low, high).scale for g, low, high in ends])


def gain_table(
    fitted: Timed, judged: Timed, updates: tuple[int, int] = (200, 300)
) -> pd.DataFrame:
    """Step sizes set on some trajectories and judged on others.

    Returns:
        `time_table`'s columns of `fitted`, and an SQNR in dB for each of `SCHEMES` and for
        "run time".

    """
    table = time_table(fitted)
    for scheme in SCHEMES:
        table[scheme] = site_db(judged, step_sizes(fitted, scheme, updates)).tolist()
    table["run time"] = site_db(judged, run_time_steps(judged)).tolist()
    return table


def clip_and_round(seen: Timed, s: Tensor) -> pd.DataFrame:
    """One site's error at each step, in two parts that add up.

    Returns:
        Columns step, timestep, clipping (of values beyond the grid's ends), rounding, clipped
        (share of such values); powers relative to the step's own.

    """
    x, x_hat = seen.values[0].flatten(1), rounded(seen, s)[0].flatten(1)
    power = x.square().mean(1)
    grid = seen.grids[0]
    levels = levels_of(grid, s[0])
    outside = (x < levels[:, :1]) | (x > levels[:, -1:])
    square = (x_hat - x).square()
    parts = [(square * part).mean(1) / power for part in (outside, ~outside)]
    return pd.DataFrame({
        "step": range(len(seen.t)), "timestep": seen.t.int().tolist(),
        "clipping": parts[0].tolist(), "rounding": parts[1].tolist(),
        "clipped": outside.float().mean(1).tolist(),
    })  # fmt: skip


def levels_of(grid: Format, s: Tensor) -> Tensor:
    """The grid's levels, ascending in a last dimension, at step sizes of any shape."""
    return grid.levels(Range(s, torch.zeros_like(s)))


def gaussian(ratio: float, count: int = 4096, steps: int = GAUSSIAN_STEPS, bits: int = 4) -> Timed:
    """A made-up site: Gaussian, its deviation geometric from 1 to `ratio` over the steps."""
    from dqlab.methods.unet_dynamic.tdq import Grid

    generator = torch.Generator().manual_seed(0)
    sigma = torch.logspace(0, 1, steps, ratio)
    x = torch.randn(1, steps, 1, count, generator=generator) * sigma[:, None, None]
    t = torch.linspace(999, 49, steps).round()
    return Timed(("made up",), (Grid(bits),), t, x, x.amin(3), x.amax(3))


def gaussian_gains(ratios: Sequence[float], bits: int = 4) -> pd.DataFrame:
    """What a table gains on a made-up site, in dB.

    Returns:
        Columns ratio, gain (on the best static step), on_min_max.

    """
    rows = []
    for ratio in ratios:
        seen = gaussian(ratio, bits=bits)
        db = {k: float(site_db(seen, step_sizes(seen, k))[0]) for k in SCHEMES[:3]}
        rows.append((ratio, db["table"] - db["static"], db["table"] - db["min-max"]))
    return pd.DataFrame(rows, columns=["ratio", "gain", "on_min_max"])


ABLATIONS: dict[str, dict] = {
    "4 layers": {},
    "2 layers": {"hidden": (64,)},
    "1 layer": {"hidden": ()},
    "raw t": {"raw": True},
}


def ablations(seen: Timed, updates: int = 500) -> pd.DataFrame:
    """How well networks of other shapes follow the best steps; fitted to log s alone.

    Returns:
        Columns shape, error (root mean square of log s on all steps), seen_db and held_out_db
        (mean loss in dB against every step's own best, fitted on even steps: there, and on the
        odd ones in between).

    """
    even, odd = range(0, len(seen.t), 2), range(1, len(seen.t) - 1, 2)
    best, rows = step_sizes(seen, "table"), []
    for name, shape in ABLATIONS.items():
        whole = step_sizes(seen, "network", (updates, 0), **shape)
        part = seen.at(even)
        nets = fit_networks(part.flat, part.grids, part.t, part.d, (updates, 0), **shape)
        losses = []
        for steps in (even, odd):
            there = seen.at(steps)
            mine = nets(there.t).detach().float()
            lost = site_db(there, best[:, list(steps)]) - site_db(there, mine)
            losses.append(float(lost.mean()))
        error = float((whole.log() - best.log()).square().mean().sqrt())
        rows.append((name, error, *losses))
    return pd.DataFrame(rows, columns=["shape", "error", "seen_db", "held_out_db"])


def cost_table(pipe, states: States) -> pd.DataFrame:
    """What finding activation ranges at run time adds to one call of the network, counted.

    Args:
        pipe: a full-precision pipeline.
        states: the work is counted on the first row.

    Returns:
        Columns site, layer, values (numbers in the tensor: each is read once more to find the
        extremes, and the product has to wait for the last), operations (multiply-accumulates of
        the layer; 0 for attention's operands), rows (of a linear layer's input, each of which may
        have a range of its own; 0 elsewhere).

    """
    made = quantize(pipe, "rtn", 8, 8, calibration=states[:1])
    model, seen = family_of(made).denoiser(made), {}
    macs: dict[str, int] = {}

    def count(path: str):
        def hook(layer, args, output) -> None:
            macs[path] = output[0].numel() * layer.weight[0].numel()

        return hook

    handles = [m.register_forward_hook(count(n)) for n, m in model.named_modules()
               if hasattr(m, "frozen")]  # fmt: skip
    sites = [s for s in quantizers(model) if not s.endswith(".weight")]
    with tapped(model, sites, lambda s, x: seen.__setitem__(s, x[0].shape)):
        replay(model, states[:1])
    for handle in handles:
        handle.remove()
    flat = {f"{n}.input" for n, m in model.named_modules() if n in macs and m.weight.ndim == 2}
    told = [
        (s, name_of(s), shape.numel(), macs.get(s.removesuffix(".input"), 0),
         shape[:-1].numel() if s in flat else 0)
        for s, shape in seen.items()
    ]  # fmt: skip
    return pd.DataFrame(told, columns=["site", "layer", "values", "operations", "rows"])
