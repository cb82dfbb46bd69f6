import pytest
from conversations import dialogue, plain

from data_pipeline import records
from data_pipeline.curation import edits

ERROR = "Previous response had parsing errors:\nERROR: No valid JSON found\n\nPlease fix these."


def edit(*contents, failures="keep", tails="keep", **columns):
    row = dialogue(*contents, **columns)
    made = records.conversation_from_row(row, location="here")
    return edits.edit(made, parse_failures=failures, null_tails=tails)


def contents(conversation):
    return [message.content for message in conversation.messages]


def test_keep_changes_nothing():
    made, done = edit("q", "bad", ERROR, "good", "screen", "null")
    assert contents(made)[-1] == "null" and done == [] and made.get("edits") is None


def test_masked_turns_stay_and_are_named():
    made, done = edit("q", "bad", ERROR, "worse", "\n" + ERROR, "good", failures="mask")
    assert len(made.messages) == 6 and made.get("untrained_turns") == [1, 3]
    assert done == made.get("edits") == ["masked turns 1, 3"]
    row = made.to_row()
    assert records.conversation_from_row(row, location="x").metadata == made.metadata
    again, done = edits.edit(made, parse_failures="mask", null_tails="keep")
    assert done == [] and again == made


@pytest.mark.parametrize("failures_at", [(), (0,), (1,), (0, 2), (0, 0, 1), (2, 2)])
def test_spliced_reads_as_if_the_failures_had_not_been(failures_at):
    """The law: failures put into a good session are gone again."""
    good = ["q", "r0", "s0", "r1", "s1", "r2"]
    turns = []
    for i, content in enumerate(good):
        if i % 2:
            turns += ["bad", ERROR] * failures_at.count(i // 2)
        turns.append(content)
    made, done = edit(*turns, failures="splice")
    assert contents(made) == good and bool(done) == bool(failures_at)
    assert plain(made.messages) == dialogue(*good)["conversations"]


def test_a_spliced_tail_takes_its_question_along():
    made, _ = edit("q", "r", "screen", "bad", ERROR, failures="splice")
    assert contents(made) == ["q", "r"]
    made, _ = edit("q", "bad", ERROR, failures="splice")
    assert contents(made) == []


def test_numbers_of_untrained_turns_follow_the_splice():
    made, _ = edit("q", "bad", ERROR, "odd", "screen", "good", failures="splice",
                   untrained_turns=[1, 3])  # fmt: skip
    assert contents(made) == ["q", "odd", "screen", "good"] and made.get("untrained_turns") == [1]


@pytest.mark.parametrize(
    "null",
    ["null", " null\n", "<think>\nSo.\n</think>\n\nnull", "</think>null", "```json\nnull\n```",
     "</think>\n``` null ```\n"],
)  # fmt: skip
def test_null_tails_are_cut_with_what_they_answer(null):
    made, done = edit("q", "r", "s", null, tails="cut")
    assert contents(made) == ["q", "r"] and done == ["cut turns 2, 3"]
    made, done = edit("q", "r", "s", null, "t", null, "u", tails="cut")
    assert contents(made) == ["q", "r"] and done == ["cut turns 2, 3, 4, 5, 6"]
    assert contents(edit("q", null, tails="cut")[0]) == []


@pytest.mark.parametrize(
    "reply",
    [
        '{"a": null}',
        "null null",
        "```null",
        "```py\nnull\n```",
        '"null"',
        "<think>null</think>\nok",
    ],
)
def test_other_replies_are_no_null_tail(reply):
    assert edit("q", reply, "s", reply, tails="cut")[1] == []
    assert edit("q", "null", "s", "r", tails="cut")[1] == []


def test_both_edits_at_once():
    made, done = edit("q", "bad", ERROR, "r", "s", "null", failures="mask", tails="cut")
    assert contents(made) == ["q", "bad", ERROR, "r"] and made.get("untrained_turns") == [1]
    assert done == ["masked turns 1", "cut turns 4, 5"]


def test_a_reply_that_is_a_null_and_no_text_is_a_null_tail():
    assert contents(edit("q", "r", "s", None, tails="cut")[0]) == ["q", "r"]
    for turns in (("q", None, "s", "r"), (None,), ("q", "r", None)):
        with pytest.raises(ValueError, match="content of type NoneType"):
            edit(*turns)
