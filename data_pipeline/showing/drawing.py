"""How our pictures look: one style, colours that all eyes tell apart, bars counted beforehand.

Only what matplotlib's users would expect is drawn: names stand as they are, whatever `$` or `_`
means to matplotlib, and the settings of the machine's user do not matter.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline import storage
from data_pipeline.showing import visible

if TYPE_CHECKING:  # slow to import, and only a drawing needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's muted colours, told apart by colour-blind eyes and in grey.
COLORS = ("#332288", "#88ccee", "#44aa99", "#ddcc77", "#cc6677", "#117733", "#999933", "#aa4499")
OTHERS, INK = "#b8b8b8", "#222222"
MAIN, SECOND = COLORS[0], COLORS[4]
NUM_BINS = 60

_MAX_NAME = 26  # characters
_WIDE, _NARROW, _HEIGHT = 8.4, 4.2, 2.8  # inches; beside its panels a wide figure has a legend
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.75, 0.15, 0.4, 0.5  # inches; measuring the texts would be slow
_LEGEND = 2.3
_STYLE: Any = {
    "font.size": 9,
    "text.parse_math": False, "text.color": INK, "axes.labelcolor": "#444444",
    "axes.edgecolor": "#999999", "xtick.color": "#555555", "ytick.color": "#555555",
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#e4e4e4", "grid.linewidth": 0.8,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "legend.frameon": False, "legend.fontsize": 8, "legend.handlelength": 1.2,
}  # fmt: skip


@contextlib.contextmanager
def style() -> Iterator[None]:
    """What is made inside has our look."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def figure(
    title: str,
    *,
    x: str = "",
    y: str = "",
    panels: int = 1,
    legend: bool = False,
    height: float = _HEIGHT,
    left: float = _LEFT,
) -> tuple["Figure", Any]:
    """A figure and its panels, one above the other with a common x axis.

    Args:
        title: above the first panel.
        x: label of the last panel.
        y: label of the first panel.
        panels: their number.
        legend: leave room for one at the right.
        height: inches.
        left: inches for the labels of y.
    """
    from matplotlib.figure import Figure

    width = _WIDE if legend or left > _LEFT else _NARROW
    made = Figure(figsize=(width, height))
    axes = made.subplots(panels, sharex=True)
    made.subplots_adjust(
        left=left / width,
        right=1 - (_LEGEND if legend else _RIGHT) / width,
        bottom=_BOTTOM / height,
        top=1 - _TOP / height,
        hspace=0.12,
    )
    first, last = np.atleast_1d(axes)[[0, -1]]
    first.set(title=title, ylabel=y)
    last.set_xlabel(x)
    thousands(first.yaxis)
    return made, axes


def write(figures: Mapping[str, "Figure"], folder: storage.Path) -> dict[str, bytes]:
    """Write each figure as FOLDER/NAME.png; returns the same bytes by name."""
    storage.make_folder(folder)
    with style(), warnings.catch_warnings():  # some texts are made only when they are drawn
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it
        pictures = {name: _png(drawn) for name, drawn in figures.items()}
    for name, png in pictures.items():
        with storage.write_through(folder / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    return pictures


def _png(drawn: "Figure") -> bytes:
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def name(text: str) -> str:
    """A name as it is read, cut where it is long; matplotlib would hide one that begins with _."""
    shown = visible.line(text, max_characters=_MAX_NAME)
    return f" {shown}" if shown.startswith("_") else shown


def thousands(axis: Any) -> None:
    """Numbers of an axis as 12,000."""
    from matplotlib import ticker

    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.10g}"))


def log_scale(axes: "Axes", low: float, high: float) -> None:
    """A logarithmic x axis, told at 1, 10, ...; where there are few of them at 2 and 5 too."""
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    thousands(axes.xaxis)


def whole_numbers(axis: Any) -> None:
    """No ticks between whole numbers."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.MaxNLocator(integer=True))
    thousands(axis)


def bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each value; those outside are in the first or last."""
    return np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)


def whole_edges(top: int) -> np.ndarray:
    """Edges of at most NUM_BINS bins of the whole numbers from 1 to at least `top`."""
    width = -(-top // NUM_BINS)
    return 0.5 + np.arange(0, top + width, width)


def histogram(axes: "Axes", values: np.ndarray, edges: np.ndarray) -> None:
    """Draw how many values are in each bin."""
    heights = np.bincount(bins(values, edges), minlength=len(edges) - 1)
    axes.stairs(heights, edges, fill=True, color=MAIN)


def stack(
    axes: "Axes", heights: np.ndarray, edges: np.ndarray, labels: Sequence[str], *, others: bool
) -> None:
    """Draw heights on one another, and name them in the order in which they are seen.

    Args:
        axes: where.
        heights: [S, bins].
        edges: [bins + 1].
        labels: S names.
        others: the last is what no label of its own has.
    """
    from matplotlib.patches import StepPatch

    colors = (*COLORS[: len(labels) - others], OTHERS)
    tops = np.cumsum(heights, 0)
    steps = [
        StepPatch(top, edges, baseline=top - height, facecolor=color, linewidth=0)
        for top, height, color in zip(tops, heights, colors, strict=False)
    ]
    for step in steps:
        axes.add_artist(step)  # `stairs` would measure each, which is slow
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.05 * max(tops[-1].max(), 1e-9)))
    axes.legend(steps[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))
