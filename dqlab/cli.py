"""Command line: `dqlab methods | models | quantize | compare | train | card | doctor`."""

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dqlab.errors import DqlabError, InvalidInputError
from dqlab.paths import appearing_whole

app = typer.Typer(
    help="The lab bench for diffusion-model quantization.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console()
INTERRUPTED = 130
"""Exit code after Ctrl-C: typer turns the interrupt into it."""

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Model = Annotated[str, typer.Argument(help="Shipped model, diffusers folder, or hub id.")]
MethodName = Annotated[str, typer.Option("--method", "-m", help="See `dqlab methods`.")]
Weights = Annotated[str, typer.Option("--weights", "-w", help="Bits, or a format such as fp8.")]
Activations = Annotated[
    str, typer.Option("--activations", "-a", help="Bits, a format, or 'none' for full precision.")
]
Steps = Annotated[int, typer.Option(help="num_inference_steps.")]


def _bits(text: str) -> Any:
    """`8` -> 8, `none` -> None, anything else is a format name."""
    if text.lower() in ("none", "fp", "full"):
        return None
    return int(text) if re.fullmatch("-?[0-9]+", text) else text


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def _print_table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_cell(row[c]) for c in columns))
    out.print(table)


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the quantization methods."""
    from dqlab.api import methods_table

    rows = methods_table()
    if as_json:
        return _print_json(rows)
    _print_table(rows, ["slug", "venue", "arxiv", "category", "moments"])
    return None


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the shipped models."""
    from dqlab.api import models_table

    rows = models_table()
    if as_json:
        return _print_json(rows)
    _print_table(rows, ["name", "pipeline", "megabytes"])
    return None


@app.command()
def quantize(
    model: Model,
    method: MethodName,
    weights: Weights,
    activations: Activations,
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must be new.")],
    steps: Steps = 20,
) -> None:
    """Quantize MODEL and save it as a diffusers folder."""
    import dqlab

    if output.exists():
        raise InvalidInputError(f"{output} exists already; give a new folder with --out.")
    pipe = dqlab.load(model)
    sampler = {"num_inference_steps": steps}
    with _written_whole(output) as folder:
        q = dqlab.quantize(pipe, method, _bits(weights), _bits(activations), sampler=sampler)
        q.save_pretrained(folder)
    _say(f"{model} quantized with {method} at W{weights}A{activations}: {output}")


@contextlib.contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """`appearing_whole` with an error that says what to do."""
    from safetensors import SafetensorError

    try:
        with appearing_whole(folder) as whole:
            yield whole
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"{folder} cannot be written ({reason}). Choose a folder you may write to, on a disk "
            "with room."
        ) from error


def _say(text: str) -> None:
    """Print a line as it is: brackets are no markup, and paths are not broken."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def compare(
    model: Model,
    method: Annotated[list[str], typer.Option("--method", "-m", help="Repeat to rank several.")],
    weights: Weights,
    activations: Activations,
    steps: Steps = 20,
    seeds: Annotated[int, typer.Option(help="How many held-out trajectories.")] = 16,
    frechet: Annotated[int, typer.Option(help="Pictures for the Frechet distance; 0: none.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Quantize MODEL and compare it with the original and with plain rounding."""
    import dqlab
    from dqlab.compare.measure import check_counts

    check_counts(seeds, frechet or False)  # before minutes of work
    pipe = dqlab.load(model)
    sampler = {"num_inference_steps": steps}
    made = [
        dqlab.quantize(pipe, name, _bits(weights), _bits(activations), sampler=sampler)
        for name in method
    ]
    found = dqlab.compare(pipe, *made, num_seeds=seeds, baseline=True, frechet=frechet or False)
    if as_json:
        return _print_json({"model": model} | found.to_dict())
    out.print(found)
    return None


@app.command()
def train(
    name: Annotated[str | None, typer.Argument(help="Which shipped model to train.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Train every model, in order.")] = False,
    missing: Annotated[bool, typer.Option(help="With --all: only what has no result.")] = False,
    minutes: Annotated[float | None, typer.Option(help="Time budget, each.")] = None,
    steps: Annotated[int | None, typer.Option(help="Step budget: reproducible.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows of a batch; more suit a GPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    fresh: Annotated[bool, typer.Option(help="Discard a saved state.")] = False,
    target: Annotated[Path | None, typer.Option("--out", help="Result folder.")] = None,
) -> None:
    """Train a shipped model from scratch, or go on where the last run stopped."""
    from dqlab.models.recipes import RECIPES, recipe_for
    from dqlab.models.training import train_model
    from dqlab.paths import models_dir

    if every == (name is not None) or (every and (target or batch)) or (missing and not every):
        raise InvalidInputError(
            "Give one model's name, or --all (without --out and --batch) for all of them; "
            "--missing goes with --all."
        )
    names = list(RECIPES) if every else [name]
    if missing:
        names = [n for n in names if not (models_dir() / n / "training.json").is_file()]
    planned = {n: minutes or recipe_for(n).minutes for n in names}
    if every and not steps:
        plan = "; ".join(f"{n} {m:g} min" for n, m in planned.items())
        _say(f"{plan or 'Nothing is missing'} ({sum(planned.values()):g} minutes in all)")
    for each in names:
        folder = train_model(
            each,
            minutes=minutes,
            steps=steps,
            batch=batch,
            device=device,
            fresh=fresh,
            out=target,
        )
        _say(f"{each} is in {folder}." + ("" if target else f" Measure it: dqlab card {each}"))


@app.command()
def card(name: Annotated[str, typer.Argument(help="A shipped model.")]) -> None:
    """Measure a shipped model and write its model card."""
    from dqlab.metrics.quality import write_card
    from dqlab.phenomena.census import summary

    out.print(write_card(name, summary))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what works on this machine, and what to do about what does not."""
    from dqlab.doctor import diagnose, render

    checks = diagnose()
    if as_json:
        return _print_json([vars(c) for c in checks])
    out.print(render(checks))
    if any(c.status == "fail" for c in checks):
        raise typer.Exit(1)
    return None


def main() -> None:
    """Run the command line; an error dqlab raises on purpose is one sentence, exit code 2."""
    try:
        app()
    except DqlabError as error:
        text = f"[bold red]error:[/] {escape(str(error))}"
        Console(stderr=True).print(text, soft_wrap=True, highlight=False)
        raise SystemExit(2) from None
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            Console(stderr=True).print("Stopped. Nothing was half-written; run again to resume.")
        raise


if __name__ == "__main__":
    main()
