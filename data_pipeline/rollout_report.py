"""What a rollout tells: how its trials ended, and whether the serving was fast enough for them."""

import collections
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich import table as rich_table

from data_pipeline import rollout_options, trials

FILE = "report.json"
_TIMEOUT = "AgentTimeoutError"
_SLOW_SHARE = 0.5  # of the agent's time spent waiting: more is the server's doing


def make(results: Iterable[trials.Trial], *, num_wanted: int) -> dict[str, Any]:
    """The report of the trials, which are looked at one by one.

    Args:
        results: the trials that have ended.
        num_wanted: how many there should be.
    """
    rewards, failures = collections.Counter[str](), collections.Counter[str]()
    by_type = collections.Counter[str]()
    waiting, seconds = [], []  # shares of the agents' time; seconds of a request
    tokens_in = tokens_out = out_of_time = num = 0
    dollars = 0.0
    for trial in results:
        num += 1
        failures[trial.failure] += 1
        if trial.exception:
            by_type[f"{trial.exception} ({trial.failure})"] += 1
        out_of_time += trial.exception == _TIMEOUT
        rewards["none" if trial.reward is None else f"{trial.reward:g}"] += 1
        tokens_in += trial.input_tokens or 0
        tokens_out += trial.output_tokens or 0
        dollars += trial.cost_usd or 0
        if trial.waiting_s is not None and trial.agent_s:
            waiting.append(min(1.0, trial.waiting_s / trial.agent_s))
            seconds.append(trial.waiting_s / max(1, trial.num_requests))
    return {
        "wanted": num_wanted,
        "ended": num,
        "failures": {str(f): failures[f] for f in trials.Failure if failures[f]},
        "exceptions": dict(by_type.most_common()),
        "rewards": dict(sorted(rewards.items())),
        "out_of_time": out_of_time,
        "waiting_share": round(statistics.median(waiting), 3) if waiting else None,
        "request_s": round(statistics.median(seconds), 3) if seconds else None,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "cost_usd": dollars,
    }


def totals(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the report that do not differ between equal runs by the clock alone."""
    timed = ("waiting_share", "request_s")
    return {name: value for name, value in report.items() if name not in timed}


def table(report: Mapping[str, Any]) -> rich_table.Table:
    """How the trials ended."""
    shown = rich_table.Table(title="rollout", title_justify="left")
    shown.add_column("")
    shown.add_column("trials", justify="right")
    shown.add_row("wanted", f"{report['wanted']:,}")
    shown.add_row("ended", f"{report['ended']:,}", style="bold", end_section=True)
    for reward, num in report["rewards"].items():
        shown.add_row(f"reward {reward}", f"{num:,}")
    shown.add_section()
    for exception, num in report["exceptions"].items():
        shown.add_row(exception, f"{num:,}")
    shown.add_section()
    shown.add_row("out of the agent's time", f"{_share(report, 'out_of_time'):.1%}")
    if report["waiting_share"] is not None:
        shown.add_row("median share of it spent waiting", f"{report['waiting_share']:.0%}")
        shown.add_row("median seconds of a request", f"{report['request_s']:.1f}")
    shown.add_row(
        "tokens read / written", f"{report['input_tokens']:,} / {report['output_tokens']:,}"
    )
    if report["cost_usd"]:
        shown.add_row("dollars", f"{report['cost_usd']:,.2f}")
    return shown


def warnings(report: Mapping[str, Any], options: rollout_options.RolloutOptions) -> Iterator[str]:
    """What may be amiss, and the way out."""
    share = _share(report, "out_of_time")
    if share > options.timeout_warning_share:
        told = f"{share:.0%} of the trials ran out of the agent's time"
        if (report["waiting_share"] or 0) > _SLOW_SHARE:
            yield (
                f"{told}, and agents spent {report['waiting_share']:.0%} of it waiting for the "
                f"model ({report['request_s']:.0f} s a request): lower --concurrency="
                f"{options.concurrency} or serve faster, then raise --agent_timeout_multiplier="
                f"{options.agent_timeout_multiplier:g}"
            )
        else:
            yield (
                f"{told}, which they spent in the shell rather than waiting for the model: set "
                f"--max_turns, or raise --agent_timeout_multiplier="
                f"{options.agent_timeout_multiplier:g}"
            )


def refuse_failures(
    report: Mapping[str, Any],
    options: rollout_options.RolloutOptions,
    output_dir: pathlib.Path,
) -> None:
    """ValueError where too many trials ended by no doing of their agent."""
    failed = {f: report["failures"].get(f, 0) for f in map(str, trials.DONE_AGAIN)}
    missing = report["wanted"] - report["ended"]
    num = sum(failed.values()) + missing
    if num <= options.max_failed_share * report["wanted"]:
        return
    told = [f"{n} {failure}" for failure, n in failed.items() if n]
    told += [f"{missing} not ended"] if missing else []
    raise ValueError(
        f"{num} of {report['wanted']} trials have no result of the agent ({', '.join(told)}), more "
        f"than --max_failed_share={options.max_failed_share:g}; see {output_dir / 'trials'}/*/"
        "exception.txt. The same command does them again, a larger share accepts them"
    )


def _share(report: Mapping[str, Any], name: str) -> float:
    return report[name] / report["ended"] if report["ended"] else 0.0
