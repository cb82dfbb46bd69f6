"""Recording: sessions of Terminus 2's form, repeatable, written whole, with honest rewards."""

import collections
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sandboxes
import transcript

from data_pipeline.recorder import (
    family,
    garble,
    isolation,
    record,
    screen,
    session,
    slips,
)

SEED = 11


def manner(**changes):
    given = {"flaw": "none", "slip": False, "thinks": True, "stop_after": None, "garble": None}
    return session.Manner(**(given | changes))


def play(name, number=0, **changes):
    chosen = family.load_all()[name]
    return session.play(
        chosen, number, seed=SEED, sandbox=sandboxes.SANDBOX, manner=manner(**changes)
    )


def replies(row):
    return [m["content"] for m in row["conversations"] if m["role"] == "assistant"]


def heard(row):
    return [m["content"] for m in row["conversations"] if m["role"] == "user"]


def body(reply):
    return json.loads(reply.rpartition("</think>\n\n")[2])


def test_families_cover_the_domains():
    families = family.load_all()
    assert len(families) >= 45
    for domain in family.DOMAINS:
        assert sum(one.domain == domain for one in families.values()) >= 4, domain


def test_a_session_follows_the_protocol():
    row = play("log_status_counts")
    roles = [message["role"] for message in row["conversations"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    first, *rest = heard(row)
    assert "\n\nTask Description:\n/app/access.log" in first or "How often" in first
    assert "\n\nCurrent terminal state:\nroot@agent:" in first
    *observations, confirmation = rest
    assert all(text.startswith("New Terminal Output:\nroot@agent:") for text in observations)
    assert confirmation.startswith("Current terminal state:\n")
    bodies = [body(reply) for reply in replies(row)]
    assert [b["task_complete"] for b in bodies] == [False] * (len(bodies) - 2) + [True, True]
    assert all(list(b) == ["analysis", "plan", "commands", "task_complete"] for b in bodies)
    assert all(0 < c["duration"] <= 60 for b in bodies for c in b["commands"])
    assert row["episode"] == f"episode-{len(bodies) - 1}"
    assert row["complete"] and row["reward"] == 1.0


def test_what_is_typed_is_what_the_screen_echoes():
    row = play("drop_repeated_lines", 3)
    pairs = zip(replies(row)[:-2], heard(row)[1:], strict=False)
    for reply, output in pairs:
        for command in body(reply)["commands"]:
            assert f"# {command['keystrokes'].splitlines()[0]}" in output


def test_thinking_is_in_the_reply_or_not():
    assert all(r.startswith("<think>\n") for r in replies(play("bump_version"))[:-1])
    assert not any("<think>" in r for r in replies(play("bump_version", thinks=False)))


def test_a_garbled_reply_is_answered_with_the_parsers_complaint_and_sent_again():
    row = play("json_filter", garble=1)
    broken, again = replies(row)[1:3]
    with pytest.raises(json.JSONDecodeError) as raised:
        json.loads(broken.rpartition("</think>\n\n")[2])
    assert f"ERROR: Invalid JSON: {raised.value}" in heard(row)[2]
    assert body(again)["commands"]
    assert row["reward"] == 1.0


def test_every_way_of_garbling_breaks_the_json():
    reply = replies(play("bump_version"))[0]
    drawn = {garble.garble(reply, random.Random(seed)) for seed in range(30)}
    assert len({broken for broken, _ in drawn}) == 4
    for broken, reason in drawn:
        assert broken.startswith("<think>")
        with pytest.raises(json.JSONDecodeError) as raised:
            json.loads(broken.rpartition("</think>\n\n")[2])
        assert reason == f"Invalid JSON: {raised.value}"


def test_a_slip_shows_a_real_error_and_is_put_right():
    row = play("login_shells", slip=True)
    errors = [screen.error_line(text) for text in heard(row)[1:]]
    assert any(errors)
    assert "without the mistake" in replies(row)[1]
    assert row["reward"] == 1.0


@pytest.mark.parametrize(
    "line", ["rm data.txt", "sort a.txt > b.txt", "cat x && rm x", "sed -i s/a/b/ f.txt"]
)
def test_commands_that_may_change_something_are_not_mistyped(line):
    assert all(slips.draw(line, random.Random(seed)) is None for seed in range(20))


def test_slips_of_every_kind_are_drawn():
    drawn = [slips.draw("cat numbers.txt", random.Random(seed)) for seed in range(40)]
    assert all(slip is not None and slip.line != "cat numbers.txt" for slip in drawn)
    kinds = collections.Counter(slip.kind for slip in drawn)
    assert set(kinds) == {"word", "path", "flag"} and min(kinds.values()) >= 5


def test_every_slip_really_fails(tmp_path):
    lines = ["ls -l", "cat numbers.txt", "head -n 2 numbers.txt", "wc -l numbers.txt"]
    lines += ["sort numbers.txt", "grep -c 1 numbers.txt", "tail -n 1 numbers.txt"]
    lines += ["find . -type f", "sha256sum numbers.txt", "cut -c1 numbers.txt", "uniq numbers.txt"]
    drawn = [slips.draw(line, random.Random(i)) for line in lines for i in range(8)]
    mistyped = {slip for slip in drawn if slip is not None}
    assert len(mistyped) > 20
    with isolation.make_world({"numbers.txt": "1\n2\n"}, sandbox=sandboxes.SANDBOX) as world:
        script = "\n".join(
            f"{slip.line} >/dev/null 2>&1 && echo '{slip.line}'" for slip in mistyped
        )
        assert world.run(script)[1] == ""


def test_a_session_cut_short_is_not_complete():
    row = play("pin_versions", stop_after=2)
    assert len(replies(row)) == 2 and not row["complete"]


@sandboxes.needs_bwrap  # without it the folder's name is random
@pytest.mark.parametrize("name", ["git_branch_commit", "endless_loop"])
def test_the_same_seed_records_the_same_session(name):
    drawn = family.load_all()[name]
    rows = [session.play(drawn, 5, seed=SEED, sandbox=sandboxes.SANDBOX) for _ in range(2)]
    assert rows[0] == rows[1]
    assert session.play(drawn, 6, seed=SEED, sandbox=sandboxes.SANDBOX) != rows[0]


@sandboxes.needs_bwrap  # without it the folder's name is random
@pytest.mark.parametrize(
    "name", ["rotate_logs", "login_shells", "write_function", "shortest_route"]
)
def test_observations_are_what_another_terminal_shows(name):
    row = play(name, slip=True)
    typed = [c["keystrokes"] for reply in replies(row) for c in body(reply)["commands"]]
    task = family.load_all()[name].make(random.Random(f"{SEED}/{name}/0"))
    with isolation.make_world(task.files, sandbox="bwrap") as world:
        shown = transcript.of(world, "".join(typed))
    assert shown.count("\n") >= 10 and observed(row) == shown


def observed(row):
    """All that a session's messages show of the screen, as one text."""
    first, *rest = heard(row)
    screens = [first.partition("Current terminal state:\n")[2]]
    for text in rest:  # the framing: a heading before, a blank line and the question behind
        screens.append(text.partition("Terminal Output:\n")[2] or text.partition("state:\n")[2])
    screens[-1] = screens[-1].rpartition("\n\n")[0]
    # Each begins with the prompt that the one before ends with.
    return "".join(screen.rstrip()[: screen.rstrip().rfind("\n") + 1] for screen in screens)


def test_record_writes_the_schema_in_order_and_leaves_nothing_partial(tmp_path):
    families = record.choose_families(["fill_gaps", "disk_report"], sandbox=sandboxes.SANDBOX)
    rows = record.record(families, num_sessions=5, seed=2, sandbox=sandboxes.SANDBOX, num_workers=2)
    assert [row["task"][:-4] for row in rows] == ["fill_gaps", "disk_report"] * 2 + ["fill_gaps"]
    path = tmp_path / "deep" / "s.parquet"
    record.write(rows, path)
    table = pq.read_table(path)
    assert table.schema.equals(record.SCHEMA) and table.to_pylist() == rows
    assert [p.name for p in path.parent.iterdir()] == ["s.parquet"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "s.parquet"
    path.write_text("old")
    with pytest.raises(pa.ArrowInvalid, match="not a number"):
        record.write([{"reward": "not a number"}], path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_unknown_families_and_missing_tools_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown names: nope; known are .*fill_gaps"):
        record.choose_families(["fill_gaps", "nope"], sandbox=sandboxes.SANDBOX)
    odd = family.Family(
        name="odd",
        domain="security",
        difficulty="easy",
        tools=("nosuchtool",),
        make=family.load_all()["fill_gaps"].make,
    )
    monkeypatch.setitem(family._REGISTRY, "odd", odd)
    with pytest.raises(ValueError, match="odd needs nosuchtool"):
        record.choose_families(["odd"], sandbox=sandboxes.SANDBOX)
    assert "odd" not in [one.name for one in record.choose_families([], sandbox=sandboxes.SANDBOX)]


def test_more_sessions_than_numbers_are_refused():
    families = record.choose_families(["fill_gaps", "disk_report"], sandbox=sandboxes.SANDBOX)
    with pytest.raises(ValueError, match=r"--sessions=2001 must be at most 1000 .* 2000 for"):
        record.record(families, num_sessions=2001, seed=2, sandbox=sandboxes.SANDBOX, num_workers=1)


def test_a_shell_that_fails_names_the_session_and_the_way_out(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no prompt within 30 s: ''")

    monkeypatch.setattr(session, "play", fail)
    families = record.choose_families(["fill_gaps"], sandbox=sandboxes.SANDBOX)
    with pytest.raises(ValueError, match=r"^fill_gaps 0: no prompt .* lower --num_workers"):
        record.record(families, num_sessions=1, seed=2, sandbox=sandboxes.SANDBOX, num_workers=1)
