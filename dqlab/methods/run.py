"""`quantize`: walk a pipeline's copy through the five moments and hand it back whole."""

import copy
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.formats import Format
from dqlab.layers import Policy, common_policy, explore, quantizers
from dqlab.layers.wrap import wrap_attention, wrap_layer
from dqlab.methods.corrected import corrected
from dqlab.methods.corrector import Corrector
from dqlab.methods.job import PROFILES, Job
from dqlab.methods.method import ranges_alone
from dqlab.methods.recipe import Recipe, as_recipe
from dqlab.methods.record import job_name, write_record
from dqlab.methods.score import FILE as SCORES
from dqlab.methods.score import Scorer
from dqlab.models.families import Family, Sampler, family_of
from dqlab.trajectory import States


def quantize(
    pipe,
    recipe: "str | Recipe",
    weights: Any,
    activations: Any,
    *,
    sampler: Sampler | dict[str, Any] | None = None,
    calibration: States | None = None,
    policy: str | Policy = "common",
    softmax: int = 8,
    profile: str = "teach",
    seed: int = 0,
    data: Tensor | None = None,
    state_dir: "str | Path | None" = None,
):
    """Quantize a diffusers pipeline; the original is left untouched.

    Args:
        pipe: a diffusers pipeline of a known family.
        recipe: a method name or a recipe, such as `recipe("rtn")`.
        weights: bits (int), a format or its name ("fp8").
        activations: the same, or None for full precision.
        sampler: the setting that tables and corrections are fitted for; default 20 steps, eta 0.
        calibration: states to calibrate on instead of the method's own choice.
        policy: "common"; "paper" for the sites and bits of the method's own paper, where it
            states them; or a `Policy` of your own.
        softmax: bits of the softmax output in the common policy.
        profile: "teach" (minutes on a laptop) or "paper" (the paper's own settings).
        seed: of everything the fit draws.
        data: clean samples `[N, ...]` as the denoiser meets them, for methods that train on the
            diffusion loss; default: what a shipped model was trained on.
        state_dir: folder to keep finished units of a reconstruction and scores of a search in:
            the same call continues there after a kill, and no other call takes anything from it.
            Delete it when the result is saved.

    Returns:
        A pipeline of the same class whose denoiser simulates the quantized network; of a
        subclass, `Corrected...`, if a method repairs something while sampling.

    Raises:
        UnknownNameError, InvalidInputError, NotApplicableError: before anything is changed.

    """
    chosen, family = as_recipe(recipe), family_of(pipe)
    chosen.check(family, weights, activations)
    setting = Sampler.of(sampler)
    _check(profile, seed)
    if data is not None and not any(m.learns_from_data for m in chosen.methods):
        raise InvalidInputError(
            f"{chosen.slug} learns from no clean samples; leave data out, or choose a method that "
            "trains, such as recipe('tdq', form='training')."
        )
    keep = None if state_dir is None else _folder(state_dir)
    source = _checked_denoiser(pipe, family)
    chosen.check_sampler(pipe, setting)
    denoiser = copy.deepcopy(source).eval().requires_grad_(False)
    rules = policy if isinstance(policy, Policy) else _policy(policy, chosen, family, softmax)
    rules.check(weights, activations)
    job = Job(
        pipe,
        denoiser,
        family,
        chosen,
        setting,
        weights,
        activations,
        rules,
        profile,
        seed,
        data,
    )
    started = time.perf_counter()
    job.calibration = _calibrate(job, calibration)
    job.state_dir = keep and keep / job_name(job)
    job.scorer = Scorer(_finish, job.state_dir and job.state_dir / SCORES)
    result = _finish(job)
    corrector = getattr(result, "corrector", None)
    write_record(job, time.perf_counter() - started, corrector and corrector.correction)
    return result


def _check(profile: str, seed: int) -> None:
    if profile not in PROFILES:
        raise InvalidInputError(f"profile={profile!r}; choose one of {', '.join(PROFILES)}.")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InvalidInputError(f"seed={seed!r}; choose a whole number from 0 to 2^32 - 1.")


def _folder(given: "str | Path") -> Path:
    if not isinstance(given, str | Path) or (Path(given).exists() and not Path(given).is_dir()):
        raise InvalidInputError(f"state_dir={given!r}; give the path of a folder, or None.")
    return Path(given)


def _checked_denoiser(pipe, family: Family) -> nn.Module:
    denoiser = family.denoiser(pipe)
    if quantizers(denoiser):
        raise InvalidInputError("This pipeline is quantized already; quantize the original.")
    for name, parameter in denoiser.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InvalidInputError(
                f"The weight {name} of the {family.component} holds NaN or infinity, so no range "
                "fits it. Load the model again or repair that tensor."
            )
    return denoiser


def _policy(name: str, recipe: Recipe, family: Family, softmax: int) -> Policy:
    if name == "paper":
        return recipe.paper_policy(family)
    if name != "common":
        raise InvalidInputError(f"policy={name!r}; choose 'common' or 'paper', or pass a Policy.")
    return common_policy(family.first, family.last, softmax)


def _calibrate(job: Job, given: States | None) -> States:
    chosen = job.recipe.calibrate(job) if given is None else given
    if not isinstance(chosen, States):
        raise InvalidInputError(
            f"calibration is a {type(chosen).__name__}; pass what dqlab.trajectory.record returns "
            "first, a States."
        )
    return chosen.check("calibration")


def _finish(job: Job, moment: str = "reshape", fit: bool = True):
    """From `moment`, reshape or place, to the finished pipeline; without `fit` nothing learns."""
    recipe = job.recipe
    if moment == "reshape":
        job.moment = moment
        recipe.reshape(job)
        wrap(job)
    job.moment = "place"
    _place(job)
    job.moment = "fit"
    phases = recipe.fit(job) if fit else ranges_alone()
    job.learning = True
    for job.phase, phase in enumerate(phases):
        phase.run(job)
    for layer in job.layers():
        layer.freeze()
    job.moment = "correct"
    return _corrected(job)


def _place(job: Job) -> None:
    formats: dict[str, Format | None] = job.recipe.formats(job)
    sites = quantizers(job.denoiser)
    if missing := sites.keys() - formats.keys():
        raise InvalidInputError(
            f"{job.recipe.slug} gave no format for {', '.join(sorted(missing)[:4])}; its "
            "`formats` must name every site, with None for full precision."
        )
    if stray := formats.keys() - sites.keys():
        raise InvalidInputError(
            f"{job.recipe.slug} gave formats for {', '.join(sorted(stray)[:4])}, which are no "
            f"sites of this {type(job.denoiser).__name__}."
        )
    for site, quantizer in sites.items():
        quantizer.format = formats[site]


def _corrected(job: Job):
    """The pipeline around the finished network, with the recipe's correction if it has one."""
    correction = job.recipe.correct(job)
    if correction is None:
        return _with_denoiser(job.original, job.family, job.denoiser)
    corrector = Corrector(correction, job.family, job.sampler, job.context.schedule, job.seed)
    return with_corrector(job, corrector)


def with_corrector(job: Job, corrector: Corrector):
    """The pipeline around the network as it is, with a correction at work."""
    return corrected(_with_denoiser(job.original, job.family, job.denoiser), corrector)


def wrap(job: Job) -> None:
    """Find every operand by running one state, and give each a quantizer."""
    example = job.calibration[:1]
    try:
        job.anatomy = explore(job.denoiser, lambda: example.call(job.denoiser))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The {type(job.denoiser).__name__} cannot run on the calibration set ({error}). "
            "Record one with this pipeline."
        ) from error
    wrap_sites(job.denoiser, job.context, job.anatomy.layers, job.anatomy.attentions)
    job.context.bind(job.family.schedule(job.original, job.sampler))


def wrap_sites(denoiser: nn.Module, context, layers: list[str], attentions: list[str]) -> None:
    """Wrap the named modules in place."""
    for path in layers:
        wrap_layer(denoiser.get_submodule(path), path, context)
    for path in attentions:
        wrap_attention(denoiser.get_submodule(path), path, context)
    context.attach(denoiser)


def _with_denoiser(pipe, family: Family, denoiser: nn.Module):
    """A pipeline like `pipe` around another denoiser, with a scheduler of its own."""
    result = copy.copy(pipe)
    result.register_modules(
        **{family.component: denoiser, "scheduler": copy.deepcopy(pipe.scheduler)}
    )
    return result
