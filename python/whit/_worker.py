"""The requests of an engine: handed to it, told what became of them, and counted."""

from __future__ import annotations

import atexit
import copy
import itertools
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _native
from .outputs import CompletionOutput, Logprob, RequestOutput
from .sampling import SamplingParams

if TYPE_CHECKING:
    import numpy

STATS_KEPT = 1024
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # of workers that are gone, too


@atexit.register
def _shut_down_all() -> None:
    """A thread that waits for the engine must not outlive the interpreter: it could not leave the native code."""
    for worker in list(_workers):
        worker.shutdown()
    for thread in list(_threads):
        thread.join()


@dataclass
class _Running:
    request: RequestOutput
    params: SamplingParams
    start: float
    handle: int = 0
    """The native engine's number."""
    logits: dict[int, list[Any]] = field(default_factory=dict)
    """Generation logits so far, by answer."""
    error: BaseException | None = None


class Worker:
    """Hands requests to the engine, which runs them together in a thread of its own.

    Another thread takes the engine's news into RequestOutputs. It is started by the first request and
    does not keep the engine alive.
    """

    def __init__(self, engine: _native.Engine) -> None:
        self.engine = engine
        self._updates = _native.Updates()
        self._running: dict[int, _Running] = {}
        self._ids = itertools.count(1)
        self._lock = threading.RLock()  # a signal's handler may abort while its thread submits
        self._thread: threading.Thread | None = None
        self._closed = False
        self._stats: deque[dict[str, Any]] = deque(maxlen=STATS_KEPT)
        self._stats_ready = threading.Condition()
        _workers.add(self)
        ending = weakref.finalize(self, self._updates.close)  # the thread ends with its owner
        ending.atexit = False  # but not before shutdown() has heard of all that it ends

    def submit(self, prompt: str | None, ids: list[int], params: SamplingParams) -> RequestOutput:
        native = params._to_native()
        request = RequestOutput(next(self._ids), prompt, ids, native.n)
        running = _Running(request, copy.copy(params), time.monotonic())
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine has been shut down")
            if self._thread is None:
                self._thread = threading.Thread(target=_run, args=(self._updates, weakref.ref(self)), name="whit-updates",
                                                daemon=True)
                self._thread.start()
                _threads.add(self._thread)
            self._running[request.request_id] = running
            request._owner = self
            try:
                running.handle = self.engine.submit(ids, native, request.request_id, self._updates)
            except BaseException:
                del self._running[request.request_id]
                request._owner = None
                raise
        return request

    def cancel(self, request: RequestOutput) -> None:
        with self._lock:
            running = self._running.get(request.request_id)
            if running is not None:
                self.engine.cancel(running.handle)

    def stats(self, timeout: float | None) -> list[dict[str, Any]]:
        with self._stats_ready:
            self._stats_ready.wait_for(lambda: len(self._stats) > 0 or not self._running, timeout)
            records = list(self._stats)
            self._stats.clear()
        return records

    def shutdown(self) -> None:
        """Ends what runs after its step and refuses what waits; returns when the thread has ended."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            running = list(self._running.values())
            for each in running:
                self.engine.cancel(each.handle)
        if thread is None or thread is threading.current_thread():
            return
        for each in running:
            with each.request._condition:
                while not each.request._done and thread.is_alive():
                    each.request._condition.wait(1)
        self._updates.close()
        thread.join()

    def take(self, update: _native.RequestUpdate) -> None:
        running = self._running.get(update.request_id)
        if running is None:  # Ctrl-C came while it was submitted
            return
        request = running.request
        try:
            request._update(lambda: self._apply(update, running))
            if update.finished:
                update.raise_error()
        except BaseException as error:  # whatever it is, the one who waits must hear of it
            running.error = running.error or error
            self.cancel(request)
        if not update.finished:
            return
        with self._stats_ready:
            self._stats.append(_record(running, update))
            if update.last:
                with self._lock:
                    del self._running[update.request_id]
            self._stats_ready.notify_all()
        if not update.last:
            return
        if self._closed and running.error is None and not any(each.length for each in request.outputs):
            request._shut_down()
        else:
            request._finish(running.error)

    def _apply(self, update: _native.RequestUpdate, running: _Running) -> None:
        request, params, output = running.request, running.params, running.request.outputs[update.index]
        context_logits = update.take_context_logits()
        if context_logits is not None:
            _show_prompt(request, params, context_logits)
        if update.token_ids and not output.token_ids and not params.exclude_input_from_output:
            output.token_ids += request.prompt_token_ids
            if params.detokenize:
                output.text += self.engine.decode(request.prompt_token_ids, params.skip_special_tokens)
        output.token_ids += update.token_ids
        if params.detokenize:
            output.text += update.text
        if params.logprobs is not None:
            output.logprobs += [_candidates(each) for each in update.logprobs]
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + sum(each.chosen.logprob for each in update.logprobs)
        logits = update.take_generation_logits()
        if logits is not None:
            running.logits.setdefault(update.index, []).append(logits)
        if update.finished:
            _end(output, update, running.logits.pop(update.index, None))


def _end(output: CompletionOutput, update: _native.RequestUpdate, logits: list[Any] | None) -> None:
    if logits is not None:
        import numpy as np

        output.generation_logits = np.concatenate(logits)
    output.stop_reason = update.stop_reason or None
    output.finish_reason = update.finish_reason


def _record(running: _Running, update: _native.RequestUpdate) -> dict[str, Any]:
    prompt = len(running.request.prompt_token_ids)
    tokens = running.request.outputs[update.index].length - (0 if running.params.exclude_input_from_output else prompt)
    return {
        "requestId": running.request.request_id,
        "promptTokens": prompt,
        "reusedTokens": update.reused_tokens,
        "generatedTokens": max(0, tokens),
        "batchSize": update.batch_size,
        "queueSeconds": update.queue_s,
        "prefillSeconds": update.prefill_s,
        "decodeSeconds": update.decode_s,
        "latencySeconds": time.monotonic() - running.start,
        "prefillTokensPerSecond": _rate(prompt - update.reused_tokens, update.prefill_s),
        "decodeTokensPerSecond": _rate(tokens - 1, update.decode_s),
        "numQueuedRequests": update.waiting,
    }


def _run(updates: _native.Updates, worker: weakref.ref[Worker]) -> None:
    # While nothing happens only a weak reference is held: an engine that nobody uses any more is freed.
    while news := updates.take():
        owner = worker()
        if owner is None:
            break
        for update in news:
            owner.take(update)
        del owner, update, news


def _show_prompt(request: RequestOutput, params: SamplingParams, logits: numpy.ndarray[Any, Any]) -> None:
    if params.return_context_logits:
        request.context_logits = logits
    if params.prompt_logprobs is not None:
        logprobs = _prompt_logprobs(logits, request.prompt_token_ids, int(params.prompt_logprobs))
        for output in request.outputs:
            output.prompt_logprobs = logprobs


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if tokens > 0 and seconds > 0 else 0.0


def _candidates(token: _native.TokenLogprobs) -> dict[int, Logprob]:
    top = {each.token_id: Logprob(each.logprob, rank) for rank, each in enumerate(token.top, 1)}
    chosen = token.chosen
    # Below the likeliest n its exact rank is not known; it is counted as the next one.
    first = {chosen.token_id: top.get(chosen.token_id, Logprob(chosen.logprob, len(top) + 1))}
    return first | top


def _prompt_logprobs(logits: numpy.ndarray[Any, Any], ids: list[int], count: int) -> list[dict[int, Logprob]]:
    import numpy as np

    result = []
    for position, token in enumerate(ids[1:]):
        row = logits[position].astype(np.float64)
        row -= row.max()
        row -= np.log(np.exp(row).sum())
        rank = int((row > row[token]).sum()) + 1
        found = {token: Logprob(float(row[token]), rank)}
        for place, candidate in enumerate(np.argsort(-row, kind="stable")[:count], 1):
            found.setdefault(int(candidate), Logprob(float(row[candidate]), place))
        result.append(found)
    return result
