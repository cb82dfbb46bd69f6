"""What ships: the corpus of sessions and the small tokenizer."""

import collections
import json
import os
import pathlib
import random
import re
import socket
import statistics
import unicodedata

import pyarrow.parquet as pq
import pytest
import tokenizers
from transformers import AutoTokenizer

from data_pipeline import embedded
from data_pipeline.recorder import family, prompt, record, train_tokenizer


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(embedded.sessions_path()).to_pylist()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.tokenizer_dir(), local_files_only=True)


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
    home = pathlib.Path.home().as_posix()
    forbidden = {
        r"/work\b",
        r"\.pyenv",
        r"\.venv",
        r"/tmp/task-",
        r"/home/\w+/\.",
        r"Traceback.*recorder",
    }
    names = {socket.gethostname(), os.uname().release, str(pathlib.Path(__file__).parents[1])}
    names |= {home} - {"/root", "/"}
    forbidden |= {rf"(?<![\w.]){re.escape(name)}(?![\w.])" for name in names if len(name) > 1}
    for pattern in sorted(forbidden):
        assert not re.search(pattern, text), pattern
    prompts = set(re.findall(r"^\S+@\S+?:", text, re.M))
    assert prompts == {"root@agent:"}


def test_special_tokens_follow_the_merges(tokenizer):
    added = [*train_tokenizer.SPECIAL_TOKENS, *train_tokenizer.PLAIN_TOKENS]
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
    texts_ = train_tokenizer.read_texts(embedded.sessions_path())
    made = train_tokenizer.train(texts_, vocab_size=2560)
    train_tokenizer.write(made, tmp_path)
    for path in sorted(embedded.tokenizer_dir().iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert len(list(tmp_path.iterdir())) == 3
