"""ATIF, the Agent Trajectory Interchange Format: the files of a trial -> conversations to train on.

A trajectory is one linear history. Each reply of the agent ends an episode, whose conversation is
all up to it; those of one file are prefixes of each other, so only the last is made. A history that
was summarised goes on in a continuation, and leaves the conversations of the subagents that wrote
the summary. All of it reads as in Harbor's `traces export`: system messages are the user's, the
reasoning stands before the reply in <think>, tool calls behind it, what a reply brought about is
the user's answer to it. Two things are added. Turns that a file copies from an earlier one, which
Harbor counts no episode for, are named, so that none is trained twice; and a message of several
parts keeps all its text, where Harbor keeps the first.

The files lie where the agent's shell may have written: they are opened without following links, and
a name that they hold is used only when it is that of a trajectory beside them.
"""

import dataclasses
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline import records, trials

MAIN = "main"  # the history of the agent itself, of the conversations that a trial leaves
FILE = "trajectory.json"

NO_FILE = "no trajectory"
DAMAGED = "damaged trajectory"
NO_REPLY = "no reply of the agent"
MEDIA = "images or audio in the trajectory"
LOST_CONTINUATION = "lost continuation"
LOST_SUBAGENT = "lost trajectory of a subagent"

_CONTINUATION = re.compile(r"trajectory\.cont-\d+\.json")
_SUBAGENT = re.compile(r"trajectory\.([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\.json")
_MAX_BYTES = 1 << 30  # token ids and log-probabilities of a long session; more is no trajectory
_MEDIA_TYPES = ("image", "audio")


class TrajectoryError(ValueError):
    """A trajectory that no conversation can be made of.

    Attributes:
        reason: one of the constants above, to count by.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """A conversation up to a reply of the agent.

    Attributes:
        source: MAIN, or the name of a subagent, such as summarization-1-summary.
        number: that Harbor gives the episode in its trial; 0 for a subagent's.
        collapsed: how many episodes before it are its prefixes.
        copied_turns: the assistant turns that stand in an earlier file, where they are trained.
        agent, model: as the file says; empty where it does not.
        input_tokens, output_tokens, cost_usd: of the replies that are the file's own.
    """

    source: str
    number: int
    collapsed: int
    messages: tuple[records.Message, ...]
    copied_turns: tuple[int, ...]
    agent: str
    model: str
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None


@dataclasses.dataclass(frozen=True)
class Session:
    """What the files of a trial come to: the agent's own history first, then its subagents'."""

    episodes: tuple[Episode, ...]
    faults: tuple[str, ...]  # LOST_...: what could not be read beside it


def read_session(agent_dir: pathlib.Path, *, subagents: bool = True) -> Session:
    """The conversations of a trial.

    Args:
        agent_dir: the folder `agent` of the trial.
        subagents: with the conversations that summarised the history.

    Raises:
        TrajectoryError: the agent's own trajectory is missing, damaged or without a reply.
    """
    faults: list[str] = []
    episodes = list(_main_episodes(agent_dir, faults))
    if not episodes:
        raise TrajectoryError(NO_REPLY, str(agent_dir / FILE))
    if subagents:
        episodes += _subagent_episodes(agent_dir, faults)
    return Session(tuple(episodes), tuple(faults))


def _main_episodes(agent_dir: pathlib.Path, faults: list[str]) -> Iterator[Episode]:
    name, number, seen = FILE, 0, set[str]()
    while name:
        seen.add(name)
        try:
            trajectory = _read(agent_dir, name)
            episode = _last_episode(trajectory, first_number=number)
        except TrajectoryError:
            if name == FILE:
                raise
            faults.append(LOST_CONTINUATION)
            return
        if episode:
            yield episode
            number = episode.number + 1
        following = trajectory.get("continued_trajectory_ref")
        name = following if isinstance(following, str) else ""
        if name and (name in seen or not _CONTINUATION.fullmatch(name)):
            faults.append(LOST_CONTINUATION)
            return


def _subagent_episodes(agent_dir: pathlib.Path, faults: list[str]) -> Iterator[Episode]:
    for name in sorted(entry.name for entry in os.scandir(agent_dir)):
        found = _SUBAGENT.fullmatch(name)
        if not found or ".cont-" in name:
            continue
        try:
            episode = _whole(_read(agent_dir, name), source=found.group(1))
        except TrajectoryError:
            faults.append(LOST_SUBAGENT)
            continue
        if episode:
            yield episode


def _read(folder: pathlib.Path, name: str) -> dict[str, Any]:
    text = _read_plainly(folder / name)
    try:
        trajectory = json.loads(text)
        return _checked(trajectory)
    except (ValueError, RecursionError) as error:
        if isinstance(error, TrajectoryError):
            raise
        raise TrajectoryError(DAMAGED, f"{folder / name} ({error})") from error


def _read_plainly(path: pathlib.Path) -> bytes:
    """The bytes of a file that is no link, no pipe and of a size that a trajectory may have."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise TrajectoryError(NO_FILE, str(path)) from error
    except OSError as error:
        raise TrajectoryError(DAMAGED, f"{path} ({error.strerror})") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise TrajectoryError(DAMAGED, f"{path} is no file")
        if status.st_size > _MAX_BYTES:
            raise TrajectoryError(DAMAGED, f"{path} has {status.st_size:,} bytes")
        return file.read()


def _checked(trajectory: Any) -> dict[str, Any]:
    """The trajectory, where it is made of what the rest of this file relies on."""
    steps = trajectory.get("steps") if isinstance(trajectory, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError("it is no object with a list of `steps`")
    if not isinstance(trajectory.get("agent", {}), dict):
        raise ValueError("`agent` is no object")
    for step in steps:
        for name, kind in (("observation", dict), ("metrics", dict), ("tool_calls", list)):
            if not isinstance(step.get(name), kind | None):
                raise ValueError(f"`{name}` of a step is no {kind.__name__}")
    return trajectory


def _last_episode(trajectory: Mapping[str, Any], *, first_number: int) -> Episode | None:
    """The conversation up to the last reply that is the file's own; the others are its prefixes."""
    steps = trajectory["steps"]
    own = [i for i, step in enumerate(steps) if _is_own_reply(step)]
    if not own:
        return None
    return _episode(
        trajectory,
        steps[: own[-1] + 1],
        number=first_number + len(own) - 1,
        collapsed=len(own) - 1,
        with_last_observation=False,  # it belongs to the episode that was not begun
    )


def _whole(trajectory: Mapping[str, Any], *, source: str) -> Episode | None:
    """A subagent's conversation, to its end."""
    steps = trajectory["steps"]
    if not any(step.get("source") == "agent" for step in steps):
        return None
    return _episode(trajectory, steps, source=source, with_last_observation=True)


def _is_own_reply(step: Mapping[str, Any]) -> bool:
    return step.get("source") == "agent" and not step.get("is_copied_context")


def _episode(
    trajectory: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    *,
    source: str = MAIN,
    number: int = 0,
    collapsed: int = 0,
    with_last_observation: bool,
) -> Episode:
    agent = trajectory.get("agent", {})
    tools = agent.get("tool_definitions") if source == MAIN else None
    messages: list[records.Message] = []
    copied: list[int] = []
    for step, is_last in zip(steps, [False] * (len(steps) - 1) + [True], strict=True):
        if step.get("source") == "agent":
            if step.get("is_copied_context"):
                copied.append(len(messages))
            messages.append(records.Message("assistant", _reply(step)))
            answer = _observation(step) if with_last_observation or not is_last else None
            if answer is not None:
                messages.append(records.Message("user", answer))
        elif step.get("source") in ("system", "user"):
            text = _text(step.get("message"))
            if tools and step["source"] == "system":
                text, tools = f"<tools>\n{_indented(tools)}\n</tools>\n\n{text}", None
            messages.append(records.Message("user", text))
    return Episode(
        source=source,
        number=number,
        collapsed=collapsed,
        messages=tuple(messages),
        copied_turns=tuple(copied),
        agent=_name(agent.get("name")),
        model=_name(agent.get("model_name")),
        input_tokens=_total(steps, "prompt_tokens"),
        output_tokens=_total(steps, "completion_tokens"),
        cost_usd=_total(steps, "cost_usd"),
    )


def _reply(step: Mapping[str, Any]) -> str:
    """An assistant turn: reasoning, text and tool calls, a line end between them."""
    parts = []
    if reasoning := step.get("reasoning_content"):
        parts.append(f"<think>{_text(reasoning)}</think>")
    if text := _text(step.get("message")):
        # A server whose prompt ends in <think> returns only what was generated behind it.
        is_cut = "</think>" in text and "<think>" not in text
        parts.append(f"<think>{text}" if is_cut else text)
    for call in step.get("tool_calls") or ():
        if not isinstance(call, dict):
            raise TrajectoryError(DAMAGED, "a tool call is no object")
        said = {"name": call.get("function_name"), "arguments": call.get("arguments", {})}
        parts.append(f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>")
    return "\n".join(parts)


def _observation(step: Mapping[str, Any]) -> str | None:
    """What the reply brought about; None where nothing was seen."""
    results = (step.get("observation") or {}).get("results") or ()
    seen = [_text(one["content"]) for one in results if isinstance(one, dict) and "content" in one]
    return "\n".join(seen) if seen else None


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        if any(part.get("type") in _MEDIA_TYPES for part in content):
            raise TrajectoryError(MEDIA, "a corpus of text cannot hold them")
        if all(isinstance(part.get("text"), str) for part in content):
            return "\n".join(part["text"] for part in content)
    return json.dumps(content, ensure_ascii=False)


def _indented(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _total(steps: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The sum over the file's own replies; None where no step says."""
    metrics = [step.get("metrics") or {} for step in steps if _is_own_reply(step)]
    said = [one[name] for one in metrics if trials.is_number(one.get(name))]
    return sum(said) if said else None
