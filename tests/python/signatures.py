"""The package's public signatures as text, and the stub of its native module: recorded, and compared by a test.

usage: signatures.py      records both, for the package that is installed (PYTHONPATH=build/python-site)
"""
import dataclasses
import enum
import inspect
from pathlib import Path

import whit

ROOT = Path(__file__).resolve().parent.parent.parent


def members(owner, prefix):
    """One line for each public member of a class."""
    fields = {each.name for each in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else set()
    for name in sorted(set(dir(owner)) - fields):
        if name.startswith("_") and name not in ("__init__", "__await__", "__iter__", "__aiter__", "__enter__", "__exit__"):
            continue
        value = inspect.getattr_static(owner, name)
        if name not in vars(owner) and not any(name in vars(base) for base in owner.__mro__ if base.__module__.startswith("whit")):
            continue
        if isinstance(value, property):
            yield f"{prefix}.{name}: property"
        elif isinstance(value, (classmethod, staticmethod)):
            yield f"{prefix}.{name}{inspect.signature(value.__func__)}  [{type(value).__name__}]"
        elif callable(value):
            yield f"{prefix}.{name}{inspect.signature(value)}"


def describe(value, path):
    if isinstance(value, type) and issubclass(value, enum.Enum):
        yield f"{path}: enum {', '.join(each.name for each in value)}"
    elif isinstance(value, type) and issubclass(value, BaseException):
        yield f"{path}: exception of {', '.join(each.__name__ for each in value.__bases__)}"
    elif isinstance(value, type):
        yield f"{path}: class"
        yield from members(value, path)
    elif callable(value):
        yield f"{path}{inspect.signature(value)}"


def text():
    """One line for each public name."""
    from whit import plots, progress
    lines = []
    for name in whit.__all__:
        value = getattr(whit, name)
        lines += describe(value, f"whit.{name}") if not inspect.ismodule(value) else []
    for module in (whit.errors, whit.models, whit.quantization, whit.statistics, plots, progress):
        for name, value in sorted(vars(module).items()):
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__:
                lines += describe(value, f"{module.__name__}.{name}")
    return "\n".join(lines) + "\n"


def main():
    from nanobind.stubgen import StubGen
    from whit import _native
    (ROOT / "tests/data/python_api.txt").write_text(text())
    generator = StubGen(_native)
    generator.put(_native)
    (ROOT / "python/whit/_native.pyi").write_text(generator.get())


if __name__ == "__main__":
    main()
