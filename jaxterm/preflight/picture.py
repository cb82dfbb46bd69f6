"""A preflight as a picture: memory against the chip's, collectives, FLOPs."""

import os
import pathlib

import matplotlib.figure

from jaxterm.preflight import analysis

_COLOURS = ("#4c78a8", "#72b7b2", "#eeca3b", "#b279a2")


def draw(found: analysis.Preflight, path: pathlib.Path) -> None:
    """Write a PNG."""
    figure = matplotlib.figure.Figure(figsize=(12, 4), layout="constrained")
    memory, collectives, flops = figure.subplots(1, 3)
    _memory(found, memory)
    _collectives(found, collectives)
    _flops(found, flops)
    figure.suptitle(
        f"{found.topology}, {found.num_devices} devices: {found.step_seconds:.2f} s a step at the "
        f"least, MFU {found.mfu_bound:.0%} at most (estimates from peaks)"
    )
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=150)
    os.replace(temporary, path)


def _memory(found: analysis.Preflight, axes) -> None:
    bottom = 0.0
    for (kind, num_bytes), colour in zip(found.memory.items(), _COLOURS, strict=True):
        axes.bar(0, num_bytes / 1e9, bottom=bottom, label=kind, color=colour, width=0.6)
        bottom += num_bytes / 1e9
    axes.axhline(found.capacity_bytes / 1e9, color="black", linestyle="--", label="capacity")
    axes.set(title="memory a device, GB", xticks=[], xlim=(-0.5, 1.5))
    axes.legend(frameon=False, loc="center right")


def _collectives(found: analysis.Preflight, axes) -> None:
    kinds = sorted(found.collectives.items(), key=lambda item: item[1]["bytes"])
    names = [f"{kind} ({sums['count']:,})" for kind, sums in kinds]
    axes.barh(names, [sums["bytes"] / 1e9 for _, sums in kinds], color=_COLOURS[0])
    axes.set(title=f"collectives a step: {found.collective_bytes / 1e9:,.0f} GB")


def _flops(found: analysis.Preflight, axes) -> None:
    axes.bar(
        ["model", "step"],
        [found.model_flops / 1e12, found.step_flops / 1e12],
        color=[_COLOURS[1], _COLOURS[3]],
        width=0.6,
    )
    axes.set(title=f"TFLOPs a device ({found.recompute_share:.3f} times)")
