"""What ships: the corpus of sessions and the small tokenizer."""

import collections
import json
import random
import re
import statistics
import unicodedata

import pyarrow.parquet as pq
import pytest
import sandboxes
import tokenizers
from transformers import AutoTokenizer

from data_pipeline import chat, embedded
from data_pipeline.recorder import (
    family,
    isolation,
    prompt,
    record,
    session,
    train_tokenizer,
    voice,
)

SEED = 7  # of the shipped recording
# What the first lines of `PROGRAM --version` were when it was made (Debian 12): other versions
# word some messages differently, and the shell would rightly print something else.
RECORDED_WITH = {
    "awk": "awk: not an option: --version",  # mawk
    "bash": "GNU bash, version 5.2.15(1)-release (x86_64-pc-linux-gnu)",
    "find": "find (GNU findutils) 4.9.0",
    "git": "git version 2.39.5",
    "grep": "grep (GNU grep) 3.8",
    "gzip": "gzip 1.12",
    "python3": "Python 3.11.2",
    "sed": "sed (GNU sed) 4.9",
    "setsid": "setsid from util-linux 2.38.1",
    "sort": "sort (GNU coreutils) 9.1",
    "tar": "tar (GNU tar) 1.34",
}


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(embedded.sessions_path()).to_pylist()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.tokenizer_dir(), local_files_only=True)


@pytest.fixture(scope="module")
def other_tools():
    """The programs of this machine that are of other versions than those of the recording."""
    line = "; ".join(f"{tool} --version 2>&1 | head -n 1" for tool in RECORDED_WITH)
    with isolation.make_world({}, sandbox=sandboxes.SANDBOX) as world:
        found = world.run(line)[1].splitlines()
    pairs = zip(RECORDED_WITH.items(), found, strict=True)
    return {tool for (tool, version), here in pairs if here != version}


@sandboxes.needs_bwrap
@pytest.mark.parametrize(
    ("index", "one"),
    [
        pytest.param(i, one, id=one.name, marks=sandboxes.needs_tools(one))
        for i, one in enumerate(sandboxes.FAMILIES.values())
    ],
)
def test_the_shipped_sessions_are_what_the_recorder_records(rows, other_tools, index, one):
    assert set(one.tools) <= RECORDED_WITH.keys()
    if other := other_tools & set(one.tools):
        pytest.skip(f"recorded with another version of {', '.join(sorted(other))}")
    shipped = [row for row in rows if row["task"].rpartition("-")[0] == one.name]
    row = shipped[index % len(shipped)]
    number = int(row["task"].rpartition("-")[2])
    assert session.play(one, number, seed=SEED, sandbox="bwrap") == row


def test_the_corpus_is_small_and_has_the_schema(rows):
    assert embedded.sessions_path().stat().st_size <= 2 * 2**20
    assert pq.read_schema(embedded.sessions_path()).equals(record.SCHEMA)
    assert len(rows) >= 330
    assert len({row["trial_name"] for row in rows}) == len(rows)
    assert len({json.dumps(row["conversations"]) for row in rows}) == len(rows)


def test_every_domain_and_family_is_there(rows):
    domains = collections.Counter(row["domain"] for row in rows)
    assert set(domains) == set(family.DOMAINS) and min(domains.values()) >= 20
    assert {row["task"].rpartition("-")[0] for row in rows} == set(family.load_all())
    assert all(row["source"] == row["domain"] for row in rows)


def test_outcomes_are_mixed(rows):
    rewards = [row["reward"] for row in rows]
    assert all(0.0 <= reward <= 1.0 for reward in rewards)
    assert 0.75 <= statistics.mean(rewards) <= 0.97
    incomplete = sum(not row["complete"] for row in rows)
    assert 5 <= incomplete <= len(rows) // 8
    text = [json.dumps(row["conversations"]) for row in rows]
    assert sum("had parsing errors" in t for t in text) >= 10
    assert sum("without the mistake" in t for t in text) >= 30
    noticed = [phrase.partition("{")[0] for phrase in voice._NOTICE]
    assert sum(any(phrase in t for phrase in noticed) for t in text) >= 60
    assert sum(row["complete"] and row["reward"] < 1 for row in rows) >= 20
    thinking = sum(row["enable_thinking"] for row in rows)
    assert 0.8 * len(rows) <= thinking < len(rows)


def test_lengths(rows, tokenizer):
    turns = [record.num_turns(row) for row in rows]
    assert min(turns) >= 2 and max(turns) <= 12 and 4 <= statistics.median(turns) <= 6
    assert max(record.num_chars(row) for row in rows) <= record.MAX_CHARS
    tokens = [len(tokenizer.apply_chat_template(r["conversations"])["input_ids"]) for r in rows]
    assert max(tokens) <= 2_500


def test_conversations_have_the_protocols_form(rows):
    for row in rows:
        messages = row["conversations"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert messages[0]["content"].startswith(prompt.PREFIX)
        assert row["episode"] == f"episode-{len(messages) // 2 - 1}"
        openings = ("New Terminal Output:\n", "Current terminal state:\n", "Previous response had")
        assert all(m["content"].startswith(openings) for m in messages[2::2])
    assert len(prompt.PREFIX) <= 1000


def test_nothing_of_the_recording_machine_is_in_the_corpus(rows):
    text = "\n".join(m["content"] for row in rows for m in row["conversations"])
    for pattern in (r"/work\b", r"\.pyenv", r"\.venv", r"/tmp/task-", r"/home/\w+/\."):
        assert not re.search(pattern, text), pattern
    prompts = set(re.findall(r"^\S+@\S+?:", text, re.M))
    assert prompts == {"root@agent:"}


def test_special_tokens_follow_the_merges(tokenizer):
    added = [*chat.QWEN3_SPECIAL_TOKENS, *train_tokenizer.PLAIN_TOKENS]
    assert len(added) == 26
    first = len(tokenizer) - 26
    assert tokenizer.convert_tokens_to_ids(added) == list(range(first, first + 26))
    assert 2_000 <= len(tokenizer) <= 3_000
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token is None
    shown = tokenizer.decode(
        tokenizer("<think>\na</think><|im_end|>")["input_ids"], skip_special_tokens=True
    )
    assert shown == "<think>\na</think>"


def test_added_tokens_are_qwen3s(shared_data, tokenizer):
    real = json.loads((shared_data / "qwen3-tokenizer" / "tokenizer.json").read_text())
    ours = json.loads((embedded.tokenizer_dir() / "tokenizer.json").read_text())
    strip = lambda entries: [{k: v for k, v in e.items() if k != "id"} for e in entries]  # noqa: E731
    assert strip(ours["added_tokens"]) == strip(real["added_tokens"])
    for part in ("normalizer", "decoder"):
        assert ours[part]["type"] == real[part]["type"]


def test_text_is_cut_as_qwen3_cuts_it(shared_data):
    path = shared_data / "qwen3-tokenizer" / "tokenizer.json"
    real = tokenizers.Tokenizer.from_file(str(path))
    ours = tokenizers.Tokenizer.from_file(str(embedded.tokenizer_dir() / "tokenizer.json"))
    for text in texts():
        expected = real.pre_tokenizer.pre_tokenize_str(text)
        assert ours.pre_tokenizer.pre_tokenize_str(text) == expected
        assert ours.normalizer.normalize_str(text) == real.normalizer.normalize_str(text)


def texts():
    """Random texts of many scripts, signs and blanks."""
    rng = random.Random(0)
    pools = ["abcXYZ'", "0123456789", " \t\n\r", "{}[]\"'\\/-_=+|&;#$", "\u00e9\u00fc\u00df\u0301"]
    pools += [
        "\u4e2d\u6587",
        "\U0001f600\U0001f9ea",
        "\u0440\u0443\u0441",
        "\u0e44\u0e17\u0e22\u200d",
        "'s'LL",
    ]
    for _ in range(400):
        yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 60)))


def test_any_text_comes_back(tokenizer):
    for text in texts():
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_the_shipped_tokenizer_is_the_one_the_script_makes(tmp_path):
    made = train_tokenizer.train(train_tokenizer.read_texts("embedded"), vocab_size=2560)
    train_tokenizer.write(made, tmp_path)
    for path in sorted(embedded.tokenizer_dir().iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert len(list(tmp_path.iterdir())) == 3
