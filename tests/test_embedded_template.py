"""The shipped chat template renders what Qwen3's own renders."""

import json
import pathlib
import random
from typing import Any

import pytest
from transformers import AutoTokenizer

from data_pipeline import embedded

QWEN3 = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "qwen3-tokenizer"
TEXTS = ["", "hello", "two\nlines\n", "\n\nlead", "<think>\na\n</think>\n\nb", "<think>a</think>b"]
TEXTS += [
    "x</think>y",
    "<tool_response>r</tool_response>",
    '{"k": [1]}',
    "\u00fc \U0001f600",
    "<think>\n\n</think>\n\nz",
]
TEXTS += ["<think>a</think>m<think>b</think>\n\nend", "<tool_response>\nopen"]
TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"path": "<p> & 'q'"}}}


@pytest.fixture(scope="module")
def ours():
    return AutoTokenizer.from_pretrained(embedded.tokenizer_dir())


@pytest.fixture(scope="module")
def real_template():
    if not QWEN3.is_dir():
        pytest.skip("shared/data/qwen3-tokenizer is not here")
    return json.loads((QWEN3 / "tokenizer_config.json").read_text())["chat_template"]


def random_call(rng):
    arguments = rng.choice(['{"a": 1}', {"path": "/x", "n": 2, "u": "\u00e9"}, {}])
    call = {"name": rng.choice(["ls", "cat"]), "arguments": arguments}
    return rng.choice([call, {"type": "function", "function": call}])


def random_message(rng, roles):
    message = {"role": rng.choice(roles), "content": rng.choice(TEXTS)}
    if message["role"] != "assistant":
        return message
    if rng.random() < 0.3:
        message["reasoning_content"] = rng.choice(["", "because", "\nbecause\n", "a\nb"])
    if rng.random() < 0.3:
        message["tool_calls"] = [random_call(rng) for _ in range(rng.randint(0, 3))]
        message["content"] = rng.choice([message["content"], "", None])
    return message


def random_conversation(seed):
    rng = random.Random(seed)
    roles = ["user", "assistant", "assistant", "tool", "system"]
    messages = [random_message(rng, roles) for _ in range(rng.randint(1, 8))]
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": "be brief"})
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["tools"] = [TOOL] * rng.randint(1, 2)
    options["add_generation_prompt"] = rng.random() < 0.3
    if rng.random() < 0.5:
        options["enable_thinking"] = rng.random() < 0.5
    return messages, options


def test_equals_the_real_template_on_random_conversations(ours, real_template):
    rendered = set()
    for seed in range(1500):
        messages, options = random_conversation(seed)
        found = ours.apply_chat_template(messages, tokenize=False, **options)
        expected = ours.apply_chat_template(
            messages, tokenize=False, chat_template=real_template, **options
        )
        assert found == expected, (seed, messages, options)
        rendered.add(found)
    assert len(rendered) > 1000


def test_template_text_is_our_own(ours, real_template):
    real_lines = {line.strip() for line in real_template.splitlines() if len(line.strip()) > 40}
    shared = [line for line in ours.chat_template.splitlines() if line.strip() in real_lines]
    assert shared == []


def render(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_reasoning_stays_only_after_the_last_query(ours):
    turn = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nso"}
    messages = [{"role": "user", "content": "a"}, turn, {"role": "user", "content": "b"}, turn]
    assert render(ours, messages) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nwhy\n</think>\n\nso<|im_end|>\n"
    )


def test_last_turn_without_reasoning_gets_an_empty_block(ours):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    messages += [{"role": "assistant", "content": "b"}]
    assert render(ours, messages) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nb<|im_end|>\n"
    )


def test_tool_results_share_one_user_turn(ours):
    messages = [{"role": "user", "content": "q"}]
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
    ]
    messages += [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    assert render(ours, messages) == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n"
        "<tool_response>\n2\n</tool_response><|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("options", "tail"),
    [
        ({}, ""),
        ({"enable_thinking": True}, ""),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
    ],
)
def test_generation_prompt(ours, options, tail):
    found = render(ours, [{"role": "user", "content": "q"}], add_generation_prompt=True, **options)
    assert found == f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{tail}"
