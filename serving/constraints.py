"""Checks structured output before a request is admitted: whoever asks too much waits alone."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from engines.base import StructuredOutputCompiler
from engines.errors import InvalidRequestError
from engines.sampling import StructuredOutput
from serving.errors import invalid, overloaded

# Real schemas compile in milliseconds; one of 64 KiB may take a second or two.
MAX_SECONDS = 10.0
# Requests whose constraints may wait for their turn.
MAX_WAITING = 32


class Constraints:
    """Compiles constraints one at a time, in a thread of their own.

    The compiler bounds its work by itself. The limits here keep what takes long nevertheless from
    holding up anybody but those who ask for structured output too. What was compiled is kept by
    the compiler, and is there when the request runs.
    """

    def __init__(self, compiler: StructuredOutputCompiler | None) -> None:
        self._compiler = compiler
        self._thread = ThreadPoolExecutor(1, "constraints")
        self._waiting = 0

    async def check(self, spec: StructuredOutput | None, field: str) -> None:
        """Compile a request's constraint, if it has one.

        Args:
            spec: the constraint.
            field: the request's field that it came from.

        Raises:
            ApiError: 400; the constraint is malformed, or takes more than `MAX_SECONDS`. 429; too
                many others wait.
        """
        if spec is None:
            return
        if self._compiler is None:
            raise invalid(f"{field}: the engine of this server takes no structured output", field)
        if self._waiting >= MAX_WAITING:
            raise overloaded(MAX_SECONDS)
        self._waiting += 1
        try:
            await self._compile(self._compiler, spec, field)
        except InvalidRequestError as error:
            raise invalid(f"{field}: {error}", field) from error
        finally:
            self._waiting -= 1

    async def _compile(
        self, compiler: StructuredOutputCompiler, spec: StructuredOutput, field: str
    ) -> None:
        loop = asyncio.get_running_loop()
        begun = asyncio.Event()

        def work() -> None:
            loop.call_soon_threadsafe(begun.set)
            compiler.compile(spec)

        job = loop.run_in_executor(self._thread, work)
        # Nobody may be there any more to hear of its failure.
        job.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await begun.wait()
        except TimeoutError:
            job.cancel()
            raise overloaded(MAX_SECONDS) from None
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await asyncio.shield(job)
        except TimeoutError:
            raise invalid(
                f"{field}: compiling the constraint takes more than {MAX_SECONDS:g} s; simplify it",
                field,
            ) from None

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
