"""The comparer forgives what another CPU changes, and nothing else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from compare import Tolerance, reconcile_json, reconcile_text
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).resolve().parents[2]
TYPED = {"dtype": "f4", "bdata": "AACAPwAAAEA="}  # 1, 2
NEAR = {"dtype": "f4", "bdata": "KVyBPwAAAEA="}  # 1.0106, 2
FAR = {"dtype": "f4", "bdata": "zcyMPwAAAEA="}  # 1.1, 2


@pytest.mark.parametrize(
    ("test", "stored"),
    [
        ("SQNR 17.85 dB", "SQNR 17.80 dB"),
        ("SQNR 17.9 dB", "SQNR 17.8 dB"),
        ("loss −0.1004", "loss −0.1000"),
        ("1.005e-03", "1.000e-03"),
        ("31.2 % clipped", "31.3 % clipped"),
        ("a   9.99\nb  10.05", "a  10.01\nb  10.05"),
        ("<td>0.5021</td>", "<td>0.5001</td>"),
        ("version 2.13.0, W4A8 in [0, 15]", "version 2.13.0, W4A8 in [0, 15]"),
        ('<img src="data:image/png;base64,AAAA"/>', '<img src="data:image/png;base64,BBBB"/>'),
    ],
)
def test_same_meaning_becomes_the_stored_text(test: str, stored: str) -> None:
    assert reconcile_text(test, stored, Tolerance()) == stored


@pytest.mark.parametrize(
    ("test", "stored"),
    [
        ("SQNR 17.5 dB", "SQNR 17.8 dB"),
        ("gain -0.3 dB", "gain 0.3 dB"),
        ("error -0.21", "error 0.21"),
        ("lower by 0.21", "higher by 0.21"),
        ("1001 values", "1000 values"),
        ("1,000,001 values", "1,000,000 values"),
        ("1.02e-03", "1.00e-03"),
        ("33.0 %", "31.3 %"),
        ("17.8", "17.8 dB"),
        ("17.8 dB", "17.8 s"),
        ("17.8", "17.8 and 3"),
        ("W4A8", "W4A4"),
        ("step 3", "step 3.0"),
        ("version 2.13.0", "version 2.13.1"),
        ("0.001", "0.000"),
        ("nan dB", "17.8 dB"),
        ("1.0\n2.0", "1.0 2.0"),
    ],
)
def test_other_meaning_stays_different(test: str, stored: str) -> None:
    assert reconcile_text(test, stored, Tolerance()) != stored


@pytest.mark.parametrize(
    ("tag", "test", "stored", "same"),
    [
        ("nbval-tolerance-0.001", "0.505", "0.500", False),
        ("nbval-tolerance-0.1", "0.54", "0.50", True),
        ("nbval-tolerance-0.1", "54", "50", False),
        ("nbval-tolerance-0.1", "7.5 dB", "7.3 dB", False),
        ("nbval-tolerance-db-0.02", "17.85 dB", "17.80 dB", False),
        ("nbval-tolerance-db-0.5", "17.5 dB", "17.8 dB", True),
        ("nbval-unit-db", "0.05", "0.12", True),
        ("nbval-unit-db", "4", "5", False),
    ],
)
def test_tags_move_the_tolerance(tag: str, test: str, stored: str, same: bool) -> None:
    assert (reconcile_text(test, stored, Tolerance.of([tag])) == stored) is same


@pytest.mark.parametrize(
    ("test", "stored", "same"),
    [
        ({"y": [1.0, 0.001]}, {"y": [1.005, 0.0]}, True),
        ({"y": [1.0, 2.0]}, {"y": [1.0, 2.1]}, False),
        ({"y": [1.0, 2.0]}, {"y": [1.0, 2.0, 3.0]}, False),
        ({"z": [[1.0], [2.0]]}, {"z": [[2.0], [1.0]]}, False),
        ({"y": TYPED}, {"y": NEAR}, True),
        ({"y": TYPED}, {"y": FAR}, False),
        ({"title": "up 3.10 dB"}, {"title": "up 3.15 dB"}, True),
        ({"title": "up 3.1 dB"}, {"title": "down 3.1 dB"}, False),
        ({"size": 12}, {"size": 13}, False),
        ({"on": True}, {"on": 1.0001}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"y": [1.0, "a"]}, {"y": [1.0, "b"]}, False),
    ],
)
def test_plotly_is_compared_by_structure(test: dict, stored: dict, same: bool) -> None:
    assert (reconcile_json(test, stored, Tolerance()) == stored) is same


def test_every_sanitising_rule_is_read_and_works() -> None:
    text = (ROOT / "tests" / "nbval_sanitize.cfg").read_text(encoding="utf-8")
    rules = get_sanitize_patterns(text)
    assert len(rules) == len(re.findall("^regex:", text, flags=re.M))
    changed = ["<f at 0x7f3a12bc>", "/tmp/ipykernel_7/123.py:1: UserWarning"]
    for sample, (regex, replace) in zip(changed, rules, strict=True):
        assert replace in re.sub(regex, replace, sample)


PICTURE = """
from IPython.display import display
display({"text/plain": "a dot", "image/png": "iVBORw0KGgo="}, raw=True)
"""
PLOTLY = """
from IPython.display import display
figure = {"data": [{"y": [1.0, 2.0]}], "layout": {}}
display({"application/vnd.plotly.v1+json": figure, "text/plain": "rises"}, raw=True)
"""


def _stream(text: str) -> dict:
    return nbformat.v4.new_output("stream", text=text)


def _bundle(text: str, **data: object) -> dict:
    kinds = {"png": "image/png", "plotly": "application/vnd.plotly.v1+json"}
    parts = {kinds[name]: value for name, value in data.items()}
    return nbformat.v4.new_output("display_data", {"text/plain": text} | parts)


# name: (source, stored outputs, tags, passes)
CELLS = {
    "within": ("print('17.85 dB')", [_stream("17.80 dB\n")], [], True),
    "planted dB": ("print('17.5 dB')", [_stream("17.8 dB\n")], [], False),
    "sign": ("print(-0.25)", [_stream("0.25\n")], [], False),
    "word": ("print('worse')", [_stream("better\n")], [], False),
    "lost output": ("pass", [_stream("17.8 dB\n")], [], False),
    "new output": ("print('17.8 dB')", [], [], False),
    "tight": ("print(0.503)", [_stream("0.500\n")], ["nbval-tolerance-0.001"], False),
    "ignored": ("print(1)", [_stream("2\n")], ["nbval-ignore-output"], True),
    "picture": (PICTURE, [_bundle("a dot", png="AAAA")], [], True),
    "lost picture": ("print('a dot')", [_bundle("a dot", png="AAAA")], [], False),
    "alt": (PICTURE, [_bundle("a line", png="AAAA")], [], False),
    "plot": (
        PLOTLY,
        [_bundle("rises", plotly={"data": [{"y": [1.0, 2.01]}], "layout": {}})],
        [],
        True,
    ),
    "other plot": (
        PLOTLY,
        [_bundle("rises", plotly={"data": [{"y": [2.0, 1.0]}], "layout": {}})],
        [],
        False,
    ),
    "address": ("print(object)", [_stream("<class 'object'>\n")], [], True),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """What ``pytest --nbval notebooks/`` says about each of CELLS, in a copy of our layout."""
    root = tmp_path_factory.mktemp("repository")
    for name in (
        "notebooks/conftest.py",
        "tests/notebooks/compare.py",
        "tests/nbval_sanitize.cfg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    cells = [
        nbformat.v4.new_code_cell(
            source.strip(), outputs=outputs, execution_count=1, metadata={"tags": tags}
        )
        for source, outputs, tags, _ in CELLS.values()
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "1-tiny.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-rA"]
    command += ["--color=no", "notebooks/"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    verdicts = re.findall(r"^(PASSED|FAILED) \S+::Cell (\d+)", done.stdout, flags=re.M)
    assert len(verdicts) == len(CELLS), done.stdout
    return {[*CELLS][int(number)]: verdict == "PASSED" for verdict, number in verdicts}


@pytest.mark.parametrize("name", CELLS)
def test_nbval_turns_red_exactly_where_it_should(outcomes: dict[str, bool], name: str) -> None:
    assert outcomes[name] is CELLS[name][3]
