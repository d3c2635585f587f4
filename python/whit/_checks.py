"""Checks of arguments, with messages that name what was given and what is possible."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping
from typing import Any

INT64_MAX = 2**63 - 1


def refuse_unknown(what: str, given: Iterable[Any], known: Iterable[str]) -> None:
    """Raises TypeError for the first of ``given`` that is not in ``known``, by its name."""
    known = sorted(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]!r}" if close else ""
            raise TypeError(f"{what} has no {name!r}{hint}; it takes {', '.join(known)}")


def integer(name: str, value: Any, least: int = -INT64_MAX - 1, most: int = INT64_MAX) -> int:
    """``value`` as an int within bounds; TypeError or ValueError naming it otherwise."""
    if isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected an integer") from None
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}, expected {least} … {most}")
    return number


def real(name: str, value: Any) -> float:
    """``value`` as a float; TypeError naming it otherwise."""
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name} is {value!r}, expected a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, expected a number") from None
    except OverflowError:
        raise ValueError(f"{name} is too large a number") from None


def text(name: str, value: Any) -> str:
    """``value`` as a str that has a UTF-8 form; TypeError or ValueError naming it otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, expected a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds a lone surrogate at position {error.start}") from None
    return value


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool; TypeError naming it otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected True or False")
    return value


def token_ids(name: str, value: Any) -> list[int]:
    """A sequence of token ids as a list of int32."""
    if isinstance(value, (str, bytes)) or isinstance(value, Mapping):
        raise TypeError(f"{name} is {value!r}, expected token ids")
    try:
        items = list(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected token ids") from None
    return [integer(f"{name}[{i}]", item, 0, 2**31 - 1) for i, item in enumerate(items)]


def only_default(what: str, values: Mapping[str, Any], defaults: Mapping[str, Any], why: str) -> None:
    """Raises UnsupportedError for the first value that differs from its default."""
    from .errors import UnsupportedError

    for name, default in defaults.items():
        value = values[name]
        if value is not default and value != default:
            raise UnsupportedError(f"{what}: {name}={value!r} is not supported ({why}); leave it at {default!r}")
