"""Seeded conversations that go where tokenizers and templates differ, and small corpora of them."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np

from data_pipeline import records

PIECES = (
    "ls -la /app\n", "cat", " ", "\n", "\n\n", "\t", "e\u0301", "\u0301", "\u00e9", "naïve",
    "日本語", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "한글", "ﬁ", "\u212b",
    '{"commands": [{"keystrokes": "make\\n"}]}', "$ echo 12345", "<tool_call>", "<think", "think>",
    "|im_end|>", "<|im_", "assistant\n", "user", "  two  spaces ", "x" * 40, "\r\n", "\u200b",
)  # fmt: skip

# Tags that templates look for, and characters at which text is cut.
TAGS = (
    "<think>", "</think>", "<think>\n", "\n</think>\n\n", "<tool_response>", "</tool_response>",
    "\0", "\r", "\x85", "\u2028",
)  # fmt: skip


def text(
    rng: np.random.Generator, max_pieces: int = 12, *, pieces: tuple[str, ...] = PIECES
) -> str:
    return "".join(pieces[i] for i in rng.integers(len(pieces), size=rng.integers(max_pieces + 1)))


def thinking_text(rng: np.random.Generator) -> str:
    newlines = ["\n" * n for n in rng.integers(4, size=4)]
    before = text(rng, 2) if rng.random() < 0.2 else ""
    think = "<think>" + newlines[0] + text(rng) + newlines[1] + "</think>"
    return newlines[3] + before + think + newlines[2] + text(rng)


def conversation(
    rng: np.random.Generator, *, num_turns: int = 0, thinking: float = 0.0, **metadata
) -> records.Conversation:
    """User and assistant turns, sometimes a system one before and two of a role in a row."""
    num_turns = num_turns or int(rng.integers(2, 12))
    messages = [records.Message("system", text(rng))] if rng.random() < 0.3 else []
    messages.append(records.Message("user", text(rng)))
    role = "assistant"
    while len(messages) < num_turns or all(m.role != "assistant" for m in messages):
        is_thinking = role == "assistant" and rng.random() < thinking
        messages.append(records.Message(role, thinking_text(rng) if is_thinking else text(rng)))
        if rng.random() < 0.85:
            role = "user" if role == "assistant" else "assistant"
    return records.Conversation(tuple(messages), metadata, f"random {num_turns}")


def hard_conversation(rng: np.random.Generator) -> records.Conversation:
    """Turns of all roles in any order, full of tags, some of them a tool's answer in a user turn.

    A fifth have no real question, another fifth one at the very end.
    """
    roles = rng.choice(records.ROLES, size=rng.integers(1, 10), p=(0.1, 0.3, 0.4, 0.2))
    messages = [records.Message(str(role), _hard_text(rng)) for role in [*roles, "assistant"]]
    order = rng.random()
    if order < 0.2:
        messages = [_as_tool_answer(m) if m.role == "user" else m for m in messages]
    elif order < 0.4:
        messages.append(records.Message("user", _hard_text(rng)))
    return records.Conversation(tuple(messages), {}, "hard")


def _hard_text(rng: np.random.Generator) -> str:
    made = text(rng, 6, pieces=(*PIECES, *TAGS, *TAGS, *TAGS))
    return f"<tool_response>{made}</tool_response>" if rng.random() < 0.2 else made


def _as_tool_answer(message: records.Message) -> records.Message:
    return records.Message("user", f"<tool_response>{message.content}</tool_response>")


def plain(messages: Iterable[records.Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def dialogue(*contents: str, **metadata) -> dict:
    """A row of a corpus whose turns are a user's and an assistant's by turns."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"conversations": turns, **metadata}


def write_jsonl(path: pathlib.Path, rows: Iterable) -> pathlib.Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def random_rows(seed: int, num: int, *, sources: tuple[str, ...] = ("a", "b")) -> list[dict]:
    """Rows of different lengths, each of a task of its own, that curate keeps as they are."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(num):
        made = conversation(rng, num_turns=int(rng.integers(2, 30)), thinking=0.3)
        columns = {"task": f"task-{i}", "source": sources[i % len(sources)], "domain": f"d{i % 3}"}
        messages = [_as_curate_wants(message) for message in made.messages]
        rows.append({"conversations": plain(messages), **columns})
    return rows


def _as_curate_wants(message: records.Message) -> records.Message:
    """With some text, and in a reply without CJK."""
    text = message.content
    if message.role == "assistant":
        text = text.replace("日本語", "naïve").replace("한글", "ﬁ")
    return records.Message(message.role, text if text.strip() else f"{text}.")
