"""Questions, exercise cards and checks."""

import pytest

from dqlab.errors import InvalidInputError
from dqlab.show import Check, Question, comb, exercise, verify_check
from dqlab.show.bundle import WIDGET

ANSWERS = {"A": "below 1 dB", "B": "1 to 5 dB", "C": "above 5 dB"}
WHY = {
    "A": "Most of the loss was the min-max range.",
    "B": "A wide range suggests it.",
    "C": "Tempting, since the ranges differ by a factor of eight.",
}


@pytest.fixture
def question():
    return Question("How much does the ideal table gain?", ANSWERS, "A", WHY)


@pytest.fixture
def picture():
    return comb([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])


def test_a_question_reads_without_a_kernel_and_does_not_spoil(question):
    data, metadata = question._repr_mimebundle_()
    assert set(data) == {WIDGET, "text/html", "text/plain", "image/png"}
    assert metadata["image/png"]["alt"] == data["text/plain"]
    assert "A: below 1 dB" in data["text/plain"]
    assert WHY["A"] not in data["text/plain"]
    folded = data["text/html"].split("<details>")[1]
    assert all(why in folded for why in WHY.values())
    assert WHY["A"] not in data["text/html"].split("<details>")[0]
    assert question.choice.value is None


def test_each_choice_gets_its_own_sentence(question):
    assert "That is what happens" in question.verdict("A")
    assert WHY["C"] in question.verdict("C")
    assert WHY["A"] in question.verdict("C")
    assert question.verdict(None).startswith("No prediction made. Answer A: below 1 dB.")


def test_the_choice_stays_beside_the_result(question, picture):
    question.choice.value = "C"
    shown = question.reveal(picture)
    line, image = shown.widget.children
    assert "You predicted C: above 5 dB." in line.value
    assert picture.sentence in image.value
    question.choice.value = "A"
    assert "You predicted A" in line.value


def test_the_reveal_reads_the_same_whatever_was_chosen(question, picture):
    before = question.reveal(picture)._repr_mimebundle_()[0]
    question.choice.value = "B"
    after = question.reveal(picture)._repr_mimebundle_()[0]
    assert before["text/plain"] == after["text/plain"]
    assert set(after) == {WIDGET, "image/png", "text/plain"}


@pytest.mark.parametrize(
    ("answers", "correct", "why", "words"),
    [
        ({"A": "x"}, "A", {"A": "y"}, "two to four"),
        (ANSWERS, "D", WHY, "'D' is none of"),
        (ANSWERS, "A", {"A": "y"}, "Every answer needs its sentence"),
    ],
)
def test_bad_questions_are_refused(answers, correct, why, words):
    with pytest.raises(InvalidInputError, match=words):
        Question("?", answers, correct, why)


def stub(x):
    raise NotImplementedError


@pytest.fixture
def check():
    found = Check("double")

    @found.case("double(3) is 6", hint="Multiply.")
    def _(answer):
        return answer(3) == 6

    @found.case("double(-2) is -4.", hint="Mind the sign.")
    def _(answer):
        return answer(-2) == -4

    return found


@pytest.mark.parametrize(
    ("answer", "outcome", "line"),
    [
        (lambda x: 2 * x, "passed", "double: passed, 2 of 2 cases."),
        (stub, "not attempted", "double: not attempted yet."),
        (lambda x: x + 3, "wrong",
         "double: not yet. Case 2 of 2 fails: double(-2) is -4. Hint: Mind the sign."),
        (lambda x: x / 0, "raised",
         "double: not yet. Case 1 of 2 stops with ZeroDivisionError (division by zero): "
         "double(3) is 6. Hint: Multiply."),
        (None, "raised",
         "double: not yet. Case 1 of 2 stops with TypeError ('NoneType' object is not callable): "
         "double(3) is 6. Hint: Multiply."),
    ],
    ids=["right", "stub", "wrong", "raises", "no function"],
)  # fmt: skip
def test_a_check_answers_in_one_line(check, capsys, answer, outcome, line):
    verdict = check.run(answer)
    assert (verdict.outcome, verdict.line) == (outcome, line)
    assert check(answer) is None
    assert capsys.readouterr().out == line + "\n"


def test_a_check_is_valid_when_it_tells_right_from_wrong(check):
    verify_check(
        check, lambda x: 2 * x, {"sign": lambda x: abs(2 * x), "sum": lambda x: x + 2}, stub
    )


@pytest.mark.parametrize(
    ("solution", "mistakes", "empty", "words"),
    [
        (lambda x: 0, {"a": abs, "b": abs}, stub, "the solution does not pass"),
        (lambda x: 2 * x, {"a": abs}, stub, "1 planted mistakes"),
        (lambda x: 2 * x, {"a": abs, "b": lambda x: 2 * x}, stub, "'b' counts as passed"),
        (lambda x: 2 * x, {"a": abs, "b": lambda x: x / 0}, stub, "'b' counts as raised"),
        (lambda x: 2 * x, {"a": abs, "b": abs}, lambda x: None, "stub counts as wrong"),
    ],
)
def test_a_weak_check_is_found_out(check, solution, mistakes, empty, words):
    with pytest.raises(InvalidInputError, match=words):
        verify_check(check, solution, mistakes, empty)


def test_a_check_without_cases_is_refused():
    with pytest.raises(InvalidInputError, match="no cases"):
        Check("nothing").run(abs)


def test_a_card_folds_its_hints_and_picture(picture):
    data, _ = exercise(
        "Best clip point", "Write f < g.", minutes=10, difficulty=2, hints=["one", "two"],
        expected=picture,
    )._repr_mimebundle_()  # fmt: skip
    assert data["text/html"].count("<details>") == 3
    assert "f &lt; g" in data["text/html"]
    assert data["text/plain"] == (
        "Exercise: Best clip point (10 minutes, difficulty 2 of 5). Write f < g."
    )
    assert "one" not in data["text/plain"]


@pytest.mark.parametrize(("hints", "difficulty"), [(["one"], 2), (["one", "two"], 6)])
def test_bad_cards_are_refused(hints, difficulty):
    with pytest.raises(InvalidInputError, match="Exercise 't'"):
        exercise("t", "task", minutes=5, difficulty=difficulty, hints=hints)
