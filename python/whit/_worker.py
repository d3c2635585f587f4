"""The thread that runs an engine's requests one after the other, and what it counts."""

from __future__ import annotations

import atexit
import itertools
import queue
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _native
from .outputs import CompletionOutput, Logprob, RequestOutput
from .sampling import SamplingParams

if TYPE_CHECKING:
    import numpy

STATS_KEPT = 1024
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _shut_down_all() -> None:
    """A thread inside the engine must not outlive the interpreter."""
    for worker in list(_workers):
        worker.shutdown()


@dataclass
class _Task:
    request: RequestOutput
    params: SamplingParams


class Worker:
    """Owns the queue of an engine; the thread is started by the first request and does not keep the engine alive."""

    def __init__(self, engine: _native.Engine) -> None:
        self.engine = engine
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._waiting: weakref.WeakSet[RequestOutput] = weakref.WeakSet()
        self._stats: deque[dict[str, Any]] = deque(maxlen=STATS_KEPT)
        self._stats_ready = threading.Condition()
        _workers.add(self)
        weakref.finalize(self, self._tasks.put, None)  # the thread ends with its owner

    def submit(self, prompt: str | None, ids: list[int], params: SamplingParams) -> RequestOutput:
        request = RequestOutput(next(self._ids), prompt, ids, params.n)
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine has been shut down")
            if self._thread is None:
                self._thread = threading.Thread(target=_run, args=(self._tasks, weakref.ref(self)), name="whit-engine",
                                                daemon=True)
                self._thread.start()
            self._waiting.add(request)
            request._owner = self
            self._tasks.put(_Task(request, params))
        return request

    def stats(self, timeout: float | None) -> list[dict[str, Any]]:
        with self._stats_ready:
            self._stats_ready.wait_for(lambda: len(self._stats) > 0 or not self._busy(), timeout)
            records = list(self._stats)
            self._stats.clear()
        return records

    def _busy(self) -> bool:
        return any(not request.finished for request in self._waiting)

    def shutdown(self) -> None:
        """Ends what runs after its step and refuses what waits; returns when the thread has ended."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            for request in self._waiting:
                request.abort()
        if thread is not None and thread is not threading.current_thread():
            self._tasks.put(None)
            thread.join()

    def run(self, task: _Task) -> None:
        request, params = task.request, task.params
        if self._closed:
            request._shut_down()
            return
        try:
            if params.return_context_logits or params.prompt_logprobs is not None:
                self._read_prompt(request, params)
            for output in request.outputs:
                self._answer(request, params, output)
            request._finish()
        except BaseException as error:  # whatever it is, the one who waits must hear of it
            request._finish(error)
        finally:
            self._waiting.discard(request)
            with self._stats_ready:
                self._stats_ready.notify_all()

    def _answer(self, request: RequestOutput, params: SamplingParams, output: CompletionOutput) -> None:
        start = time.monotonic()
        echoed_ids = [] if params.exclude_input_from_output else list(request.prompt_token_ids)
        echoed_text = ""
        if echoed_ids and params.detokenize:
            echoed_text = self.engine.decode(echoed_ids, params.skip_special_tokens)

        def on_update(text: str, token_ids: list[int]) -> bool:
            def change() -> None:
                if not output.token_ids:
                    output.token_ids += echoed_ids
                    output.text += echoed_text
                output.token_ids += token_ids
                if params.detokenize:
                    output.text += text

            request._update(change)
            return request.aborted()

        if request.aborted():
            output.finish_reason = "cancelled"
            return
        native = self.engine.generate(request.prompt_token_ids, params._to_native(output.index), on_update)
        final = native.output
        output.token_ids = echoed_ids + final.token_ids
        output.text = echoed_text + final.text if params.detokenize else ""
        output.stop_reason = final.stop_reason or None
        if params.logprobs is not None:
            output.logprobs = [_candidates(each) for each in final.logprobs]
            output.cumulative_logprob = sum(each.chosen.logprob for each in final.logprobs)
        output.generation_logits = final.take_generation_logits()
        output.finish_reason = final.finish_reason
        self._record(request, native, len(final.token_ids), start)

    def _record(self, request: RequestOutput, native: _native.RequestOutput, tokens: int, start: float) -> None:
        prompt = len(request.prompt_token_ids)
        record = {
            "requestId": request.request_id,
            "promptTokens": prompt,
            "reusedTokens": native.reused_tokens,
            "generatedTokens": tokens,
            "prefillSeconds": native.prefill_s,
            "decodeSeconds": native.decode_s,
            "latencySeconds": time.monotonic() - start,
            "prefillTokensPerSecond": _rate(prompt - native.reused_tokens, native.prefill_s),
            "decodeTokensPerSecond": _rate(tokens - 1, native.decode_s),
            "numQueuedRequests": self._tasks.qsize(),
        }
        with self._stats_ready:
            self._stats.append(record)
            self._stats_ready.notify_all()

    def _read_prompt(self, request: RequestOutput, params: SamplingParams) -> None:
        logits = self.engine.logits(request.prompt_token_ids)
        if params.return_context_logits:
            request.context_logits = logits
        if params.prompt_logprobs is not None:
            logprobs = _prompt_logprobs(logits, request.prompt_token_ids, int(params.prompt_logprobs))
            for output in request.outputs:
                output.prompt_logprobs = logprobs


def _run(tasks: queue.SimpleQueue[_Task | None], worker: weakref.ref[Worker]) -> None:
    # Between tasks only a weak reference is held: an engine that nobody uses any more is freed.
    while True:
        task = tasks.get()
        owner = worker()
        if task is None:
            break
        if owner is None:
            task.request._shut_down()
        else:
            owner.run(task)
        del owner, task
    while not tasks.empty():  # submitted before the end was asked for
        rest = tasks.get()
        if rest is not None:
            rest.request._shut_down()


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
