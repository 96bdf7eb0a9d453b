"""Prediction questions: `asked` makes one; those of the notebook 0-start-here are kept here.

Which answer is right is measured, so no reason may claim more than what holds either way.
"""

from __future__ import annotations

from dqlab.errors import UnknownNameError
from dqlab.show.ask import Question
from dqlab.show.bundle import Live, Picture
from dqlab.show.charts import light

Entry = tuple[str, dict[str, tuple[str, str]]]
"""A prompt, and for every key an answer and what is true or tempting about it."""

_ASKED: dict[int, Entry] = {  # by scene
    2: (
        "At which t does abar fall to one half?",
        {
            "A": ("near t = 260", "abar falls slowly, then fast, then slowly: noise wins early."),
            "B": ("near t = 500", "It is half-way in t; but t is a label, not a share."),
            "C": ("near t = 750", "Pictures stay readable under much noise; power says less."),
        },
    ),
    6: (
        "4 bits for 100,000 Gaussian numbers: what does min-max lose against the best clip point?",
        {
            "A": ("nothing, it is safe", "Nothing is cut off, but steps grow with the extreme."),
            "B": ("about 1 dB", "That is the order of the loss at 8 bits."),
            "C": ("about 4 dB", "Sixteen levels over nine standard deviations are few."),
        },
    ),
    8: (
        "Which hurts more: weights at 4 bits (W4A8) or activations at 4 bits (W8A4)?",
        {
            "weights": ("W4A8", "The weights are the model; but each row has its own scale."),
            "activations": ("W8A4", "One scale must serve all channels, pictures and steps."),
            "equal": ("less than 1 dB apart", "Both have sixteen levels."),
        },
    ),
    9: (
        "At W4A4, where along the run is the answer worst?",
        {
            "first": ("near pure noise", "Nothing can be seen; but the answer equals the input."),
            "middle": ("half-way", "That is where shapes form."),
            "last": (
                "near the finished picture",
                "Noise is a faint part of the input there, and rounding hides it.",
            ),
        },
    ),
    10: (
        "Is the step of lowest SQNR also the one that does the most damage?",
        {
            "same": ("yes, roughly", "A wrong answer should hurt where it is most wrong."),
            "elsewhere": ("no, another part of the run", "What a step decides counts as well."),
        },
    ),
    12: (
        "At how many sites is the largest range over the run more than 1.5 times the smallest?",
        {
            "few": ("under 5 %", "The network is the same at every step; its inputs are not."),
            "some": ("5 % to 25 %", "Normalization layers keep most values in one range."),
            "many": ("a quarter or more", "Noise turns into a picture, and values follow."),
        },
    ),
    13: (
        "Which is worse at 4 bits: the first and last convolution, or all other layers together?",
        {
            "two": ("first and last", "One reads the picture, one writes the answer: no detour."),
            "equal": ("less than 1 dB apart", "Two layers against more than sixty."),
            "others": ("all others", "They hold nearly all parameters."),
        },
    ),
    14: (
        "Do both measures rank the settings alike?",
        {
            "agree": ("yes", "Less error, better pictures: so one would think."),
            "disagree": ("no, some pairs swap", "Another picture can be as good a picture."),
        },
    ),
}


class Asked(Question):
    """A question whose revealed charts are kept small."""

    def reveal(self, picture: Picture) -> Live:
        """The result with the reader's choice beside it."""
        return super().reveal(light(picture))


def question(scene: int, correct: str) -> Asked:
    """The question of a scene; `correct` is the key of the answer that was measured.

    Raises:
        UnknownNameError: if the scene asks nothing.

    """
    if scene not in _ASKED:
        raise UnknownNameError(f"Scene {scene} has no question; scenes {list(_ASKED)} have.")
    return asked(_ASKED[scene], correct)


def asked(entry: Entry, correct: str) -> Asked:
    """The question of an entry; `correct` is the key of the answer that was measured."""
    prompt, answers = entry
    return Asked(
        prompt,
        {key: answer for key, (answer, _) in answers.items()},
        correct,
        {key: why for key, (_, why) in answers.items()},
    )


def nearest(value: float, options: dict[str, float]) -> str:
    """The key whose number lies nearest to `value`."""
    return min(options, key=lambda key: abs(options[key] - value))


def scenes() -> list[int]:
    """Scenes that ask a question."""
    return list(_ASKED)
