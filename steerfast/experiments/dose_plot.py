"""Plots, with matplotlib on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from steerfast.experiments.dose import DosePoint


def plot_dose_response(
    curves: Mapping[str, Sequence[DosePoint]], title: str, path: str | Path
) -> Path:
    """One panel per direction: effect (solid) and random control (dashed) against the coefficient."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(curves), figsize=(2.6 * len(curves), 2.8), constrained_layout=True, squeeze=False
    )
    for panel, (name, points) in zip(panels[0], curves.items(), strict=True):
        doses = [point.coefficient for point in points]
        panel.axhline(0.0, color="0.85", linewidth=0.8)
        for effects, line, color, label in (
            ([p.effect for p in points], "o-", "#0b6e99", "direction"),
            ([p.control for p in points], "s--", "0.55", "random control"),
        ):
            panel.plot(doses, effects, line, color=color, markersize=3, label=label)
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_xlabel("coefficient (stream norms)", fontsize=7)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels[0][0].set_ylabel("effect (nats per pair)", fontsize=8)
    panels[0][0].legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return path
