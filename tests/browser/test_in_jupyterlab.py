"""What a reader does in JupyterLab works: run, move, press, hover, answer, switch the theme."""

from pathlib import Path

import lab
import pytest
from PIL import Image
from tiny_notebook import TINY, write

pytestmark = pytest.mark.browser
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def photograph(page: lab.NotebookPage, stem: Path) -> None:
    """A picture of the window in each theme."""
    for theme in (lab.LIGHT, lab.DARK):
        page.theme(theme)
        page.screenshot(stem.with_name(f"{stem.name}-{theme.split()[-1].lower()}.png"))


def brightness(path: Path) -> float:
    """Mean grey value, 0 to 255."""
    grey = Image.open(path).convert("L").resize((1, 1), Image.Resampling.BOX)
    return grey.getpixel((0, 0))


def quiet(page: lab.NotebookPage) -> None:
    """No complaint in the console, no request that leaves the machine."""
    assert page.console_errors == []
    assert page.outside == []


def test_a_visit(visitor: lab.Visitor, screenshots: Path) -> None:
    with visitor.open(TINY) as page:
        page.run_all()
        assert page.explorers() == [1]
        assert page.press_slider(1, "ArrowRight")
        assert "4" in page.text(1)
        assert page.nudge(1)
        assert page.buttons(1) == ["one bit"]
        assert page.press_button(1, "one bit")
        page.hover_plot(2)
        assert "not attempted" in page.text(4)
        page.write_cell(3, "def levels(bits):\n    return 2**bits")
        page.run_cell(3)
        page.run_cell(4)
        assert "correct" in page.text(4)
        photograph(page, screenshots / "tiny")
        quiet(page)
    light, dark = (brightness(screenshots / f"tiny-{theme}.png") for theme in ("light", "dark"))
    assert light > dark + 60


def test_the_harness_sees_what_goes_wrong(
    visitor: lab.Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with visitor.open(TINY) as page:
        page.write_cell(3, "1 / 0")
        with pytest.raises(AssertionError, match="cell 3: ZeroDivisionError"):
            page.run_all()
        monkeypatch.setattr(lab, "REACT_MS", 500)
        page.page.evaluate("console.error('a complaint')")
        page.page.evaluate("fetch('http://dqlab.invalid/x').catch(() => 0)")
        assert not page.press_slider(1, "Tab")
        assert "a complaint" in page.console_errors[0]
        assert page.outside == ["http://dqlab.invalid/x"]


def tagged(page: lab.NotebookPage, tag: str) -> list[int]:
    """Cells with this tag."""
    cells = page.cells()
    return [i for i, cell in enumerate(cells) if tag in cell["metadata"].get("tags", [])]


def answer_a_question(page: lab.NotebookPage) -> None:
    """Choose an answer: the result below it says what was chosen."""
    asked = next(i for i, cell in enumerate(page.cells()) if "Predict, then look." in str(cell))
    page.outputs(asked).locator("input[type=radio]").first.check()
    page.wait_idle()
    reveal = next(
        i for i, cell in enumerate(page.cells()) if ".reveal(" in "".join(cell["source"])
    )
    assert "You predicted" in page.text(reveal)


def solve_an_exercise(page: lab.NotebookPage) -> None:
    """A wrong answer is told apart from the right one, without a traceback."""
    exercise, check = tagged(page, "exercise")[0], tagged(page, "check")[0]
    right = "".join(page.cells()[exercise]["source"])
    wrong = right.split("\n", 1)[0] + "\n    return None"
    for source, verdict in ((wrong, "not yet"), (right, "passed")):
        page.write_cell(exercise, source)
        page.run_cell(exercise)
        page.run_cell(check)
        assert verdict in page.text(check)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks(visitor: lab.Visitor, screenshots: Path, path: Path) -> None:
    with visitor.open(path.name) as page:
        stored = [page.outputs(cell).locator("img").count() for cell in page.explorers()]
        assert all(stored), "an explorer shows no picture before it is run"
        page.run_all()
        for cell in page.explorers():
            assert page.nudge(cell)
            presets = (label for label in page.buttons(cell) if not label.startswith("Run"))
            assert any(page.press_button(cell, label) for label in presets)
        answer_a_question(page)
        solve_an_exercise(page)
        photograph(page, screenshots / path.stem)
        quiet(page)


def test_a_stored_notebook_is_drawn_without_a_kernel(visitor: lab.Visitor, tmp_path: Path) -> None:
    write(tmp_path / TINY)
    for dark in (False, True):
        lab.render(visitor.browser, tmp_path / TINY, tmp_path / f"{dark}.png", dark)
    assert Image.open(tmp_path / "True.png").width == 1100
    assert brightness(tmp_path / "False.png") > brightness(tmp_path / "True.png") + 60
