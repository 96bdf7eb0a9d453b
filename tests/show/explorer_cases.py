"""What every explorer must do, whatever it shows; each test names its own explorers."""

from dqlab.show.bundle import quickly
from dqlab.show.explorer import Explorer, Frame


def settings_have_sentences_of_their_own(explorer: Explorer, at_most: int = 10) -> None:
    """Evenly spaced settings of the grid, `at_most` of them, are told apart in words."""
    settings = list(explorer.grid())
    some = settings[:: -(-len(settings) // at_most)]
    with quickly():
        told = {explorer.frame(setting)[1] for setting in some}
    assert len(told) == len(some)


def presets_move_the_picture(explorer: Explorer) -> None:
    """Every preset's button draws another picture."""
    frame = Frame(explorer)
    pictures = set()
    for button in frame.presets.values():
        button.click()
        pictures.add(frame.image.value)
    assert len(pictures) == len(frame.presets)
