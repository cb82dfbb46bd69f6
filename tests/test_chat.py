"""Tokens against transformers' own apply_chat_template; masks against a scan of the token ids."""

import json

import numpy as np
import pytest
import transformers
from conversations import conversation, dialogue, plain

from data_pipeline import chat, embedded, records


@pytest.fixture(scope="module", params=["embedded", "qwen3"])
def tokenizer_dir(request):
    if request.param == "embedded":
        return embedded.tokenizer_dir()
    return request.getfixturevalue("shared_data") / "qwen3-tokenizer"


@pytest.fixture(scope="module")
def oracle(tokenizer_dir):
    return transformers.AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="module")
def keep(tokenizer_dir):
    return chat.ChatTokenizer(tokenizer_dir)


@pytest.fixture(scope="module")
def strip(tokenizer_dir):
    return chat.ChatTokenizer(tokenizer_dir, think="strip_history")


def make(*contents):
    return records.conversation_from_row(dialogue(*contents), location="rows.jsonl line 3")


def template_ids(oracle, messages):
    return oracle.apply_chat_template(plain(messages), tokenize=True)["input_ids"]


def mask_by_ids(oracle, ids):
    """From behind the newline of each `<|im_start|>assistant` through the next `<|im_end|>`."""
    start, end = oracle.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    mask, at = np.zeros(len(ids), np.uint8), 0
    while at < len(ids):
        if ids[at] == start:
            header = ""
            while "\n" not in header:
                at += 1
                header += oracle.decode([ids[at]])
            if header.startswith("assistant\n"):
                mask[at + 1 : at + 2 + list(ids[at + 1 :]).index(end)] = 1
        at += 1
    return mask


@pytest.mark.parametrize("seed", range(60))
def test_strip_history_is_apply_chat_template(strip, oracle, seed):
    made = conversation(np.random.default_rng(seed), thinking=0.5)
    example = strip.example(made)
    assert example.tokens.tolist() == template_ids(oracle, made.messages)
    np.testing.assert_array_equal(example.loss_mask, mask_by_ids(oracle, example.tokens))


@pytest.mark.parametrize("seed", range(60))
def test_keep_without_thinking_is_apply_chat_template(keep, oracle, seed):
    made = conversation(np.random.default_rng(seed))
    example = keep.example(made)
    assert example.tokens.tolist() == template_ids(oracle, made.messages)
    np.testing.assert_array_equal(example.loss_mask, mask_by_ids(oracle, example.tokens))


@pytest.mark.parametrize("seed", range(60))
def test_keep_writes_each_thinking_turn_as_if_it_were_the_last(keep, oracle, seed):
    made = conversation(np.random.default_rng(seed), thinking=0.8)
    text = keep.render(made)
    for k, message in enumerate(made.messages):
        if message.role == "assistant":
            if "</think>" in message.content or k == len(made.messages) - 1:
                head, tail = (
                    oracle.apply_chat_template(plain(made.messages[:end]), tokenize=False)
                    for end in (k, k + 1)
                )
                # The prefix's own earlier turns differ (stripped); its last turn is the oracle.
                own = tail[tail.rindex("<|im_start|>assistant\n") :]
                assert head.count("<|im_start|>") == tail.count("<|im_start|>") - 1
            else:
                own = f"<|im_start|>assistant\n{message.content}<|im_end|>\n"
        else:
            own = f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n"
        assert text.startswith(own), (k, message)
        text = text[len(own) :]
    assert text == ""


@pytest.mark.parametrize("seed", range(50))
def test_keep_tokenises_its_text_once_and_masks_by_turn(keep, oracle, seed):
    made = conversation(np.random.default_rng(seed), thinking=0.8)
    example = keep.example(made)
    assert (
        example.tokens.tolist() == oracle(keep.render(made), add_special_tokens=False)["input_ids"]
    )
    np.testing.assert_array_equal(example.loss_mask, mask_by_ids(oracle, example.tokens))
    start = oracle.convert_tokens_to_ids("<|im_start|>")
    np.testing.assert_array_equal(example.turn_starts, np.flatnonzero(example.tokens == start))
    roles = [m.role == "assistant" for m in made.messages]
    np.testing.assert_array_equal(example.turn_is_assistant, roles)


def test_the_target_is_what_the_model_writes(keep, oracle):
    example = keep.example(make("hi", "e\u0301 \U0001f600 done"))
    target = oracle.decode(example.tokens[example.loss_mask == 1])
    assert target == "<think>\n\n</think>\n\n\u00e9 \U0001f600 done<|im_end|>"


def test_a_newline_merged_into_the_header_is_not_a_target(strip, oracle):
    example = strip.example(make("hi", "\n\nyes", "more", "end"))
    first = np.flatnonzero(example.loss_mask)[0]
    assert oracle.decode(example.tokens[first:]).startswith(("yes", "\nyes", "\n\nyes"))
    np.testing.assert_array_equal(example.loss_mask, mask_by_ids(oracle, example.tokens))


def test_tool_turns_follow_the_template(keep, oracle):
    roles = ("user", "assistant", "tool", "tool", "assistant")
    messages = tuple(records.Message(role, f"{role} says") for role in roles)
    example = keep.example(records.Conversation(messages, {}, "x"))
    assert example.tokens.tolist() == template_ids(oracle, messages)
    assert len(example.turn_starts) == 4  # the template joins neighbouring tool turns


@pytest.mark.parametrize("name", ["terminus2_real", "intercode_bash"])
def test_real_sessions_are_apply_chat_template(keep, strip, oracle, shared_data, name):
    lines = (shared_data / "trajectories" / f"{name}.jsonl").read_text().splitlines()
    for number, line in enumerate(lines[:: max(1, len(lines) // 250)]):
        made = records.conversation_from_row(json.loads(line), location=f"{name} {number}")
        history = [m.content for m in made.messages[:-1] if m.role == "assistant"]
        if not history and made.messages[-1].role != "assistant":
            continue
        ids = template_ids(oracle, made.messages)
        example = strip.example(made)
        assert example.tokens.tolist() == ids
        np.testing.assert_array_equal(example.loss_mask, mask_by_ids(oracle, ids))
        if not any("</think>" in content for content in history):
            assert keep.example(made).tokens.tolist() == ids


def test_batches_equal_single_conversations(keep):
    rng = np.random.default_rng(3)
    made = [conversation(rng, thinking=0.5) for _ in range(20)]
    together = keep.encode(made, [keep.render(each) for each in made])
    for one, each in zip(together, made, strict=True):
        np.testing.assert_array_equal(one.tokens, keep.example(each).tokens)


@pytest.mark.parametrize("token", chat.QWEN3_SPECIAL_TOKENS)
def test_a_forged_special_token_is_refused(keep, token):
    with pytest.raises(ValueError, match=r"rows.jsonl line 3: turn 1 holds the special token"):
        keep.render(make("hi", f"yes{token}\n", "more", "end"))


def test_no_assistant_turn_is_refused(keep):
    with pytest.raises(ValueError, match=r"rows.jsonl line 3: no assistant turn"):
        keep.render(make("hi"))


def test_stand_ins_are_refused(keep):
    with pytest.raises(ValueError, match=r"line 3: turn 0 holds U\+F7E11"):
        keep.render(make("hi \U000f7e12", "yes"))


def test_special_tokens_are_those_the_tokenizer_flags(tokenizer_dir, oracle):
    flagged = {str(t) for t in oracle.added_tokens_decoder.values() if t.special}
    assert set(chat.special_tokens_of(tokenizer_dir)) == flagged == set(chat.QWEN3_SPECIAL_TOKENS)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"must be a Hugging Face folder with tokenizer.json"):
        chat.resolve_tokenizer_dir(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer file"):
        chat.special_tokens_of(tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded"):
        chat.ChatTokenizer(tmp_path)


def test_a_template_that_does_not_write_turns_is_refused(tmp_path, tokenizer_dir):
    for file in chat.tokenizer_files(tokenizer_dir):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"rows.jsonl line 3: the chat template does not write"):
        chat.ChatTokenizer(tmp_path).example(make("hi", "yes"))
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no chat template"):
        chat.ChatTokenizer(tmp_path)
