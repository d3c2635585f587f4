"""What quantization did to a model: choices and losses by group of linears, weights and activations as arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InvalidDataError, NotFoundError, UnsupportedError

if TYPE_CHECKING:
    import numpy

    from .engine import LLMEngine, Prompt

    FloatArray = numpy.ndarray[Any, numpy.dtype[numpy.float64]]

_COLUMNS = ("layer", "name", "algorithm", "exponent", "clipped", "rtn_error", "error", "note")


@dataclass(frozen=True)
class QuantizationReport:
    """Of each scaling group (linears that read one value), in the order of the layers.

    rtn_error and error are squared output errors over the output's energy on held-out tokens, under
    the numerics that run: of plain rounding, and of what was chosen. clipped is the share of weight
    groups whose range was shrunk; exponent the strength that the search chose (NaN: none).
    """

    mode: str
    scheme: dict[str, Any]
    head: str
    calibration: dict[str, Any]
    groups: list[dict[str, Any]]

    @classmethod
    def of_engine(cls, directory: str | os.PathLike[str]) -> QuantizationReport:
        """Reads it from an engine directory."""
        path = Path(directory) / "engine.json"
        if not path.is_file():
            raise UnsupportedError(f"{directory} is no engine directory: an unquantized model has no quantization report")
        try:
            manifest = json.loads(path.read_text("utf-8"))
            groups = [cls._group(each) for each in manifest.get("report", [])]
            return cls(manifest["mode"], manifest["scheme"], manifest["head"], manifest.get("calibration", {}), groups)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidDataError(f"{path} is damaged: {error!r}; build the engine again") from None

    @staticmethod
    def _group(entry: dict[str, Any]) -> dict[str, Any]:
        name = entry["name"]
        parts = name.split(".")
        layer = int(parts[2]) if parts[:2] == ["model", "layers"] and len(parts) > 2 and parts[2].isdigit() else -1
        exponent = entry.get("exponent")
        return {"layer": layer, "name": name, "algorithm": entry.get("algorithm", ""),
                "exponent": float("nan") if exponent is None else float(exponent),
                "clipped": float(entry.get("clipped") or 0.0), "rtn_error": float(entry.get("rtn_error") or 0.0),
                "error": float(entry.get("error") or 0.0), "note": entry.get("note") or ""}

    def to_dict(self) -> dict[str, list[Any]]:
        """Columns by name, for ``pandas.DataFrame(report.to_dict())``."""
        return {column: [group[column] for group in self.groups] for column in _COLUMNS}

    def array(self, column: str) -> FloatArray:
        """One numeric column as float64 [groups]: layer, exponent, clipped, rtn_error or error."""
        import numpy as np

        if column not in ("layer", "exponent", "clipped", "rtn_error", "error"):
            raise ValueError(f"{column!r} is no numeric column; choose layer, exponent, clipped, rtn_error or error")
        return np.array([group[column] for group in self.groups], dtype=np.float64)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.groups)


def activation_statistics(engine: LLMEngine, prompts: Sequence[Prompt],
                          linears: Sequence[str] | None = None) -> dict[str, dict[str, FloatArray]]:
    """What the inputs of linears look like over some prompts.

    For each linear (Hugging Face module path; None: all of the decoder): mean_abs, max_abs and std,
    float64 [K] each, over all tokens. Outlier channels are those whose max_abs stands out.
    """
    import numpy as np

    known = [name[: -len(".input")] for name in engine.tap_names() if name.endswith(".input")]
    names = known if linears is None else list(linears)
    for name in names:
        if name not in known:
            raise NotFoundError(f"{name} is no linear of the model's decoder; weight_names() lists them")
    count = 0
    sums: dict[str, Any] = {}
    for prompt in prompts:
        states = engine.hidden_states(prompt, [name + ".input" for name in names])
        for name in names:
            rows = states[name + ".input"].astype(np.float64)
            total = sums.setdefault(name, {"abs": 0.0, "max": 0.0, "sum": 0.0, "square": 0.0})
            total["abs"] += np.abs(rows).sum(axis=0)
            total["max"] = np.maximum(total["max"], np.abs(rows).max(axis=0))
            total["sum"] += rows.sum(axis=0)
            total["square"] += np.square(rows).sum(axis=0)
        count += len(rows) if names else 0
    if count == 0:
        raise ValueError("no prompts were given: there is nothing to take statistics of")
    return {name: {"mean_abs": total["abs"] / count, "max_abs": total["max"],
                   "std": np.sqrt(np.maximum(total["square"] / count - np.square(total["sum"] / count), 0.0))}
            for name, total in sums.items()}


def weight_error(engine: LLMEngine, reference: LLMEngine, module: str) -> dict[str, Any]:
    """How far a linear's weight is from the reference model's.

    Relative Frobenius error, largest difference, and mean squared error by output row, float64 [N].
    AWQ and SmoothQuant move factors between a linear and what is before it: their weights differ
    from the reference by these too, so compare outputs (logits, hidden_states) there.
    """
    import numpy as np

    ours, theirs = engine.weight(module).astype(np.float64), reference.weight(module).astype(np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{module} is {ours.shape} here and {theirs.shape} in the reference: they are different models")
    delta = ours - theirs
    return {"relative_error": float(np.linalg.norm(delta) / max(np.linalg.norm(theirs), np.finfo(np.float64).tiny)),
            "max_abs_error": float(np.abs(delta).max()), "row_mse": np.square(delta).mean(axis=1)}
