import collections
import json
import re
import time

import pytest

from data_pipeline.curation import terminus

# What Harbor says, and what we say for it.
SAME = [
    (r"No valid JSON (object )?found.*", "no JSON object"),
    (r"Invalid JSON: .*", "not valid JSON: .*"),
    (r"Missing required fields: (.*)", r"missing fields: \1"),
    (r"Field 'commands' must be an array", "`commands` is not an array"),
    (r"Field '(analysis|plan)' should be a string", r"`\1` is not a string"),
    (r"Field 'task_complete' should be .*", "`task_complete` is neither .*"),
    (r"(Fields|Sections) appear in wrong order.*", "order of (fields|sections): .*"),
    (r"Command (\d+) must be an object", r"command \1 is not an object"),
    (r"Command (\d+) missing required 'keystrokes' field", r"command \1 has no keystrokes"),
    (r"Command (\d+) 'keystrokes' must be a string", r"command \1 has keystrokes that are not .*"),
    (r"Command (\d+): Invalid duration value.*", r"command \1 has a duration that is not .*"),
    (r"Command (\d+): Missing duration.*", r"command \1 has no duration"),
    (r"Command (\d+): Unknown fields: (.*)", r"command \1 has unknown fields: \2"),
    (r"Command (\d+) should end with newline.*", r"command \1 runs into the next one.*"),
    (r"Extra text detected before JSON.*", "text before the object"),
    (r"Extra text detected after JSON.*", "text behind the object"),
    (r"AUTO-CORRECTED: Fixed incomplete JSON.*", "closing braces were missing"),
    (r"AUTO-CORRECTED: Extracted JSON.*", "the object was taken out of other text"),
    (r"No <response> tag found", "no <response> block"),
    (r"Extra text detected before <response> tag", "text before <response>"),
    (r"Extra text detected after </response> tag", "text behind </response>"),
    (r"IMPORTANT: Only issue one <(\w+)> block.*", r"several <\1>.*"),
    (r"Multiple <(\w+)> sections found", r"several <\1>.*"),
    (r"Missing <(\w+)> section", r"no <\1>"),
    (r"Unknown tag found: <(\w+)>.*", r"unknown tag <\1>"),
    (r"Commands section is empty.*", "<commands> is empty"),
    (r"Command (\d+): Attribute '(\w+)' value should .*", r"command \1: attribute \2 is not.*"),
    (r"Command (\d+): Use double quotes for .* '(\w+)'.*", r"command \1: attribute \2 is in.*"),
    (r"Command (\d+): Unknown attribute '(\w+)'.*", r"command \1: unknown attribute \2"),
    (r"Warning: (&\w+;) is read verbatim.*", r"\1 is typed as it stands"),
    (r"Warning: \\r\\n line endings.*", r"\\\\r\\\\n is typed as it stands"),
]  # fmt: skip
OURS = re.compile(r"command \d+: (C-[a-z] is not alone|a wait of .* s is outside)")


@pytest.fixture(scope="module")
def replies(goldens):
    lines = (goldens / "terminus_replies.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def expected(said: str) -> str:
    for harbors, ours in SAME:
        if found := re.fullmatch(harbors, said, re.DOTALL):
            return found.expand(ours)
    raise AssertionError(f"no rule of ours for {said!r}")


def test_what_harbors_parsers_say(replies):
    assert len(replies) > 250
    told = collections.Counter()
    for golden in replies:
        parse = terminus.parse_json if golden["variant"] == "json" else terminus.parse_xml
        found = parse(golden["reply"])
        assert [[c.keystrokes, c.duration] for c in found.commands] == golden["commands"], golden
        assert (found.is_complete, bool(found.error)) == (
            golden["is_complete"], bool(golden["error"]),
        ), golden  # fmt: skip
        if golden["error"]:
            assert re.fullmatch(expected(golden["error"]), found.error), golden
        left = [warning for warning in found.warnings if not OURS.match(warning)]
        for said in golden["warnings"]:
            [ours, *_] = [w for w in left if re.fullmatch(expected(said), w)] or [None]
            assert ours is not None, (golden, found)
            left.remove(ours)
            told[expected(said)] += 1
        assert left == [], golden
    assert len(told) > 30


def reply_of(*keystrokes, duration=1):
    commands = [{"keystrokes": keys, "duration": duration} for keys in keystrokes]
    return json.dumps({"analysis": "", "plan": "", "commands": commands})


@pytest.mark.parametrize(
    ("keystrokes", "is_warned"),
    [("C-c", False), ("C-d", False), ("C-c\n", False), ("echo C-c\n", True), ("C-c C-d", True),
     ("gcc a.C-b", False), ("ls\n", False)],
)  # fmt: skip
def test_control_keys_stand_alone(keystrokes, is_warned):
    found = terminus.parse(reply_of(keystrokes))
    assert any("is not alone" in warning for warning in found.warnings) == is_warned
    assert not found.error


@pytest.mark.parametrize(
    ("seconds", "is_warned"), [(0, False), (60, False), (61, True), (-1, True)]
)
def test_waits_are_bounded(seconds, is_warned):
    found = terminus.parse(reply_of("make\n", duration=seconds))
    assert [("is outside" in warning) for warning in found.warnings] == [True] * is_warned


def test_the_variant_and_the_thinking_are_seen():
    xml = '<response><commands><keystrokes duration="1">ls\n</keystrokes></commands></response>'
    for thinking in (
        "",
        "<think>{}</think>",
        "<think>\nMaybe <response>?\n</think>\n\n",
        "</think>",
    ):
        for reply in (reply_of("ls\n"), xml, reply_of("echo '<response>'\n")):
            found = terminus.parse(thinking + reply)
            assert found.error == "" and len(found.commands) == 1, (thinking, reply)


@pytest.mark.parametrize(
    "hostile",
    ["{" * 200_000, "{}" * 100_000 + "{", '{"a":' * 100_000, "[" * 200_000, '"' * 200_001,
     "\\" * 200_001, "{ {}" * 50_000, '{"a": ' + "9" * 5000 + "}", "<response>" * 20_000,
     "<response><analysis>" * 3000, "<response><" + "a" * 2_000_000],
)  # fmt: skip
def test_hostile_replies_take_no_time(hostile):
    began = time.monotonic()
    assert terminus.parse(hostile).error
    assert time.monotonic() - began < 3


def test_real_replies(shared_data):
    """Its README: one reply of 46 is malformed."""
    path = shared_data / "trajectories" / "terminus2_real.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    turns = [turn for row in rows for turn in row["conversations"] if turn["role"] == "assistant"]
    errors = [found.error for turn in turns if (found := terminus.parse(turn["content"])).error]
    assert len(turns) == 46 and len(errors) == 1
