"""QVD: Post-training Quantization for Video Diffusion Models.

Shilong Tian, Hong Chen, Chengtao Lv, Yu Liu, Jinyang Guo, Xianglong Liu, Shengxi Li, Hao Yang,
Tao Xie. ACM MM 2024, arXiv 2407.11585.

Claim: the temporal features of a video model, u = SiLU(h(t)), are skewed, many small values and
few large ones, so a uniform grid maps several steps onto one code, for all frames at once (HTDQ
answers that); and channels of activations differ in range and in centre, so that each covers few
of the levels of a common range (SCRI does that):

    HTDQ   the grid for u with the largest
           TDScore = 1 - sum |D_hat_tt' - D_tt'| / sum D_tt',   D_tt' = 1 - cos(u_t, u_t')
           among uniform, log2 and logtau; a log grid is never forced
    SCRI   X' = (X - delta) / sigma,  W' = W diag(sigma),  b' = b + sum_k W_k delta,
           delta_c = (max_c + min_c) / 2,  a_c = (max_c - min_c) / 2,
           sigma_c = (a_c / max a)^alpha

Reconstructed: only the paper's abstract, summaries and a public port were at hand. The port has
`log2` on the projections' inputs and frame-wise ranges; TDScore, logtau, and all of SCRI's
formulas are dqlab's completion of the stated ideas (`dqlab.reference.qvd`). alpha is searched for
each layer by the error of its output with both operands quantized, "none" among the candidates:
widening the range of 4-bit weights can cost more than it brings. And equal ranges leave no
headroom: what one range for all would still have covered is clipped once every channel fills it.
So factors from either half of the trajectories are judged on the other one, whose captions they
have not seen; judged on their own, layers that read text look best fully evened out.

Not from the port: it searches activation ranges symmetric around zero, which wastes half of the
levels behind a SiLU; here both ends shrink together, averaged over batches. It keys frame-wise
ranges on a first dimension of 16 or 32; here every site knows its number of frames. Its second
grid, `mix` (powers of two below a threshold, evenly spaced levels above), is left out. The shift
is never folded into a norm: it is an explicit operation of the layer.
"""

import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Format, Log2, LogTau
from dqlab.layers import explore
from dqlab.methods import paper_sites
from dqlab.methods.channels import ChannelRange, channel_ranges
from dqlab.methods.frame_ranges import folded_sites, set_frame_ranges
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper, set_ranges
from dqlab.methods.scri import RULE, best_alphas, halves, integrate
from dqlab.methods.step_ranges import set_time_ranges
from dqlab.methods.time_path import blocks_of, time_path, without_time_path
from dqlab.models.families import Family
from dqlab.ranges import Mean, min_max
from dqlab.reference import qvd as paper
from dqlab.trajectory import States

OCTAVES = (3, 4, 6, 8, 10, 12)
TEMPORAL = ("auto", "uniform", "per-step", "log2", "logtau")


class Qvd(Method):
    """Grids for time features by TDScore (HTDQ); channels on one range (SCRI).

    `recipe("qvd").only("place")` is HTDQ alone, `.only("reshape")` SCRI alone.

    Args:
        temporal: the grid of time features: the one with the best TDScore ("auto"), or "uniform",
            "log2", "logtau", or a uniform grid for each step ("per-step", TFMQ-DM's answer).
        alpha: of SCRI; None searches for each layer, a number is used everywhere.
        frame_wise: one range per frame where frames are folded into the batch.

    """

    slug = "qvd"
    paper = Paper(
        "QVD: Post-training Quantization for Video Diffusion Models", "ACM MM 2024", "2407.11585"
    )
    category = "1.4"
    policy = staticmethod(paper_sites.qvd)

    def __init__(
        self, temporal: str = "auto", alpha: float | None = None, frame_wise: bool = False
    ):
        if temporal not in TEMPORAL:
            raise InvalidInputError(f"temporal={temporal!r}; choose one of {', '.join(TEMPORAL)}.")
        if alpha is not None and not 0 <= alpha <= 1:
            raise InvalidInputError(f"alpha={alpha}; choose 0 to 1, or None to search.")
        self.temporal, self.alpha, self.frame_wise = temporal, alpha, frame_wise

    def unfit(self, family: Family) -> str | None:
        """It needs time projections, and frames for ranges of frames."""
        if self.frame_wise and not family.video:
            return (
                "frame_wise=True needs videos, samples [N, C, frames, H, W] whose frames are "
                "folded into the batch, and these are pictures. Leave it out."
            )
        return without_time_path(family, self.slug)

    def reshape(self, job: Job) -> None:
        """SCRI on every layer but the time projections, whose features have grids of their own."""
        layers, sets = self._layers(job), halves(job.calibration)
        seen = [channel_ranges(job.denoiser, layers, states) for states in sets]
        alphas = job.choice("reshape", lambda: self._alphas(job, layers, sets, seen))
        for path, alpha in alphas.items():
            if alpha is not None:
                whole = ChannelRange.over([one[path] for one in seen])
                integrate(job.denoiser.get_submodule(path), whole, alpha)

    def _layers(self, job: Job) -> list[str]:
        projections = {f"{block}.time_emb_proj" for block in blocks_of(job.denoiser)}
        example = job.calibration[:1]
        found = explore(job.denoiser, lambda: example.call(job.denoiser)).layers
        _check_untied(job.denoiser, found)
        return [p for p in found if p not in projections and _plain(job.denoiser, p)]

    def _alphas(
        self,
        job: Job,
        layers: list[str],
        sets: Sequence[States],
        ranges: Sequence[dict[str, ChannelRange]],
    ) -> dict[str, float | None]:
        if self.alpha is not None:
            return dict.fromkeys(layers, self.alpha)

        def formats(path: str) -> list[Format | None]:
            sites = f"{path}.input", f"{path}.weight"
            return [job.policy.format(s, job.weights, job.activations) for s in sites]

        return best_alphas(job.denoiser, layers, sets, ranges, formats)

    def formats(self, job: Job) -> dict[str, Format | None]:
        """The policy's, and the best grid for the projections' inputs."""
        found = super().formats(job)
        path = time_path(job)
        sites = [f"{projection}.input" for projection in path.projections]
        if isinstance(found[sites[0]], Affine):
            with torch.no_grad():
                u = path.inputs(job.denoiser)
            found |= dict.fromkeys(sites, self._grid(job, u, found[sites[0]].bits))
        return found

    def _grid(self, job: Job, u: Tensor, bits: int) -> Format:
        kind = "uniform" if self.temporal == "per-step" else self.temporal
        grids = [g for g in time_grids(bits) if kind in ("auto", _kind(g))]
        if not grids:
            raise InvalidInputError(
                f"temporal={self.temporal!r} has no grid of {bits} bits; take at least 3."
            )
        if kind in ("log2", "logtau") and float(paper.skewness(u)) < 1:
            warnings.warn(
                f"These time features are hardly skewed ({float(paper.skewness(u)):.2f}), so a "
                "uniform grid is likely better; temporal='auto' compares.",
                stacklevel=2,
            )
        best, scores = best_grid(u, grids)
        job.choices["time grid"] = scores | {"chosen": best.name}
        return best

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """Weights min-max; activations shrunk and averaged; time features by their largest."""
        path = time_path(job)
        timed = [s for s in (f"{p}.input" for p in path.projections) if s in set(sites)]
        rest = [site for site in sites if site not in set(timed)]
        folded: dict[str, int] = {}
        if self.frame_wise and (active := sorted(set(rest) - set(job.sites("weight")))):
            folded = folded_sites(job, active)

        def observer(site: str, fmt: Format) -> Mean:
            return Mean(RULE, fmt, name=site)

        usual = [site for site in rest if site not in folded]
        set_ranges(job, usual, partial(min_max, axis=0), observer)
        set_frame_ranges(job, folded, observer)
        set_time_ranges(job, timed, path, per_step=self.temporal == "per-step")


def time_grids(bits: int) -> list[Format]:
    """Candidates for time features, uniform first; Log2 has a sign beside its bits."""
    logs = [LogTau(bits, octaves) for octaves in OCTAVES] if bits >= 3 else []
    return [Affine(bits), Log2(bits, signed=True), *logs]


def _kind(grid: Format) -> str:
    return "uniform" if isinstance(grid, Affine) else grid.kind


def best_grid(u: Tensor, grids: Sequence[Format]) -> tuple[Format, dict[str, float]]:
    """The grid with the largest TDScore, ties by squared error; and the scores by name."""
    scores = {grid: grid_score(u, grid) for grid in grids}
    best = max(scores, key=scores.__getitem__)
    return best, {grid.name: score for grid, (score, _) in scores.items()}


def grid_score(u: Tensor, grid: Format) -> tuple[float, float]:
    """TDScore of a grid that covers u, and minus its mean squared error, for ties."""
    u_hat = grid.fake_quant(u, grid.params(u.min(), u.max()))
    return float(paper.td_score(u, u_hat)), -float((u_hat - u).square().mean())


def _plain(denoiser: nn.Module, path: str) -> bool:
    """Whether the rewrite is defined for a layer: one group, and zeros around it if anything."""
    layer = denoiser.get_submodule(path)
    return getattr(layer, "groups", 1) == 1 and getattr(layer, "padding_mode", "zeros") == "zeros"


def _check_untied(denoiser: nn.Module, layers: Sequence[str]) -> None:
    owners: dict[int, str] = {}
    for path in layers:
        other = owners.setdefault(id(denoiser.get_submodule(path).weight), path)
        if other != path:
            raise InvalidInputError(
                f"{other} and {path} share one weight, so neither can be rewritten for its own "
                "input. Use recipe('qvd').without('reshape')."
            )


METHOD = Qvd
