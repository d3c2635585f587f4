"""Plots, where matplotlib is installed (``pip install whit[plots]``). Each function returns the axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import UnsupportedError
from .statistics import QuantizationReport


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("matplotlib is not installed; pip install matplotlib") from None
    return Figure(figsize=(8, 4), layout="constrained").subplots()


def plot_errors(report: QuantizationReport, axes: Any = None) -> Any:
    """Each group's output error: of plain rounding, and of what was chosen instead. One point a group, log scale."""
    axes = _axes(axes)
    places = range(len(report))
    for column, label, marker in (("rtn_error", "plain rounding", "x"), ("error", f"{report.mode}", ".")):
        axes.semilogy(places, report.array(column).clip(min=1e-12), marker, label=label)
    axes.set(xlabel="scaling group, in the order of the layers", ylabel="squared output error / energy")
    axes.legend()
    return axes


def plot_outliers(before: Mapping[str, Any], after: Mapping[str, Any] | None = None, axes: Any = None,
                  title: str = "") -> Any:
    """Largest |activation| of each channel of one linear's input, sorted: before and after smoothing.

    before, after  values of activation_statistics(engine, prompts)[linear], of the original and of
                   the SmoothQuant or AWQ engine
    """
    axes = _axes(axes)
    for statistics, label in ((before, "before"), (after, "after")):
        if statistics is not None:
            axes.semilogy(sorted(statistics["max_abs"], reverse=True), label=label)
    axes.set(xlabel="channel, sorted", ylabel="largest |activation|", title=title)
    axes.legend()
    return axes


def plot_pareto(points: Sequence[tuple[str, float, float]], axes: Any = None,
                cost_label: str = "bits per weight", loss_label: str = "loss") -> Any:
    """Recipes by (name, cost, loss), both better when smaller; the line joins those that no other beats in both."""
    axes = _axes(axes)
    for name, cost, loss in points:
        axes.plot(cost, loss, "o", color="tab:blue")
        axes.annotate(name, (cost, loss), textcoords="offset points", xytext=(5, 5))
    front = pareto_front(points)
    axes.plot([cost for _, cost, _ in front], [loss for _, _, loss in front], "-", color="tab:orange")
    axes.set(xlabel=cost_label, ylabel=loss_label)
    return axes


def pareto_front(points: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Those of (name, cost, loss) for which no other is as cheap and better, or cheaper and as good, by cost."""
    front: list[tuple[str, float, float]] = []
    for point in sorted(points, key=lambda each: (each[1], each[2])):
        if not front or point[2] < front[-1][2]:
            front.append(point)
    return front
