"""What a user wants a pipeline to be asked: their own prompts, classes, picture size."""

import copy
import inspect
import json
from collections.abc import Sequence
from typing import Any

from dqlab.errors import InvalidInputError

OWNED = ("num_inference_steps", "eta", "guidance_scale", "generator", "latents", "output_type")
"""Arguments that the sampler setting and the seeds decide."""
ATTRIBUTE = "_dqlab_asked"


def ask(pipe, **arguments: Any):
    """The same pipeline, always sampled with these arguments of its call.

    Without it dqlab asks for pictures of its own captions or classes at the size the network was
    trained for. A list has one entry per seed, taken in turn: seed s gets entry s modulo its
    length. Everything else is given to every call as it is. What is asked is saved with a
    quantized pipeline.

        pipe = dqlab.ask(dqlab.load("black-forest-labs/FLUX.1-dev"), prompt=captions, height=512)

    Raises:
        InvalidInputError: for arguments the pipeline's call does not have, that the sampler
            setting decides, or that JSON cannot hold.

    """
    known = inspect.signature(type(pipe).__call__).parameters
    for name, value in arguments.items():
        if name not in known or name in OWNED:
            raise InvalidInputError(
                f"A {type(pipe).__name__} cannot be asked for {name}={value!r}: "
                + ("sampler=dict(...) and the seeds decide that." if name in OWNED else
                   f"its call takes {', '.join(k for k in list(known)[1:] if k not in OWNED)}.")
            )  # fmt: skip
        _check_value(name, value)
    result = copy.copy(pipe)
    setattr(result, ATTRIBUTE, asked(pipe) | arguments)
    return result


def _check_value(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except TypeError as error:
        raise InvalidInputError(
            f"{name} is a {type(value).__name__}, which cannot be saved with the pipeline; give "
            "text, numbers, or lists of them."
        ) from error
    if value == []:
        raise InvalidInputError(f"{name} is an empty list; give at least one entry.")


def asked(pipe) -> dict[str, Any]:
    """What `ask` was given for this pipeline, `{}` without."""
    return getattr(pipe, ATTRIBUTE, {})


def asked_of_seeds(pipe, seeds: Sequence[int]) -> dict[str, Any]:
    """The same for the given seeds, lists unfolded."""

    def unfold(value: Any) -> Any:
        return [value[int(s) % len(value)] for s in seeds] if isinstance(value, list) else value

    return {name: unfold(value) for name, value in asked(pipe).items()}
