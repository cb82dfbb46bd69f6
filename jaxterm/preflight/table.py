"""A preflight as tables in the terminal."""

from collections.abc import Iterable, Mapping, Sequence

import rich.console
import rich.table

from jaxterm.preflight import analysis, chips, search

_GB = 1e9


def show(found: analysis.Preflight, console: rich.console.Console) -> None:
    """Memory, collectives, work and time of a step."""
    mesh = " ".join(f"{axis}={size}" for axis, size in found.mesh.items() if size > 1)
    console.print(f"{found.topology}: {found.num_devices} devices, {mesh or 'no axis cut'}")
    console.print(_memory(found), _collectives(found), sep="\n")
    console.print(
        f"FLOPs a device and step: {found.step_flops / 1e12:,.0f} T, the model's own "
        f"{found.model_flops / 1e12:,.0f} T: {found.recompute_share:.3f} times "
        "(rows counted as one segment, all of it trained)"
    )
    console.print(
        f"estimate from peaks: {found.step_seconds:.2f} s a step at the least "
        f"(compute {found.compute_seconds:.2f} s, collectives {found.collective_seconds:.2f} s, "
        f"the host's memory {found.host_seconds:.2f} s), "
        f"so MFU {found.mfu_bound:.0%} and {found.tokens_per_second_bound:,.0f} tokens/s at most"
    )
    if found.unknown_loops:
        console.print(f"counted once, their length is not known: {', '.join(found.unknown_loops)}")
    if not found.fits:
        console.print("does not fit", style="red")


def _memory(found: analysis.Preflight) -> rich.table.Table:
    share = found.peak_bytes / found.capacity_bytes
    table = _table("memory of a device", "GB")
    for kind, num_bytes in found.memory.items():
        table.add_row(kind, f"{num_bytes / _GB:,.2f}")
    table.add_section()
    table.add_row("peak", f"{found.peak_bytes / _GB:,.2f}")
    table.add_row(f"capacity ({share:.0%} used)", f"{found.capacity_bytes / _GB:,.2f}")
    if found.host_bytes:
        table.add_row("in the host's memory", f"{found.host_bytes / _GB:,.2f}")
    return table


def _collectives(found: analysis.Preflight) -> rich.table.Table:
    table = _table("collectives of a step", "times", "GB", "GB sent")
    for kind, sums in sorted(found.collectives.items(), key=lambda item: -item[1]["bytes"]):
        table.add_row(
            kind,
            f"{sums['count']:,}",
            f"{sums['bytes'] / _GB:,.2f}",
            f"{sums['wire_bytes'] / _GB:,.2f}",
        )
    table.add_section()
    table.add_row("all", "", f"{found.collective_bytes / _GB:,.2f}", "")
    return table


def show_ranking(ranking: Sequence[search.Tried], console: rich.console.Console) -> None:
    """What a search tried, the best first."""
    table = _table("settings", "peak GB", "recompute", "step s (estimate)", "MFU bound")
    for tried in ranking:
        if tried.found is None:
            table.add_row(tried.label, tried.fault, "", "", "")
            continue
        table.add_row(
            tried.label,
            f"{tried.found.peak_bytes / _GB:,.1f}",
            f"{tried.found.recompute_share:.3f}",
            f"{tried.seconds:.2f}",
            f"{tried.found.mfu_bound:.0%}",
        )
    console.print(table)
    if ranking and ranking[0].found and ranking[0].found.fits:
        console.print("use: " + " ".join(ranking[0].flags), markup=False)


def show_chips(
    known: Iterable[chips.Chip],
    topologies: Mapping[str, Sequence[str]],
    console: rich.console.Console,
) -> None:
    """The generations, and pods of each."""
    table = _table("device", "HBM GB", "TFLOP/s", "HBM GB/s", "links GB/s", "for example")
    for chip in known:
        table.add_row(
            chip.name,
            f"{chip.hbm_bytes / _GB:,.1f}",
            f"{chip.flops / 1e12:,.0f}",
            f"{chip.hbm_bytes_per_s / _GB:,.0f}",
            f"{chip.link_bytes_per_s / _GB:,.0f}",
            " ".join(topologies[chip.name]),
        )
    console.print(table)


def _table(first: str, *others: str) -> rich.table.Table:
    table = rich.table.Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name == "for example" else "right")
    return table
