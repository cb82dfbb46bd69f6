"""The reports of `verify`, as a person reads them: one line when equal, a table when not."""

import rich.console
import rich.table

from convert import verify, verify_logits

_MAX_NAMED = 5  # tensors that are named one by one


def show(report: verify.Report) -> None:
    """Print a comparison of weights."""
    console = rich.console.Console(highlight=False, soft_wrap=True)
    size = f"{report.num_tensors} tensors, {report.num_bytes / 1e9:.2f} GB"
    for setting in report.settings:
        console.print(f"config differs in {setting}")
    table = _table(report)
    if table.row_count:
        console.print(table)
    differing = verify.differing_tensors(report)
    if report.is_equal:
        how = " after rounding to the narrower dtype" if report.is_rounded else ""
        console.print(f"equal{how}: {size}")
        return
    names = [f"{name} ({count} values)" for name, count in differing[:_MAX_NAMED]]
    more = f" and {len(differing) - _MAX_NAMED} more" if len(differing) > _MAX_NAMED else ""
    console.print(f"DIFFERENT: {len(differing)} of {size}: {', '.join(names)}{more}")


def show_logits(report: verify_logits.LogitsReport, *, is_equal: bool) -> None:
    """Print a comparison of logits, and whether it passes."""
    print(
        f"logits{'' if is_equal else ' DIFFERENT'}: max abs difference {report.max_abs:.3g}, "
        f"KL divergence {report.mean_kl:.3g} mean, {report.max_kl:.3g} max (nats a token; "
        f"rounded weights may make {verify_logits.MAX_ROUNDING_KL:g})"
    )


def _table(report: verify.Report) -> rich.table.Table:
    """The parameters in which there is any difference, that of rounding included."""
    table = rich.table.Table("parameter", "tensors that differ", "max abs", "max rel")
    for leaf in report.leaves:
        if leaf.differing or leaf.max_abs:
            table.add_row(
                leaf.name, str(len(leaf.differing)), f"{leaf.max_abs:.3g}", f"{leaf.max_rel:.3g}"
            )
    return table
