"""What the terminal shows: the very text, the mask in colour, nothing that it would obey."""

import functools
import io
import os
import re
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conversations import dialogue, random_rows, write_jsonl
from rich import console as rich_console

from data_pipeline import chat, corpus, inspect, loader, plan, shards, tokenize
from data_pipeline.showing import visible

GREEN = re.compile(r"\x1b\[32m(.*?)\x1b\[0m", re.DOTALL)
ANY_STYLE = re.compile(r"\x1b\[[0-9;]*m")
HEADER = re.compile(r"^── .* ──\n", re.MULTILINE)
HOSTILE = (
    "a\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\x7f\u202e\u2066b\u2028\U000e0041[red]x[/red]\tz\x00\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random conversations, as a corpus, tokens and a plan whose rows carry prompts."""
    folder = tmp_path_factory.mktemp("inspect")
    rows = random_rows(seed=12, num=70)
    rows[3]["task"] = HOSTILE
    rows[5]["conversations"][1]["content"] = "日本語 \U0001f600 naïve " * 120
    tokenize.tokenize(
        [str(write_jsonl(folder / "a.jsonl", rows))],
        tokenizer_dir="embedded",
        output_dir=folder / "tokens",
        options=tokenize.TokenizeOptions(shard_examples=30),
    )
    options = plan.PlanOptions(row_length=400, global_batch_size=4, epochs=1)
    plan.make_plan(folder / "tokens", output_dir=folder / "plan", options=options)
    return folder


def shown(name, *, color=False, tokenizer="", width=200, **options):
    file = io.StringIO()
    console = rich_console.Console(
        file=file, width=width, highlight=False, force_terminal=color,
        color_system="standard" if color else None,
    )  # fmt: skip
    inspect.show(
        str(name),
        options=inspect.InspectOptions(**options),
        tokenizer=tokenizer,
        console=console,
    )
    return file.getvalue()


def bodies(text):
    """The texts under the headers."""
    return HEADER.split(text)[1:]


def with_line_end(text):
    return text if text.endswith("\n") else text + "\n"


@functools.cache
def decoder():
    return chat.load(chat.resolve_tokenizer_dir("embedded"))


@pytest.mark.parametrize("row", [0, 7, 63, 64, 69])
def test_a_conversation_is_shown_as_it_is(folder, row):
    conversation = list(corpus.read_rows(folder / "a.jsonl"))[row].conversation
    text = shown(folder / "a.jsonl", row=row, width=20)
    assert text.startswith(conversation.location)
    expected = [with_line_end(visible.text(m.content)) for m in conversation.messages]
    assert bodies(text) == expected
    roles = re.findall(r"^── \d+ (\w+) · ([\d,]+) characters ──$", text, re.MULTILINE)
    assert roles == [(m.role, f"{len(m.content):,}") for m in conversation.messages]


@pytest.mark.parametrize("row", [0, 100, 359])
def test_what_is_trained_is_green_in_a_corpus(row):
    rows = list(corpus.read_rows(corpus.find_files(["embedded"])[0]))
    conversation = rows[row].conversation
    tokenizer = chat.ChatTokenizer(chat.resolve_tokenizer_dir("embedded"))
    example = tokenizer.example(conversation)
    colored = shown("embedded", row=row, tokenizer="embedded", color=True)
    text = ANY_STYLE.sub("", colored)
    assert text == shown("embedded", row=row, tokenizer="embedded")
    assert "".join(bodies(text)).replace("<|im_end|>\n", "<|im_end|>") == visible.text(
        tokenizer.render(conversation)
    ).replace("<|im_end|>\n", "<|im_end|>")
    decoded = decoder().decode(example.tokens[example.loss_mask == 1])
    assert "".join(GREEN.findall(colored)) == visible.text(decoded)


@pytest.mark.parametrize("number", [0, 3, 5, 31, 69])
def test_what_is_trained_is_green_in_tokens(folder, number):
    entry = pq.read_table(folder / "tokens/index.parquet").to_pylist()[number]
    paths = [folder / "tokens" / shards.shard_name(i, 3) for i in range(3)]
    example = shards.ShardReader(paths).read(entry["shard"], entry["position"])
    colored = shown(folder / "tokens", example=number, tokenizer="embedded", color=True)
    spans = zip(entry["loss_starts"], entry["loss_ends"], strict=True)
    decoded = [decoder().decode(example.tokens[first:end]) for first, end in spans]
    assert GREEN.findall(colored) == [visible.text(each) for each in decoded]
    text = ANY_STYLE.sub("", colored)
    assert len(bodies(text)) == entry["num_turns"] and entry["id"] in text
    counts = re.findall(r"· ([\d,]+) tokens · ([\d,]+) targets ──", text)
    totals = [sum(int(each[i].replace(",", "")) for each in counts) for i in (0, 1)]
    assert totals == [entry["num_tokens"], entry["num_loss_tokens"]]
    table = shown(folder / "tokens", example=number)
    firsts = [int(line.split()[2].replace(",", "")) for line in table.splitlines()[3:-1]]
    assert firsts == entry["turn_starts"]


def test_a_row_is_what_the_loader_gives(folder):
    opened = loader.Plan.open(folder / "plan")
    index = pq.read_table(folder / "tokens/index.parquet").to_pylist()
    seen_carried = False
    for number in range(opened.num_rows):
        row, segments = opened.read_row(number), opened.segments(number)
        colored = shown(folder / "plan", row=number, tokenizer="embedded", color=True, full=True)
        text = ANY_STYLE.sub("", colored)
        targets = row["tokens"][row["loss_mask"] == 1]
        green = "".join(GREEN.findall(colored[colored.find("── segment 1") :]))
        if "\ufffd" not in green:  # a cut, or a segment's first token, may part a character
            assert green == visible.text(decoder().decode(targets))
        table = [line.split() for line in text.splitlines() if re.match(r"\d+ +[\d,]+ .*\d$", line)]
        assert [int(line[1]) for line in table] == [s.example for s in segments]
        headers = re.findall(r"^── segment \d+ · example [\d,]+ · id (\w+) ──$", text, re.MULTILINE)
        assert headers == [index[s.example]["id"] for s in segments]
        at = 0
        for i, (line, segment) in enumerate(zip(table, segments, strict=True), 1):
            loss = int(row["loss_mask"][row["segment_ids"] == i].sum())
            size = segment.prompt + segment.num_tokens
            assert line[-5:] == [
                f"{n:,}" for n in (segment.first_token, segment.num_tokens, segment.prompt, loss)
            ] + [f"{at}-{at + size - 1}"]
            at += size
            seen_carried |= segment.prompt > 0
        if segments:
            bar = text.splitlines()[2]
            assert bar.count("·") == pytest.approx((400 - at) * 120 / 400, abs=1)
        else:
            assert "an empty row" in text
    assert seen_carried


def test_a_long_segment_is_cut_unless_full(folder):
    opened = loader.Plan.open(folder / "plan")
    row = next(
        r for r in range(opened.num_rows) if any(s.num_tokens > 300 for s in opened.segments(r))
    )
    first = max(opened.segments(row), key=lambda s: s.num_tokens)
    short = shown(folder / "plan", row=row, tokenizer="embedded")
    assert f"... {first.prompt + first.num_tokens - 240:,} tokens ..." in short
    assert "tokens ..." not in shown(folder / "plan", row=row, tokenizer="embedded", full=True)
    assert "── segment" not in shown(folder / "plan", row=row)


def test_nothing_that_a_terminal_obeys_gets_through(tmp_path):
    rows = [dialogue(HOSTILE, f"<think>{HOSTILE}</think>{HOSTILE}", task=HOSTILE, source=HOSTILE)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    tokens = tokenize.tokenize(
        [str(path)],
        tokenizer_dir="embedded",
        output_dir=tmp_path / "tokens",
        options=tokenize.TokenizeOptions(),
    )
    options = plan.PlanOptions(row_length=900, global_batch_size=1)
    plan.make_plan(tokens, output_dir=tmp_path / "plan", options=options)
    for name in (path, tokens, tmp_path / "plan"):
        for tokenizer in ("", "embedded"):
            for color in (False, True):
                text = ANY_STYLE.sub("", shown(name, tokenizer=tokenizer, color=color))
                assert not set(HOSTILE) - set("\n\tabownedxz0J;12[]/red3m") & set(text)
                if name == path or tokenizer:
                    assert visible.text(HOSTILE) in text
    assert visible.text(HOSTILE) == (
        "a␛]0;owned␇␛[2J\\x9b31m␍␈␡\\u202e\\u2066b\\u2028\\ue0041[red]x[/red]\tz␀\n"
    )


def test_thinking_is_faint(tmp_path):
    rows = [dialogue("<think>no</think>", "<think>one</think>two<think>three", "x", "y")]
    text = shown(write_jsonl(tmp_path / "a.jsonl", rows), color=True)
    faint = re.findall(r"\x1b\[2m(.*?)\x1b\[0m", text)
    assert faint == ["<think>one</think>", "<think>three"]


@pytest.mark.parametrize("name", ["terminus2_real.jsonl", "intercode_bash.jsonl"])
def test_real_sessions(shared_data, name):
    path = shared_data / "trajectories" / name
    for number, row in enumerate(corpus.read_rows(path)):
        if number == 3:
            return
        if row.conversation is None:
            with pytest.raises(ValueError, match=re.escape(path.name)):
                shown(path, row=number)
            continue
        expected = "".join(
            with_line_end(visible.text(m.content)) for m in row.conversation.messages
        )
        assert HEADER.sub("", shown(path, row=number)).endswith(expected)


ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("XLA")}


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline.inspect", *map(str, arguments)],
        capture_output=True, text=True, env=ENVIRONMENT | environment,
    )  # fmt: skip


def test_the_command(folder):
    done = command(folder / "plan", "--row=1", "--tokenizer=embedded", COLUMNS="150")
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown(folder / "plan", row=1, tokenizer="embedded", width=150)
    asked = (folder / "tokens", "--example=2", "--tokenizer=embedded")
    colored = command(*asked, FORCE_COLOR="1", TERM="xterm")
    assert GREEN.search(colored.stdout)
    plain = command(*asked, FORCE_COLOR="1", TERM="xterm", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3\d", plain.stdout)
    assert "python -m data_pipeline.inspect corpus.parquet --row=3" in command("--help").stdout


def test_an_error_of_the_command_is_one_line(folder):
    done = command(folder / "a.jsonl", "--row=70")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"error: --row=70 is outside of {folder / 'a.jsonl'}, which holds 70 rows, 0 to 69\n"
    )
    assert "give one PATH" in command().stderr


@pytest.mark.parametrize(
    ("name", "settings", "fault"),
    [
        ("tokens", {"example": 70}, "--example=70 is outside of .*tokens, which holds 70 examples"),
        ("tokens", {"example": -1}, "--example=-1 is outside of"),
        ("tokens", {"row": 1}, "--row=1 is not a setting for .*tokens; give --example"),
        ("plan", {"example": 1}, "--example=1 is not a setting for .*plan; give --row"),
        ("plan", {"row": 9999}, "--row=9999 is outside of .*plan, which holds [0-9]+ rows"),
        ("nothing", {}, "nothing: no such file or folder"),
        ("plan", {"tokens_dir": "nowhere"}, "nowhere: the output of data_pipeline.tokenize is not"),
        ("plan", {"tokenizer": "nowhere"}, "--tokenizer=nowhere must be a Hugging Face folder"),
        ("OTHER", {"row": 1}, "line 2: not valid JSON"),
    ],
)
def test_errors_name_what_is_wrong(folder, tmp_path, name, settings, fault):
    if name == "OTHER":
        name = write_jsonl(tmp_path / "bad.jsonl", [dialogue("a", "b"), "{"])
    with pytest.raises(ValueError, match=fault):
        shown(folder / name, **settings)


def test_another_tokenizer_is_refused(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(chat.resolve_tokenizer_dir("embedded"), other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text("utf-8") + "\n", "utf-8")
    for name in ("tokens", "plan"):
        with pytest.raises(ValueError, match=r"other is not the tokenizer that made .*tokens"):
            shown(folder / name, tokenizer=str(other))
