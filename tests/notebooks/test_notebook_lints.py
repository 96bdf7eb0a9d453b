"""Each lint passes a sound notebook and fails one that is broken in its own way."""

from collections.abc import Callable
from pathlib import Path

import lints
import nbformat
import pytest
from lints import LINTS, PLOTLY, WIDGET, Page
from nbbuild import HERE
from numbers_in_prose import bare_numbers

RECORD = {"wall_s": 12.0, "machine": "x86_64 AVX2, 2 cores"}
OPENING = """# Sound

**You will be able to** see what a level is.

**Needs**: a CPU.

**Run time**: about 20 s, measured on x86_64 AVX2, 2 cores

**Papers**: none."""


def _code(source: str, *tags: str, **data: object) -> nbformat.NotebookNode:
    output = nbformat.v4.new_output("display_data", {"text/plain": "a sentence"} | data)
    metadata = {"tags": list(tags)}
    return nbformat.v4.new_code_cell(source, outputs=[output], metadata=metadata)


def sound() -> Page:
    """A notebook in which no lint finds anything."""
    widget = {WIDGET: {"model_id": "a"}, "image/png": "AAAA"}
    cells = [
        nbformat.v4.new_markdown_cell(OPENING),
        _code("show(1)", "explorer", **widget),
        nbformat.v4.new_markdown_cell("## Play\n\n![a level](level.png)\n\n### Closer"),
        _code("show(2)", "explorer", **widget),
        *[_code(f"f = {number}", "exercise") for number in range(5)],
        _code("plot", **{PLOTLY: {"data": []}, "image/png": "AAAA"}),
    ]
    code = [cell for cell in cells if cell.cell_type == "code"]
    for number, cell in enumerate(code):
        cell.execution_count = number + 1
    return Page("1.9-sound", nbformat.v4.new_notebook(cells=cells), 1000, RECORD)


def _say(text: str) -> Callable[[Page], None]:
    def add(page: Page) -> None:
        page.notebook.cells.append(nbformat.v4.new_markdown_cell(text))

    return add


def _source(text: str) -> Callable[[Page], None]:
    return lambda page: page.code[-1].update(source=text)


def _data(kind: str, value: object = None) -> Callable[[Page], None]:
    def change(page: Page) -> None:
        data = page.code[-1].outputs[0].data
        data.pop(kind) if value is None else data.update({kind: value})

    return change


def _append(output: nbformat.NotebookNode) -> Callable[[Page], None]:
    return lambda page: page.code[-1].outputs.append(output)


def _tag(*tags: str) -> Callable[[Page], None]:
    return lambda page: page.code[-1].metadata.update(tags=list(tags))


def _silence(page: Page) -> None:
    for cell in page.code[:4]:
        cell.outputs = []


def _lengthen(page: Page) -> None:
    for cell in page.code[:5]:
        cell.source = "a = 1\n" * 11


def _untag(page: Page) -> None:
    page.code[0].metadata.tags = []


def _unopen(label: str) -> Callable[[Page], None]:
    return lambda page: page.notebook.cells[0].update(source=OPENING.replace(label, "Other"))


ERROR = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
WARNING = nbformat.v4.new_output("stream", name="stderr", text="warned")

# what breaks: (lint, change, part of the sentence)
BROKEN = {
    "no source": (lints.valid, lambda page: page.code[0].pop("source"), "source"),
    "same ids": (lints.valid, lambda page: page.code[0].update(id=page.code[1].id), "unique"),
    "not run": (lints.executed, lambda page: page.code[0].update(execution_count=None), "counts"),
    "out of order": (lints.executed, lambda page: page.code[0].update(execution_count=9), "9"),
    "no code": (lints.executed, lambda page: page.notebook.cells.clear(), "counts"),
    "error": (lints.no_errors, _append(ERROR), "ValueError"),
    "warning": (lints.no_errors, _append(WARNING), "stderr"),
    "widget state": (
        lints.no_widget_state,
        lambda page: page.notebook.metadata.update(widgets={}),
        "metadata.widgets",
    ),
    "plot alone": (lints.readable_without_kernel, _data("image/png"), "no picture"),
    "plot without words": (lints.readable_without_kernel, _data("text/plain"), "no sentence"),
    "figure repr": (
        lints.readable_without_kernel,
        _data("text/plain", "<Figure size 640x480 with 1 Axes>"),
        "no sentence",
    ),
    "widget repr": (
        lints.readable_without_kernel,
        _data("text/plain", "VBox(children=(IntSlider(value=3),))"),
        "no sentence",
    ),
    "plotly repr": (
        lints.readable_without_kernel,
        _data("text/plain", "Figure({'data': []})"),
        "no sentence",
    ),
    "large": (lints.small, lambda page: setattr(page, "size", 2_000_000), "2000000"),
    "long cell": (lints.short_cells, _source("a = 1\n" * 21), "21 lines"),
    "long median": (lints.short_cells, _lengthen, "median"),
    "two titles": (lints.headings, _say("# Again"), "2 titles"),
    "late title": (lints.headings, lambda page: page.notebook.cells.reverse(), "first cell"),
    "skipped level": (lints.headings, _say("## Part\n\n#### Deep"), "h2 is followed by h4"),
    "no alt": (lints.alt_text, _say("![](a.png)"), "no alt"),
    "no html alt": (lints.alt_text, _say('<img src="a.png">'), "no alt"),
    "pasted": (lints.alt_text, _say("![a](data:image/png;base64,AA)"), "pasted"),
    "pip": (lints.offline, _source("%pip install x"), "pip"),
    "shell": (lints.offline, _source("!wget x"), "wget"),
    "requests": (lints.offline, _source("import requests"), "requests"),
    "urllib": (lints.offline, _source("from urllib.request import urlopen"), "urllib"),
    "bare number": (lints.numbers_are_computed, _say("It gains 3.1 dB."), "3.1"),
    "little compared": (lints.compared, _silence, "compared"),
    "much exempt": (lints.compared, _tag("nbval-ignore-output"), "exempt"),
    "skipped": (lints.compared, _tag("nbval-skip"), "skipped"),
    "may fail": (lints.compared, _tag("raises-exception"), "may fail"),
    "comment mark": (lints.compared, _source("# NBVAL_IGNORE_OUTPUT\na"), "use tags"),
    "semicolon": (lints.no_semicolons, _source("plot();"), "';'"),
    "few explorers": (lints.explorers_and_exercises, _untag, "1 explorers"),
    "few exercises": (lints.explorers_and_exercises, lambda page: page.code.pop(3), "4 exercises"),
    "dead explorer": (lints.explorers_and_exercises, _tag("explorer"), "no widget"),
    "no objectives": (lints.opening, _unopen("You will be able to"), "able to"),
    "no needs": (lints.opening, _unopen("Needs"), "Needs"),
    "no papers": (lints.opening, _unopen("Papers"), "Papers"),
    "guessed time": (lints.opening, _unopen("20 s"), "measured"),
    "no record": (lints.opening, lambda page: page.record.clear(), "measured"),
}


@pytest.mark.parametrize("lint", LINTS)
def test_a_sound_notebook_passes(lint: Callable[[Page], list[str]]) -> None:
    assert lint(sound()) == []


@pytest.mark.parametrize("case", BROKEN)
def test_each_break_is_found(case: str) -> None:
    lint, change, told = BROKEN[case]
    page = sound()
    page.record = dict(page.record)
    change(page)
    assert told in " ".join(lint(page))


def test_every_lint_is_shown_to_fail() -> None:
    assert {lint for lint, _, _ in BROKEN.values()} == set(LINTS)


@pytest.mark.parametrize(
    "text",
    [
        "W4A8 in `0.5`, fp16, UNet2D and a 2-D map; x0 is next. $s = 0.25$ and $$\n3.5\n$$",
        "## 2.1 Title\n\n1. first\n2. second",
        "In 2023, four models of 6 blocks and 4 bits. See Section 4.2, Eqs. 12 and 13, [34].",
        "[Q-Diffusion](https://arxiv.org/abs/2302.04304), arXiv:2302.04304v2, §3.4, Fig. 31",
        "With 1000 steps <!-- numbers: 1000 -->",
        "It gains 17.8 dB.",
        "Run time: about 40 s, measured on m.",
        "Notebook 1.4 comes before 2.1-dit; a 32-pixel image, seeds 0-7.",
        "steps 19-25 and Table 31",
        '<img alt="300 levels" width="960" src="a.png">',
    ],
)
def test_prose_numbers_that_are_fine(text: str) -> None:
    printed = "SQNR 17.8 dB"
    assert bare_numbers(text, printed, "about 40 s, measured on m") == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It gains 17.9 dB.", "17.9"),
        ("It gains 3 dB.", "3"),
        ("31 % are clipped", "31"),
        ("a loss of −0.02", "−0.02"),
        ("after 1000 steps", "1000"),
        ("1,600,000 weights", "1,600,000"),
        ("runs in about 50 s, measured on m", "50"),
        ("it is 4 times faster", "4"),
        ("| rtn | 12.5 |", "12.5"),
        ("1e-3 is the rate", "1e-3"),
        ("it gains 3-5 dB", "5"),
    ],
)
def test_prose_numbers_that_nobody_vouches_for(text: str, number: str) -> None:
    found = bare_numbers(text, "SQNR 17.8 dB", "about 40 s, measured on m")
    assert number in [one for one, _ in found]


def test_quoted_cells_may_hold_numbers() -> None:
    page = sound()
    _say("| paper | FID 9.1 |")(page)
    assert lints.numbers_are_computed(page)
    page.notebook.cells[-1].metadata.tags = ["quoted"]
    assert lints.numbers_are_computed(page) == []


def test_a_printed_number_that_is_not_compared_vouches_for_nothing() -> None:
    page = sound()
    _say("It gains 3.1 dB.")(page)
    page.code[-1].outputs[0].data["text/plain"] = "gain 3.1 dB"
    assert lints.numbers_are_computed(page) == []
    _tag("nbval-ignore-output")(page)
    assert lints.numbers_are_computed(page)


NOTEBOOKS = sorted((HERE.root / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("lint", LINTS, ids=lambda lint: lint.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks(path: Path, lint: Callable[[Page], list[str]]) -> None:
    assert lint(Page.read(path, HERE.record(path.stem))) == []


def test_every_notebook_has_a_source() -> None:
    assert {path.stem for path in NOTEBOOKS} <= set(HERE.names())
