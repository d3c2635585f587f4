"""What a request gives back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import RequestCancelled

if TYPE_CHECKING:
    import numpy

    from ._worker import Worker


@dataclass(frozen=True)
class Logprob:
    """Of one candidate token: natural log-probability, and rank (1 is the likeliest)."""

    logprob: float
    rank: int


@dataclass
class CompletionOutput:
    """One answer to a prompt. While it streams, fields hold what is certain so far."""

    index: int
    """Among the n answers to the prompt."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """Including the end-of-sequence token where there was one."""
    cumulative_logprob: float | None = None
    """Sum over the tokens, where logprobs were asked for."""
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    """For each token its candidates by id, the chosen one first."""
    prompt_logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    """For each token of the prompt but the first."""
    finish_reason: str | None = None
    """"stop", "length" or "cancelled"; None while it runs."""
    stop_reason: str | None = None
    """The stop text that ended it, if one did."""
    generation_logits: numpy.ndarray[Any, Any] | None = None
    """float32 [tokens, V], where asked for."""

    _shown_text: int = field(default=0, repr=False, compare=False)
    _shown_tokens: int = field(default=0, repr=False, compare=False)
    _new_text: int = field(default=0, repr=False, compare=False)
    _new_tokens: int = field(default=0, repr=False, compare=False)

    @property
    def length(self) -> int:
        """Tokens so far."""
        return len(self.token_ids)

    @property
    def text_diff(self) -> str:
        """What this iteration of a stream added to the text."""
        return self.text[self._shown_text:]

    @property
    def token_ids_diff(self) -> list[int]:
        """The tokens that this iteration of a stream added."""
        return self.token_ids[self._shown_tokens:]

    @property
    def logprobs_diff(self) -> list[dict[int, Logprob]]:
        """The log-probabilities of token_ids_diff."""
        return self.logprobs[self._shown_tokens:]

    def _advance(self) -> None:
        """The next iteration begins after what the one before has shown."""
        self._shown_text, self._shown_tokens = self._new_text, self._new_tokens
        self._new_text, self._new_tokens = len(self.text), len(self.token_ids)


class RequestOutput:
    """One request: its prompt, its answers, and the wait for them.

    From generate() it is finished. From generate_async() it is running: ``await`` it (or call
    ``result``) for the finished request, or iterate over it (``async for`` or ``for``) to get it
    again whenever there are new tokens, with ``text_diff`` and ``token_ids_diff`` of its outputs.
    """

    def __init__(self, request_id: int, prompt: str | None, prompt_token_ids: list[int], n: int) -> None:
        self.request_id = request_id
        self.prompt = prompt
        """The text, or None where token ids were given."""
        self.prompt_token_ids = prompt_token_ids
        self.outputs = [CompletionOutput(index) for index in range(n)]
        self.context_logits: numpy.ndarray[Any, Any] | None = None
        """float32 [prompt tokens, V], where asked for."""
        self._condition = threading.Condition()
        self._version = 0
        self._error: BaseException | None = None
        self._done = False
        self._aborted = False
        self._listeners: list[Callable[[], None]] = []
        self._owner: Worker | None = None  # keeps the engine alive until the request is done

    @property
    def finished(self) -> bool:
        """Whether all answers have ended."""
        return self._done

    def abort(self) -> None:
        """Ends the request after the step that is running; what there is stays, "cancelled"."""
        self._aborted = True
        owner = self._owner
        if owner is not None:
            owner.cancel(self)

    def aborted(self) -> bool:
        """Whether abort() was called."""
        return self._aborted

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the end, at most ``timeout`` seconds (TimeoutError); raises what the request failed with."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._done, timeout):
                raise TimeoutError(f"request {self.request_id} is still running after {timeout} s")
        return self._outcome()

    async def aresult(self) -> RequestOutput:
        """Like result, without blocking the event loop."""
        version = -1
        while not self._done:
            version = await self._changed(version)
        return self._outcome()

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self.aresult().__await__()

    def __iter__(self) -> Iterator[RequestOutput]:
        version, done = 0, False
        while not done:
            with self._condition:
                self._condition.wait_for(lambda: self._version > version or self._done)
                version, done = self._version, self._done
            yield self._iteration()

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        version, done = 0, False
        while not done:
            version = await self._changed(version)
            done = self._done
            yield self._iteration()

    def _iteration(self) -> RequestOutput:
        if self._done:
            self._outcome()
        for output in self.outputs:
            output._advance()
        return self

    def _outcome(self) -> RequestOutput:
        if self._error is not None:
            raise self._error
        return self

    async def _changed(self, version: int) -> int:
        """Waits until something is newer than ``version``, or the request has ended."""
        loop = asyncio.get_running_loop()
        event = asyncio.Event()

        def listener() -> None:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # the loop has been closed: nobody waits there any more
                pass

        with self._condition:
            if self._version > version or self._done:
                return self._version
            self._listeners.append(listener)
        try:
            await event.wait()
        finally:
            with self._condition:
                self._listeners.remove(listener)
        return self._version

    # Called by the worker's thread.
    def _update(self, change: Callable[[], None]) -> None:
        with self._condition:
            change()
            self._version += 1
            listeners = list(self._listeners)
            self._condition.notify_all()
        for listener in listeners:
            listener()

    def _finish(self, error: BaseException | None = None) -> None:
        def change() -> None:
            self._error = error
            self._done = True
            self._owner = None

        self._update(change)

    def _shut_down(self) -> None:
        self._finish(RequestCancelled(f"request {self.request_id} was not done when the engine was shut down"))

    def __repr__(self) -> str:
        return (f"RequestOutput(request_id={self.request_id}, prompt={self.prompt!r}, "
                f"prompt_token_ids={self.prompt_token_ids}, outputs={self.outputs}, finished={self.finished})")
