"""Both copies come from one source, and nothing but the source decides what they hold."""

import json
import subprocess
import sys
from pathlib import Path

import nbbuild
import nbformat
import nbsource
import pytest
from nbbuild import HERE, Folders


@pytest.fixture(scope="module")
def built(tiny: Folders) -> nbformat.NotebookNode:
    assert nbbuild.main([], tiny) == 0
    return nbformat.read(tiny.notebook("1-tiny"), as_version=4)


@pytest.fixture(scope="module")
def student(tiny: Folders, built: nbformat.NotebookNode) -> nbformat.NotebookNode:
    assert nbbuild.main(["student", "1-tiny"], tiny) == 0
    return nbformat.read(tiny.student("1-tiny"), as_version=4)


def test_the_solved_copy_is_executed_in_order_and_keeps_the_marks(
    built: nbformat.NotebookNode,
) -> None:
    code = [cell for cell in built.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert code[-1].outputs[0].text == "levels: passed\n"
    assert "### BEGIN SOLUTION" in code[2].source
    assert built.metadata == nbsource.METADATA


def test_a_rebuild_changes_no_byte(tiny: Folders, built: nbformat.NotebookNode) -> None:
    before = tiny.notebook("1-tiny").read_bytes()
    assert nbbuild.main(["build"], tiny) == 0
    assert tiny.notebook("1-tiny").read_bytes() == before
    assert b"a slider" in before and b"model_id" in before


def test_a_cell_that_fails_leaves_the_old_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = Folders(tmp_path)
    folders.sources.mkdir(parents=True)
    folders.source("1-bad").write_text("# %%\n1 / 0\n", encoding="utf-8")
    folders.source("2-good").write_text("# %%\nprint(1)\n", encoding="utf-8")
    folders.notebook("1-bad").write_text("old", encoding="utf-8")
    assert nbbuild.main(["build"], folders) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert folders.notebook("1-bad").read_text(encoding="utf-8") == "old"
    assert folders.record("1-bad") == {} and folders.notebook("2-good").exists()


def test_planted_mistakes_are_in_neither_copy(
    built: nbformat.NotebookNode, student: nbformat.NotebookNode
) -> None:
    for notebook in (built, student):
        assert not any("- 1" in cell.source for cell in notebook.cells)


def test_the_student_copy_holds_no_solution_and_runs_through(
    tiny: Folders, student: nbformat.NotebookNode
) -> None:
    text = "\n".join(cell.source for cell in student.cells)
    assert "2**bits" not in text and "SOLUTION" not in text and "doubles" not in text
    assert "    raise NotImplementedError()" in text
    assert not any(cell.get("outputs") for cell in student.cells)
    nbbuild.execute(student, tiny.root)
    assert student.cells[-1].outputs[0].text == "levels: not attempted\n"


def test_nbgrader_finds_its_cells(built: nbformat.NotebookNode) -> None:
    entries = {
        entry["grade_id"]: (entry["solution"], entry["grade"])
        for cell in built.cells
        if (entry := cell.metadata.get("nbgrader"))
    }
    assert entries == {"levels": (True, False), "levels-check": (False, True)}


def test_the_run_time_in_the_text_is_the_measured_one(
    tiny: Folders, built: nbformat.NotebookNode
) -> None:
    record = json.loads(tiny.records.read_text(encoding="utf-8"))["1-tiny"]
    assert record["peak_rss_mb"] > 10 and record["wall_s"] >= record["longest_cell_s"] > 0
    assert f"measured on {record['machine']}" in built.cells[0].source
    assert nbbuild.run_time_phrase({"wall_s": 21.3, "machine": "m"}) == "about 30 s, measured on m"


def test_ids_survive_an_edit_elsewhere(tiny: Folders) -> None:
    source = nbsource.read(tiny.source("1-tiny"))
    before = [cell.id for cell in nbsource.solved(source, "").cells]
    source.cells[2].source = "print('edited')"
    after = [cell.id for cell in nbsource.solved(source, "").cells]
    assert [old == new for old, new in zip(before, after, strict=True)] == [
        True, True, False, True, True, True,
    ]  # fmt: skip
    source.cells.append(source.cells[2])
    assert len({cell.id for cell in nbsource.solved(source, "").cells}) == 7


def test_check_sees_edits_tags_and_order_but_no_outputs(
    tiny: Folders, built: nbformat.NotebookNode
) -> None:
    path = tiny.notebook("1-tiny")
    committed = path.read_text(encoding="utf-8")

    def told(change) -> list[str]:
        notebook = nbformat.reads(committed, as_version=4)
        change(notebook.cells)
        nbformat.write(notebook, path)
        return nbbuild.disagreements(tiny, "1-tiny")

    try:
        assert told(lambda cells: cells[2].outputs.clear()) == []
        assert "source" in told(lambda cells: cells[2].update(source="print(4)"))[0]
        assert "metadata" in told(lambda cells: cells[1].metadata.update(tags=[]))[0]
        assert "source" in told(lambda cells: cells.reverse())[0]
        assert "5 cells instead of 6" in told(lambda cells: cells.pop())[0]
        assert nbbuild.main(["check"], tiny) == 1
    finally:
        path.write_text(committed, encoding="utf-8")
    assert nbbuild.main(["check"], tiny) == 0


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (' why="adds where it should multiply"', "", "needs why"),
        ("    ### END SOLUTION\n", "", "pair up"),
        ('tags=["check"] exercise="levels"', 'tags=["check"]', "needs exercise"),
        ('tags=["check"] exercise="levels"', 'tags=["check"] exercise="level"', "needs an exerc"),
        ("    ### BEGIN SOLUTION\n", "", "in each of them"),
        ('tags=["check"]', 'tags=["check", "exercise"]', "exclude"),
    ],
)
def test_a_broken_source_is_refused_with_the_reason(
    tiny: Folders, tmp_path: Path, old: str, new: str, told: str
) -> None:
    text = tiny.source("1-tiny").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "1-broken.py"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(nbsource.SourceError, match=told):
        nbsource.read(path)


def test_unknown_names_are_refused(tiny: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        nbbuild.main(["check", "9-none"], tiny)
    assert "1-tiny" in capsys.readouterr().err


def test_the_command_starts_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, HERE.sources / "build.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "student" in done.stdout


@pytest.mark.parametrize("name", HERE.names())
def test_each_committed_notebook_matches_its_source(name: str) -> None:
    assert nbbuild.disagreements(HERE, name) == []
