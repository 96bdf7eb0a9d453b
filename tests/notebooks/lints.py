"""What a committed notebook must be. A lint takes a Page and returns what is wrong with it."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat
from nbbuild import run_time_phrase
from nbformat import NotebookNode
from numbers_in_prose import bare_numbers

# Explorers and exercises a notebook must hold.
REQUIRED = (2, 5)
OPENING = ("You will be able to", "Needs", "Run time", "Papers")
MAX_BYTES = 2**20
MAX_MEDIAN_LINES, MAX_LINES = 10, 20
MIN_COMPARED, MAX_EXEMPT = 0.60, 0.03

WIDGET = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"
PICTURES = {"image/png", "image/svg+xml"}
COMPARED = {"text/plain", "text/html", "text/latex", "image/svg+xml", PLOTLY}
# What Python objects say of themselves: no sentence for somebody who cannot see the picture.
REPR = re.compile(r"\s*(<.*>|\w+\((.*=|\{).*\))\s*", flags=re.S)
FETCH = re.compile(
    r"^\s*[!%]+\s*(pip|conda|mamba|wget|curl|git|apt\S*)\b"
    r"|^\s*(import|from)\s+(requests|urllib|wget|httpx|pooch|gdown)\b|\burlretrieve\(",
    flags=re.M,
)
COMMENT_MARK = re.compile(r"^\s*#\s*(NBVAL_\w+|PYTEST_VALIDATE_\w+)\s*$", flags=re.M)
FENCE = re.compile(r"^(```|~~~).*?^\1", flags=re.M | re.S)


@dataclass
class Page:
    """A notebook with what the lints ask of it."""

    name: str
    notebook: NotebookNode
    size: int
    record: dict[str, object] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, record: dict[str, object] | None = None) -> Page:
        """From a file; ``record`` holds its measurements."""
        notebook = nbformat.read(path, as_version=4)
        return cls(path.stem, notebook, path.stat().st_size, record or {})

    @cached_property
    def code(self) -> list[NotebookNode]:
        """Code cells."""
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @cached_property
    def prose(self) -> list[NotebookNode]:
        """Markdown cells."""
        return [cell for cell in self.notebook.cells if cell.cell_type == "markdown"]

    def outputs(self) -> Iterator[tuple[int, NotebookNode]]:
        """All outputs with the number of their code cell."""
        for number, cell in enumerate(self.code):
            for output in cell.outputs:
                yield number, output

    def tagged(self, tag: str) -> list[NotebookNode]:
        """Code cells with a tag."""
        return [cell for cell in self.code if tag in cell.metadata.get("tags", [])]


def valid(page: Page) -> list[str]:
    """The file keeps to the notebook format, cell ids included."""
    ids = [cell.get("id") for cell in page.notebook.cells]
    if not all(ids) or len(set(ids)) < len(ids):
        return ["cell ids are missing or not unique"]
    try:
        nbformat.validate(page.notebook)
    except nbformat.ValidationError as error:
        return [error.message]
    return []


def executed(page: Page) -> list[str]:
    """All code cells ran, once, in order."""
    counts = [cell.execution_count for cell in page.code]
    want = [*range(1, len(counts) + 1)]
    return [] if counts and counts == want else [f"execution counts are {counts}, not 1, 2, ..."]


def no_errors(page: Page) -> list[str]:
    """No stored output is an error or a warning on stderr."""
    return [
        f"code cell {number}: {output.get('ename') or 'text on stderr'}"
        for number, output in page.outputs()
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def no_widget_state(page: Page) -> list[str]:
    """The stored state of widgets is large, and GitHub may refuse the whole page for it."""
    return ["metadata.widgets is stored"] if "widgets" in page.notebook.metadata else []


def readable_without_kernel(page: Page) -> list[str]:
    """Beside each plot, widget and picture a sentence; beside each plot and widget a picture."""
    problems = []
    for number, output in page.outputs():
        data = output.get("data", {})
        live = data.keys() & {WIDGET, PLOTLY}
        # A question has no picture: its HTML holds the answers, and the right one behind a fold.
        still = PICTURES | ({"text/html"} if live == {WIDGET} else set())
        if live and not data.keys() & still:
            problems.append(f"code cell {number}: no picture beside {sorted(live)}")
        text = data.get("text/plain", "")
        if (live or data.keys() & PICTURES) and (not text.strip() or REPR.fullmatch(text)):
            problems.append(f"code cell {number}: no sentence stands for the picture ({text!r})")
    return problems


def small(page: Page) -> list[str]:
    """GitHub shows no large pages."""
    return [f"{page.size} bytes, at most {MAX_BYTES}"] if page.size > MAX_BYTES else []


def code_lines(source: str) -> int:
    """Lines that are neither blank nor a comment."""
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") for line in source.split("\n")
    )


def short_cells(page: Page) -> list[str]:
    """Long code belongs in the package."""
    lines = [code_lines(cell.source) for cell in page.code]
    problems = [
        f"code cell {number}: {count} lines, at most {MAX_LINES}"
        for number, count in enumerate(lines)
        if count > MAX_LINES
    ]
    if lines and statistics.median(lines) > MAX_MEDIAN_LINES:
        problems.append(f"median cell {statistics.median(lines)}, at most {MAX_MEDIAN_LINES}")
    return problems


def headings(page: Page) -> list[str]:
    """One title, at the top; no level is skipped on the way down."""
    text = "\n".join(FENCE.sub("", cell.source) for cell in page.prose)
    levels = [len(marks) for marks in re.findall(r"^(#{1,6})\s", text, flags=re.M)]
    first = page.notebook.cells[0].source.lstrip() if page.notebook.cells else ""
    problems = [] if first.startswith("# ") else ["the first cell does not start with a # title"]
    if levels.count(1) != 1:
        problems.append(f"{levels.count(1)} titles, not one")
    steps = itertools.pairwise(levels)
    return problems + [f"h{a} is followed by h{b}" for a, b in steps if b > a + 1]


def alt_text(page: Page) -> list[str]:
    """Pictures in prose say what they show, and are files rather than pasted bytes."""
    text = "\n".join(cell.source for cell in page.prose)
    problems = [f"no alt text: {one}" for one in re.findall(r"!\[\s*\]\([^)]*\)", text)]
    images = re.findall(r"<img\b[^>]*>", text)
    problems += [f"no alt text: {one}" for one in images if not re.search(r'\balt="[^"]+"', one)]
    pasted = "](data:" in text or any("data:" in one for one in images)
    pasted = pasted or any(cell.get("attachments") for cell in page.prose)
    return problems + (["a picture is pasted into the text"] if pasted else [])


def offline(page: Page) -> list[str]:
    """Nothing is installed or fetched."""
    return [
        f"code cell {number}: {match[0].strip()!r} needs the network"
        for number, cell in enumerate(page.code)
        if (match := FETCH.search(cell.source))
    ]


def numbers_are_computed(page: Page) -> list[str]:
    """Each number in prose is computed, quoted, or declared; see numbers_in_prose."""
    printed = " ".join(_compared_text(cell) for cell in page.code)
    return [
        f"number {number!r} in: {line.strip()[:70]}"
        for cell in page.prose
        if "quoted" not in cell.metadata.get("tags", [])
        for number, line in bare_numbers(cell.source, printed, _stated_run_time(page))
    ]


def _compared_text(cell: NotebookNode) -> str:
    """What a cell prints and nbval compares."""
    if _exempt(cell):
        return ""
    texts = [output.get("text", "") for output in cell.outputs]
    kinds = ("text/plain", "text/html")
    texts += [output.get("data", {}).get(kind, "") for output in cell.outputs for kind in kinds]
    return " ".join(texts)


def _exempt(cell: NotebookNode) -> bool:
    return bool({"nbval-ignore-output", "nbval-skip"} & set(cell.metadata.get("tags", [])))


def _stated_run_time(page: Page) -> str:
    return run_time_phrase(page.record)


def compared(page: Page) -> list[str]:
    """Most code cells have an output that nbval compares; few are exempt, none skipped."""
    total = max(len(page.code), 1)
    exempt = sum(map(_exempt, page.code)) / total
    share = sum(_has_compared_output(cell) for cell in page.code) / total
    problems = [] if share >= MIN_COMPARED else [f"{share:.0%} of code cells compared"]
    problems += [] if exempt <= MAX_EXEMPT else [f"{exempt:.0%} of code cells exempt"]
    skipped = page.tagged("nbval-skip") + page.tagged("raises-exception")
    problems += [f"{len(skipped)} cells are skipped or may fail"] if skipped else []
    marked = [cell for cell in page.code if COMMENT_MARK.search(cell.source)]
    return problems + ([f"{len(marked)} nbval marks are comments; use tags"] if marked else [])


def _has_compared_output(cell: NotebookNode) -> bool:
    kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
    streams = any(output.output_type == "stream" for output in cell.outputs)
    return not _exempt(cell) and (streams or bool(kinds & COMPARED))


def no_semicolons(page: Page) -> list[str]:
    """A closing ";" hides an output in JupyterLab but not in nbval: assign it to _ instead."""
    return [
        f"code cell {number} ends with ';'"
        for number, cell in enumerate(page.code)
        if cell.source.rstrip().endswith(";")
    ]


def explorers_and_exercises(page: Page) -> list[str]:
    """Enough to play with and to solve; cells tagged explorer hold a widget."""
    explorers, wanted = page.tagged("explorer"), REQUIRED
    dead = sum(
        not any(WIDGET in out.get("data", {}) for out in cell.outputs) for cell in explorers
    )
    problems = [f"{dead} cells tagged explorer show no widget"] if dead else []
    have = (len(explorers), len(page.tagged("exercise")))
    kinds = zip(("explorers", "exercises"), have, wanted, strict=True)
    return problems + [f"{n} {kind}, at least {least}" for kind, n, least in kinds if n < least]


def opening(page: Page) -> list[str]:
    """Before the first code cell: objectives, needs, measured run time, papers."""
    cells = page.notebook.cells
    first = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    text = "\n".join(cell.source for cell in cells[:first])
    problems = [
        f"the opening has no '{label}' in bold or as a heading"
        for label in OPENING
        if not re.search(rf"^(#+ |[-*]? ?\*\*){label}", text, flags=re.M | re.I)
    ]
    stated = page.record and _stated_run_time(page) in text
    return problems + ([] if stated else ["the opening does not state the measured run time"])


LINTS: tuple[Callable[[Page], list[str]], ...] = (
    valid,
    executed,
    no_errors,
    no_widget_state,
    readable_without_kernel,
    small,
    short_cells,
    headings,
    alt_text,
    offline,
    numbers_are_computed,
    compared,
    no_semicolons,
    explorers_and_exercises,
    opening,
)
