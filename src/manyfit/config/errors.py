"""What a command, or a call of the library, ends with when it cannot be done."""

from manyfit.config.secrets import mask


class ConfigError(ValueError):
    """A value that the user gave cannot be used; the message names the full key, and shows no password."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


class TrainingError(RuntimeError):
    """A training came to a bad end; its run says so."""


def sentence(error: Exception, words: str | None = None) -> str:
    """What a command says of an error, in its own words or others, and of what it cost."""
    return " ".join([f"error: {words or error}", *getattr(error, "__notes__", [])])
