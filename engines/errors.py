"""What can go wrong in an engine. Every class also is the built-in error it refines.

EngineError
|-- InvalidRequestError (ValueError)      the request can never run; HTTP 400
|   |-- PromptTooLongError                the context cannot hold it
|   `-- UnknownMaskError                  no such mask is loaded; HTTP 404
|-- EngineOverloadedError                 the waiting queue is full; HTTP 429
|   `-- MaskMemoryError                   running requests use all memory for masks
|-- EngineDeadError                       the engine no longer steps; HTTP 503
|-- MaskError (ValueError)                a mask cannot be loaded or unloaded
|-- PatchError (ValueError)               a patch does not fit the weights
`-- EngineDirectoryError (ValueError)     an engine directory cannot be built or read
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskgen.format.model_directory import ModelDirectoryError

_LONGEST_MESSAGE = 600


class EngineError(Exception):
    """Base of every error an engine raises on purpose."""


class InvalidRequestError(EngineError, ValueError):
    """The request can never run. `param` names the offending field, where one is at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLongError(InvalidRequestError):
    """The prompt exceeds the context, or leaves no room for the token to generate."""


class UnknownMaskError(InvalidRequestError):
    """The named mask is not loaded."""


class EngineOverloadedError(EngineError):
    """The waiting queue is full; try again later."""


class MaskMemoryError(EngineOverloadedError):
    """A mask finds no room beside those of running requests; try again later."""


class EngineDeadError(EngineError):
    """The engine has stopped stepping or was closed."""


class MaskError(EngineError, ValueError):
    """A mask cannot be loaded or unloaded as asked."""


class PatchError(EngineError, ValueError):
    """A patch that does not fit the masks or the weights it is used with."""


class EngineDirectoryError(EngineError, ValueError):
    """An engine directory cannot be built or read."""


@contextmanager
def as_engine_directory_error(place: Path | None = None) -> Iterator[None]:
    """Raise EngineDirectoryError where the model directory inside an engine's is at fault.

    Args:
        place: named in the message, if the error does not name it.
    """
    try:
        yield
    except (ModelDirectoryError, EngineDirectoryError) as error:
        told = str(error)
        if place is not None and str(place) not in told:
            told = f"{place}: {told}"
        raise EngineDirectoryError(one_line(told)) from None


def one_line(text: str) -> str:
    """The text on one line that can be read, whatever a damaged file put into it."""
    line = " ".join(text.split())
    if len(line) <= _LONGEST_MESSAGE:
        return line
    half = _LONGEST_MESSAGE // 2
    return f"{line[:half]} ... {line[-half:]}"
