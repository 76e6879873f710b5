"""What can go wrong in an engine. Every class also is the built-in error it refines.

EngineError
|-- InvalidRequestError (ValueError)      the request can never run; HTTP 400
|   |-- PromptTooLongError                the context cannot hold it
|   `-- UnknownMaskError                  no such mask is loaded; HTTP 404
|-- EngineOverloadedError                 the waiting queue is full; HTTP 429
|-- EngineDeadError                       the engine no longer steps; HTTP 503
|-- MaskError (ValueError)                a mask cannot be loaded or unloaded
`-- EngineDirectoryError (ValueError)     an engine directory cannot be built or read
"""

from collections.abc import Iterator
from contextlib import contextmanager

from maskgen.format.model_directory import ModelDirectoryError


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


class EngineDeadError(EngineError):
    """The engine has stopped stepping or was closed."""


class MaskError(EngineError, ValueError):
    """A mask cannot be loaded or unloaded as asked."""


class EngineDirectoryError(EngineError, ValueError):
    """An engine directory cannot be built or read."""


@contextmanager
def as_engine_directory_error() -> Iterator[None]:
    """Raise EngineDirectoryError where the model directory inside an engine's is at fault."""
    try:
        yield
    except ModelDirectoryError as error:
        raise EngineDirectoryError(str(error)) from None
