"""Tokens against transformers' own apply_chat_template; masks against a scan of the token ids."""

import dataclasses
import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers
from conversations import conversation, dialogue, hard_conversation, plain

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


def doctored(tokenizer_dir, folder, **changes):
    """A copy of a tokenizer; `changes` are functions of the JSON of its files."""
    for file in chat.tokenizer_files(tokenizer_dir):
        (folder / file.name).write_bytes(file.read_bytes())
    for name, change in changes.items():
        path = folder / f"{name}.json"
        value = json.loads(path.read_text("utf-8"))
        change(value)
        path.write_text(json.dumps(value), "utf-8")
    return folder


def with_template(tokenizer_dir, folder, template):
    doctored(tokenizer_dir, folder, tokenizer_config=lambda c: c.update(chat_template=template))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


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


@pytest.mark.parametrize("seed", range(20))
def test_untrained_turns_are_no_targets_and_change_nothing_else(keep, oracle, seed):
    rng = np.random.default_rng(seed)
    made = conversation(rng, num_turns=9, thinking=0.5)
    untrained = [turn for turn in made.replies if rng.random() < 0.4] or made.replies[:1]
    if untrained == made.replies:
        made = dataclasses.replace(
            made, messages=(*made.messages, records.Message("assistant", "r"))
        )
    whole = keep.example(made)
    masked = dataclasses.replace(made, metadata={"untrained_turns": untrained})
    example = keep.example(masked)
    np.testing.assert_array_equal(example.tokens, whole.tokens)
    # The turns of the mask are those between its edges, in the order of the replies.
    expected = mask_by_ids(oracle, example.tokens)
    edges = np.flatnonzero(np.diff(expected, prepend=0, append=0))
    for turn, start, end in zip(made.replies, edges[0::2], edges[1::2], strict=True):
        if turn in untrained:
            expected[start:end] = 0
    np.testing.assert_array_equal(example.loss_mask, expected)


def test_a_session_without_a_trained_turn_is_refused(keep):
    made = dataclasses.replace(make("q", "r"), metadata={"untrained_turns": [1]})
    with pytest.raises(ValueError, match=r"rows.jsonl line 3: the loss mask holds only zeros"):
        keep.example(made)


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


def kept_text(oracle, messages):
    """Each turn as the template writes it alone; a reply that thinks as the last after a question;
    the last reply without thinking as it stands in the whole."""
    question = [{"role": "user", "content": "?"}]

    def last_of(turns):
        text = oracle.apply_chat_template(turns, tokenize=False)
        return text[text.rindex("<|im_start|>") :]

    text = ""
    for role, group in itertools.groupby(enumerate(messages), lambda pair: pair[1]["role"]):
        group = list(group)
        if role == "tool":  # neighbours are joined
            text += last_of([turn for _, turn in group])
            continue
        for k, turn in group:
            if role == "assistant" and "</think>" not in turn["content"]:
                bare = f"<|im_start|>assistant\n{turn['content']}<|im_end|>\n"
                text += last_of(messages) if k == len(messages) - 1 else bare
            else:
                text += last_of([turn] if role == "system" and k == 0 else [*question, turn])
    return text


@pytest.mark.parametrize("seed", range(100))
def test_hard_conversations_are_what_the_template_writes(keep, strip, oracle, seed):
    made = hard_conversation(np.random.default_rng(seed))
    messages = plain(made.messages)
    assert keep.render(made) == kept_text(oracle, messages)
    example = strip.example(made)
    assert example.tokens.tolist() == template_ids(oracle, made.messages)
    np.testing.assert_array_equal(example.loss_mask, mask_by_ids(oracle, example.tokens))
    example = keep.example(made)
    ids = oracle(kept_text(oracle, messages), add_special_tokens=False)["input_ids"]
    assert example.tokens.tolist() == ids
    np.testing.assert_array_equal(example.loss_mask, mask_by_ids(oracle, ids))


def test_keep_on_the_embedded_sessions(keep, oracle):
    num_thinking = 0
    for row in pq.read_table(embedded.sessions_path()).to_pylist():
        made = records.conversation_from_row(row, location=row["trial_name"])
        assert keep.render(made) == kept_text(oracle, row["conversations"])
        num_thinking += sum("</think>" in turn["content"] for turn in row["conversations"][:-1])
    assert num_thinking > 0


def test_a_question_is_what_the_template_takes_for_one(keep):
    answer = "<tool_response>\n3\n</tool_response>"
    made = make(answer, "<think>\nthree\n</think>\n\nIt is 3.")
    assert keep.render(made).endswith(
        "<|im_start|>assistant\n<think>\nthree\n</think>\n\nIt is 3.<|im_end|>\n"
    )


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


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("terminus2_real", 1),
        ("intercode_bash", 10),
        pytest.param("intercode_bash", 1, marks=pytest.mark.slow),
    ],
)
def test_real_sessions_are_apply_chat_template(keep, strip, oracle, shared_data, name, step):
    lines = (shared_data / "trajectories" / f"{name}.jsonl").read_text().splitlines()
    for number, line in enumerate(lines[::step]):
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


@pytest.mark.parametrize("seed", range(100))
def test_masks_by_bytes_are_masks_by_offsets(keep, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    made = [make_(rng) for make_ in (hard_conversation, conversation) for _ in range(5)]
    assert keep._are_tokens_bytes
    by_bytes = [keep.example(each) for each in made]
    monkeypatch.setattr(keep, "_are_tokens_bytes", False)
    for each, expected in zip(made, by_bytes, strict=True):
        example = keep.example(each)
        np.testing.assert_array_equal(example.tokens, expected.tokens)
        np.testing.assert_array_equal(example.loss_mask, expected.loss_mask)


@pytest.mark.parametrize("seed", range(60))
def test_a_long_text_taken_by_turns_has_the_same_tokens(keep, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    made = [make_(rng) for make_ in (hard_conversation, conversation) for _ in range(5)]
    texts = [keep.render(one) for one in made]
    whole = keep.encode(made, texts)
    monkeypatch.setattr(chat, "_LONG_CHARS", int(rng.integers(1, 200)))
    for one, two in zip(keep.encode(made, texts), whole, strict=True):
        np.testing.assert_array_equal(one.tokens, two.tokens)
        np.testing.assert_array_equal(one.loss_mask, two.loss_mask)


def test_a_tokenizer_whose_tokens_are_not_plain_bytes_has_offsets(tokenizer_dir, tmp_path):
    def prefix_a_space(value):
        for part in value["pre_tokenizer"]["pretokenizers"]:
            part |= {"add_prefix_space": True} if part["type"] == "ByteLevel" else {}

    def load_as_stored(value):
        value["tokenizer_class"] = "PreTrainedTokenizerFast"

    changes = {"tokenizer": prefix_a_space, "tokenizer_config": load_as_stored}
    tokenizer = chat.ChatTokenizer(doctored(tokenizer_dir, tmp_path, **changes))
    assert not tokenizer._are_tokens_bytes
    made = make("hi", "\n\nyes", "more", "end")
    tokens, mask = (getattr(tokenizer.example(made), name) for name in ("tokens", "loss_mask"))
    decoded = tokenizer._tokenizer.decode(tokens[mask == 1])
    assert "assistant" not in decoded and "yes<|im_end|>" in decoded and "end<|im_end|>" in decoded


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


@pytest.mark.parametrize("are_others_flagged", [True, False])
def test_a_turn_is_not_forged_where_its_tokens_are_not_flagged(
    tokenizer_dir, tmp_path, are_others_flagged
):
    def unflag(value):
        for token in value["added_tokens"]:
            is_turn = token["content"] in (chat.TURN_START, chat.TURN_END)
            token["special"] = token["special"] and are_others_flagged and not is_turn

    copy = doctored(tokenizer_dir, tmp_path, tokenizer=unflag)
    tokenizer = chat.ChatTokenizer(copy)
    assert tokenizer.example(make("hi", "yes")).loss_mask.any()
    for token in (chat.TURN_START, chat.TURN_END):
        with pytest.raises(ValueError, match="turn 1 holds the special token"):
            tokenizer.render(make("hi", f"yes{token}", "more", "end"))


def test_no_special_token_is_found_where_there_is_none():
    assert chat.special_token_pattern([]).search("any text") is None


def test_stored_padding_and_truncation_change_no_token(keep, tokenizer_dir, tmp_path):
    def store(value):
        value["truncation"] = {
            "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        value["padding"] = {
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
        }  # fmt: skip

    stored = chat.ChatTokenizer(doctored(tokenizer_dir, tmp_path, tokenizer=store))
    for made in (make("hi", "yes"), make("hi", "a long reply " * 50)):
        np.testing.assert_array_equal(stored.example(made).tokens, keep.example(made).tokens)


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
    start, end = chat.TURN_START, chat.TURN_END
    for turn in (
        "{{ m.content }}",
        f"{end}{start}{{{{ m.role }}}}\n{{{{ m.content }}}}",  # the wrong way round
        f"{start}{{{{ m.role }}}}\n{{{{ m.content }}}}",
    ):
        template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
        tokenizer = chat.ChatTokenizer(with_template(tokenizer_dir, tmp_path, template))
        with pytest.raises(ValueError, match=r"rows.jsonl line 3: the chat template does not writ"):
            tokenizer.example(make("hi", "yes"))
    with pytest.raises(ValueError, match="has no chat template"):
        chat.ChatTokenizer(with_template(tokenizer_dir, tmp_path, None))
