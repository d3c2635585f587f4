"""The exceptions of the package.

Every message says what was asked, what is wrong, where, and what to do about it. Each class also
derives from the built-in exception of its meaning, so ``except ValueError`` works as expected.
Ctrl-C raises ``KeyboardInterrupt``.
"""

__all__ = [
    "WhitError",
    "InvalidArgumentError",
    "InvalidDataError",
    "NotFoundError",
    "UnsupportedError",
    "IoError",
    "ResourceError",
    "InterruptedError",
    "RequestCancelled",
]


class WhitError(Exception):
    """The base of all exceptions of this package."""


class InvalidArgumentError(WhitError, ValueError):
    """An argument is out of range."""


class InvalidDataError(WhitError, ValueError):
    """A file's content contradicts its format, its config or itself."""


class NotFoundError(WhitError, FileNotFoundError):
    """A file, tensor or key that is needed is not there."""


class UnsupportedError(WhitError, NotImplementedError):
    """Well-formed, but not something this build can do."""


class IoError(WhitError, OSError):
    """The operating system refused: disk full, permission, …"""


class ResourceError(WhitError, RuntimeError):
    """A stated limit (memory, steps, depth, length) would be passed."""


class InterruptedError(WhitError, OSError):
    """The work was ended from outside before it was done."""


class RequestCancelled(WhitError):
    """The engine was shut down before the request was done."""
