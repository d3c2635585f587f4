"""Progress of long work: a bar in notebooks and terminals, nothing where output is redirected."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

ProgressCallback = Callable[[str, int, int, str, bool], Any]
"""Called with (title, done, total, detail, ended)."""


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    if shell is None:
        return False
    instance = shell.get_ipython()
    return instance is not None and instance.__class__.__name__ == "ZMQInteractiveShell"


class ProgressBar:
    """Draws ``title:  37%|███▋      | 11/30 [00:05<00:09] detail``, rewriting one line of stderr.

    In a notebook the line is a display that is updated in place; where stderr is neither, nothing
    is drawn.
    """

    WIDTH = 20

    def __init__(self, stream: Any = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._notebook = stream is None and _in_notebook()
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._display: Any = None
        self._title: str | None = None
        self._start = 0.0

    def __call__(self, title: str, done: int, total: int, detail: str, ended: bool) -> None:
        if title != self._title:
            self._title, self._start, self._display = title, time.monotonic(), None
        if self._notebook:
            self._draw_notebook(self.line(title, done, total, detail))
        elif self._terminal:
            self._stream.write("\r\x1b[K" + self.line(title, done, total, detail) + ("\n" if ended else ""))
            self._stream.flush()
        if ended:
            self._title = None

    def line(self, title: str, done: int, total: int, detail: str) -> str:
        """The text of one state."""
        share = done / total if total > 0 else 0.0
        elapsed = time.monotonic() - self._start
        left = _clock(elapsed / share - elapsed) if share > 0 else "?"
        bar = ("█" * round(share * self.WIDTH)).ljust(self.WIDTH)
        tail = f" {detail}" if detail else ""
        return f"{title}: {share:4.0%}|{bar}| {done}/{total} [{_clock(elapsed)}<{left}]{tail}"

    def _draw_notebook(self, line: str) -> None:
        from IPython.display import display  # type: ignore[import-not-found]

        content = {"text/plain": line}
        if self._display is None:
            self._display = display(content, raw=True, display_id=True)
        else:
            self._display.update(content, raw=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def callback_of(progress: bool | ProgressCallback) -> ProgressCallback | None:
    """What ``progress=`` means: True a bar, False nothing, a callable itself."""
    if progress is True:
        return ProgressBar()
    if progress is False:
        return None
    if not callable(progress):
        raise TypeError(f"progress is {progress!r}, expected True, False or a callable")
    return progress
