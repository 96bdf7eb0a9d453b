"""Errors a user can act on. Each message names the thing and the fix."""


class DqlabError(Exception):
    """Base of every error dqlab raises on purpose."""


class UnknownNameError(DqlabError, KeyError):
    """A method, model, format or setting that dqlab does not know."""

    def __str__(self) -> str:
        """Show the sentence itself: KeyError would quote it."""
        return str(self.args[0]) if self.args else ""


class InvalidInputError(DqlabError, ValueError):
    """An argument or tensor that cannot be used as given."""


class MismatchError(InvalidInputError):
    """A stored number that computes differently now."""


class NotApplicableError(DqlabError, TypeError):
    """A method asked to work on a model it does not fit."""


class CheckpointError(DqlabError, RuntimeError):
    """A file or folder that is damaged, unsafe, or not what its name says."""
