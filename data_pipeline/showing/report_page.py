"""report.html: a plan on one page that needs nothing else, neither a network nor another file.

Names of sources and stages, and settings, are text of unknown origin: the template escapes them.
"""

import base64
import dataclasses
import json
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from data_pipeline import storage
from data_pipeline.showing import visible

FILE = "report.html"

_TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")
_MAX_SETTING = 400  # characters
_MAX_NAMED = 8  # sources in a warning
_MANY_EPOCHS = 4  # of one source in one stage

# What each picture shows, in the order of the page.
_PICTURES = {
    "funnel": (
        "From the corpus to the plan",
        "Rows of the corpus that each step left, and how many it took away.",
    ),
    "curriculum": (
        "What is trained when",
        "Which sources the tokens of a step come from; below, how long, of how many turns and how "
        "difficult its examples are, beside the mean of the plan. Upright lines begin a stage.",
    ),
    "balance": (
        "Balance of attention over the shards",
        "A step lasts as long as its busiest shard: 1 is perfectly even, and what lies above the "
        "dotted line costs time. Each point is the worst of its steps.",
    ),
    "tokens_by_source": (
        "Length of the examples",
        "Tokens of each example, on a logarithmic scale. Those right of a dotted line are longer "
        "than a row.",
    ),
    "turns_by_source": ("Turns of the examples", "Turns of each example, of all roles."),
    "loss_share": (
        "Share of an example that is trained",
        "Loss tokens are what the model itself wrote; all else is read, not learnt.",
    ),
    "fill": ("Fill of the rows", "How much of a row holds tokens; the rest is padding."),
    "segments_per_row": ("Segments of the rows", "Examples, or parts of them, that share a row."),
    "attention_fill": (
        "Attention work of the rows",
        "What a row's attention costs, beside that of a single segment as long as the row.",
    ),
    "overlong": (
        "Examples longer than a row",
        "The tokens of the examples that are longer than a row, by what is done with them.",
    ),
}

# The lines of the table: what it is called, and how it is found in the figures of a stage.
_LINES: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("steps", lambda f: f"{f['steps']:,}"),
    ("rows", lambda f: f"{f['rows']:,}"),
    ("empty rows that fill a batch", lambda f: f"{f['padding_rows']:,}"),
    ("segments", lambda f: f"{f['segments']:,}"),
    ("fill of the rows", lambda f: _percent(f["fill"])),
    ("tokens in all", lambda f: f"{f['tokens_total']:,}"),
    ("tokens trained", lambda f: f"{f['tokens_trained']:,}"),
    ("tokens lost", lambda f: f"{f['tokens_lost']['total']:,}"),
    ("tokens repeated as context", lambda f: f"{f['tokens_carried']:,}"),
    ("loss tokens trained", lambda f: f"{f['loss_tokens']:,}"),
    ("loss tokens lost", lambda f: f"{f['loss_tokens_lost']['total']:,}"),
    ("examples longer than a row", lambda f: f"{f['overlong']['examples']:,}"),
    ("attention work", lambda f: f"{f['attention_work']:.3g}"),
    ("busiest shard / mean, on average", lambda f: f"{f['imbalance_mean']:.3f}"),
    ("busiest shard / mean, at worst", lambda f: f"{f['imbalance_max']:.3f}"),
    ("the same dealt at random", lambda f: f"{f['imbalance_random_max']:.3f}"),
)

_LOST_BECAUSE = {
    "split": "in parts of split examples that hold nothing to learn",
    "truncated": "cut off examples longer than a row",
    "dropped": "in examples longer than a row, which are left out",
    "remainder": "in rows that make no whole batch",
}


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A picture as the template writes it."""

    title: str
    explanation: str
    base64: str
    width: int  # pixels
    height: int


def write(pictures: Mapping[str, bytes], report: Mapping[str, Any], folder: storage.Path) -> None:
    """Write FOLDER/report.html, atomically.

    Args:
        pictures: PNG files by name, as `plan_pictures.write` returns them.
        report: the figures of report.json.
        folder: of the plan.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    stages = report["stages"]
    columns = [*stages, report] if len(stages) > 1 else [report]
    page = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        plan_hash=report["plan_hash"],
        facts=_facts(report),
        warnings=warnings(report),
        columns=[*(visible.line(stage["name"]) for stage in stages[: len(columns) - 1]), "all"],
        rows=[(name, [told(figures) for figures in columns]) for name, told in _LINES],
        settings=[_setting(*each) for each in _settings(report).items()],
        pictures=[
            _picture(*_PICTURES[name], pictures[name]) for name in _PICTURES if name in pictures
        ],
    )
    with storage.write_through(folder / FILE) as temporary:
        temporary.write_text(page, "utf-8")


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What of a plan deserves attention, in plain words."""
    found = []
    for kind in ("tokens", "loss_tokens"):
        lost, total = report[f"{kind}_lost"], max(1, report[f"{kind}_total"])
        for reason, why in _LOST_BECAUSE.items():
            if num := lost.get(reason, 0):
                share = _percent(num / total, digits=3)
                name = kind.replace("_", " ").capitalize()
                found.append(f"{name} lost: {num:,} ({share}), {why}.")
    if (left := report["never_drawn"])["examples"]:
        named = ", ".join(map(visible.line, left["sources"][:_MAX_NAMED]))
        found.append(
            f"Never drawn by any stage: {left['examples']:,} examples, {left['tokens']:,} tokens"
            + (f"; of these sources nothing is trained: {named}." if named else ".")
        )
    for stage in report["stages"]:
        for source, drawn in stage["sources"].items():
            if drawn["epochs"] > _MANY_EPOCHS:
                found.append(
                    f"Stage {visible.line(stage['name'])} trains the source {visible.line(source)} "
                    f"{drawn['epochs']:,.1f} times over."
                )
    if cut := report["overlong"].get("turns_cut", 0):
        found.append(
            f"Cuts inside a turn that is longer than a row: {cut:,}; a longer --row_length would "
            "keep such turns whole."
        )
    if report["fill"] < 0.99:
        found.append(
            f"Rows are filled to {_percent(report['fill'])} only, and padding costs time; a larger "
            "--window_rows fills them better, more examples too."
        )
    if report["imbalance_max"] > 1.05:
        found.append(
            f"In the worst step the busiest shard has {report['imbalance_max']:.2f} times the mean "
            f"attention work (on average {report['imbalance_mean']:.2f} times), and the others "
            "wait for it; more rows a shard even it out."
        )
    return found


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    kept = report["tokens_trained"] / max(1, report["tokens_total"])
    return [
        ("steps", f"{report['steps']:,}"),
        ("tokens a row", f"{report['row_length']:,}"),
        ("rows a step", f"{report['global_batch_size']:,}"),
        ("examples", f"{report['examples']:,}"),
        ("of the drawn tokens trained", _percent(kept)),
        ("of the rows filled", _percent(report["fill"])),
    ]


def _percent(share: float, *, digits: int = 2) -> str:
    """A share; only what is whole is shown as 100%, and only nothing as 0%."""
    shown = round(100 * share, digits)
    if share < 1 and shown == 100:
        return f">{100 - 10**-digits:.{digits}f}%"
    if share > 0 and shown == 0:
        return f"<{10**-digits:.{digits}f}%"
    return "100%" if share == 1 else f"{shown:.{digits}f}%"


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the plan, and what each of its stages is made of."""
    stages = {f"stage {spec['name']}": spec for spec in report.get("specs", ())}
    return dict(report.get("options", {})) | stages


def _setting(name: str, value: Any) -> tuple[str, str]:
    told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return visible.line(name), visible.line(told, max_characters=_MAX_SETTING)


def _picture(title: str, explanation: str, png: bytes) -> _Picture:
    width, height = struct.unpack_from(">II", png, 16)  # of the header chunk, the first
    return _Picture(title, explanation, base64.b64encode(png).decode(), width, height)
