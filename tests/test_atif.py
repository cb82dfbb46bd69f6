import json
import os
import random
import re

import pytest
from harbor_side import exported, needs_harbor, write_trial

from data_pipeline import atif, records

LINEAR = "hello-world-context-summarization-linear-history"
TRACES = "hello-world-context-summarization"
KINDS = ("answers", "questions", "summary")


def step(source="agent", message="m", **more):
    return {"source": source, "message": message} | more


def seen(*texts):
    return {"results": [{"content": text} for text in texts]}


def trajectory(*steps, agent=None, **more):
    numbered = [{"step_id": i, **one} for i, one in enumerate(steps, 1)]
    agent = {"name": "terminus-2", "version": "2", "model_name": "openai/m"} | (agent or {})
    return {"schema_version": "ATIF-v1.6", "agent": agent, "steps": numbered} | more


def session(tmp_path, files, **options):
    return atif.read_session(write_trial(tmp_path / "trial", files) / "agent", **options)


def turns(episode):
    return [{"role": m.role, "content": m.content} for m in episode.messages]


@pytest.fixture(scope="module")
def golden(shared_data):
    """Reads a file of the goldens."""
    folder = shared_data / "harbor" / "golden"
    return lambda name: json.loads((folder / name).read_text())


def without_prompts(conversation):
    """In the golden trajectories, not in the rows, Harbor took out each line that shows a prompt
    alone, and some empty ones."""

    def settled(text):
        return re.sub(r"\n+", "\n", text.replace("root@CONTAINER_ID:/app#\n", ""))

    return [turn | {"content": settled(turn["content"])} for turn in conversation]


def as_said(subagent, main):
    """A subagent's golden is of a run that kept what was understood of the main agent's replies;
    here they are as they were said."""
    replies = iter([one for one in main["steps"] if one["source"] == "agent"])
    for one in subagent["steps"]:
        if one.pop("tool_calls", None):
            one["message"] = next(replies)["message"]
    return subagent


def test_golden_rows_of_a_summarised_history(golden, tmp_path):
    """Harbor's own rows: of those that are prefixes of one another the last, and the subagents'."""
    files = {
        "trajectory.json": golden(f"{LINEAR}.trajectory.json"),
        "trajectory.cont-1.json": golden(f"{LINEAR}.trajectory.cont-1.json"),
    }
    for kind in KINDS:
        name = f"trajectory.summarization-1-{kind}.json"
        files[name] = as_said(golden(f"{TRACES}.{name}"), files["trajectory.json"])
    expected = golden(f"{TRACES}.traces.json")
    found = session(tmp_path, files)
    assert found.faults == ()
    by_place = {
        (row["trace_source"], row["episode"]): without_prompts(row["conversations"])
        for row in expected
    }
    kept = {
        (one.source, f"episode-{one.number}"): without_prompts(turns(one)) for one in found.episodes
    }
    assert kept == {place: by_place[place] for place in kept}
    assert [one.number for one in found.episodes] == [2, 6, 0, 0, 0]
    # What is not kept is the beginning of what is, and no more than that was left out.
    for place, conversation in by_place.items():
        assert any(conversation == one[: len(conversation)] for one in kept.values()), place
    assert sum(1 + one.collapsed for one in found.episodes) == len(expected)
    for kind in KINDS:
        [alone] = golden(f"{TRACES}.summarization-1-{kind}.traces.json")
        assert kept[f"summarization-1-{kind}", "episode-0"] == without_prompts(
            alone["conversations"]
        )


def test_golden_history_with_reasoning(golden, tmp_path):
    """Its trajectory holds what was understood, Harbor's row what was said: all else is equal."""
    [*_, expected] = golden("hello-world-invalid-json.traces.json")
    [found] = session(
        tmp_path, {"trajectory.json": golden("hello-world-invalid-json.trajectory.json")}
    ).episodes
    ours, theirs = (without_prompts(c) for c in (turns(found), expected["conversations"]))
    assert found.number == 3
    assert [turn["role"] for turn in ours] == [turn["role"] for turn in theirs]
    assert ours[0::2] == theirs[0::2]
    thoughts = [[turn["content"].split("\n")[0] for turn in c[1::2]] for c in (ours, theirs)]
    assert thoughts[0] == thoughts[1]
    assert all(thought.startswith("<think>") for thought in thoughts[0])


@needs_harbor
def test_golden_trajectories_equal_harbors_exporter(golden, shared_data, tmp_path):
    """Every golden as it stands, of raw and of parsed replies, and of a trial out of time."""
    names = ("hello-world-invalid-json", "hello-world-timeout", LINEAR, TRACES)
    for name in names:
        files = {
            f"trajectory{path.name.removeprefix(f'{name}.trajectory')}": path.read_text()
            for path in (shared_data / "harbor" / "golden").glob(f"{name}.trajectory*.json")
        }
        write_trial(tmp_path / name, files)
    for name, rows in exported(tmp_path).items():
        theirs = {(row["trace_source"], row["episode"]): row["conversations"] for row in rows}
        found = atif.read_session(tmp_path / name / "agent")
        assert sum(1 + one.collapsed for one in found.episodes) == len(rows)
        for one in found.episodes:
            assert turns(one) == theirs[one.source, f"episode-{one.number}"]
    assert set(exported(tmp_path)) == set(names)


def random_trajectory(rng, *, number=0, last=True):
    """Steps of every kind that Harbor's exporter looks at."""
    texts = ("", "a", "b\nc", "done</think>\n{}", "<think>x</think>y", "é\u2028", '{"a": 1}')
    steps = []
    for _ in range(rng.randrange(1, 8)):
        source = rng.choice(("user", "agent", "agent", "agent", "system"))
        one = step(source, rng.choice(texts))
        if source == "agent":
            if rng.random() < 0.4:
                one["reasoning_content"] = rng.choice(texts)
            if rng.random() < 0.3:
                call = {"function_name": "bash_command", "arguments": {"keys": rng.choice(texts)}}
                one["tool_calls"] = [call] * rng.randrange(3)
            if rng.random() < 0.8:
                one["observation"] = seen(*rng.choices(texts, k=rng.randrange(3)))
            if rng.random() < 0.2:
                one["observation"] = {"results": [{"subagent_trajectory_ref": []}]}
            one["metrics"] = {"prompt_tokens": rng.randrange(9), "completion_tokens": 1}
        if rng.random() < 0.2:
            one["is_copied_context"] = True
        steps.append(one)
    more = {} if last else {"continued_trajectory_ref": f"trajectory.cont-{number + 1}.json"}
    tools = [{"name": "bash"}] if rng.random() < 0.3 else None
    return trajectory(step("user", "task"), *steps, agent={"tool_definitions": tools}, **more)


@needs_harbor
def test_rows_equal_harbors_exporter(tmp_path):
    """Random trials: rows, episodes' numbers, what is collapsed, and which turns are trained."""
    rng = random.Random(5)
    for i in range(150):
        num = rng.choice((0, 0, 1, 2))
        files = {"trajectory.json": random_trajectory(rng, last=num == 0)}
        for k in range(1, num + 1):
            name = f"trajectory.cont-{k}.json"
            files[name] = random_trajectory(rng, number=k, last=k == num)
        if num:
            files["trajectory.summarization-1-summary.json"] = random_trajectory(rng)
        write_trial(tmp_path / f"trial-{i}", files)
    num_compared = 0
    for name, rows in exported(tmp_path).items():
        agent_dir = tmp_path / name / "agent"
        theirs = {(row["trace_source"], row["episode"]): row for row in rows}
        if not any(source == "main" for source, _ in theirs):
            with pytest.raises(atif.TrajectoryError, match=atif.NO_REPLY):
                atif.read_session(agent_dir)
            continue
        found = atif.read_session(agent_dir)
        assert sum(1 + one.collapsed for one in found.episodes) == len(rows)
        for one in found.episodes:
            row = theirs[one.source, f"episode-{one.number}"]
            assert turns(one) == row["conversations"]
            assert one.model == row["model"]
            num_compared += 1
        # Harbor makes an episode of each reply that a file does not copy: these are trained, once.
        trained = sum(
            len([m for m in one.messages if m.role == "assistant"]) - len(one.copied_turns)
            for one in found.episodes
            if one.source == atif.MAIN
        )
        assert trained == sum(source == "main" for source, _ in theirs)
    assert num_compared > 100


def test_copied_turns_and_tokens_are_counted_once(tmp_path):
    used = {"metrics": {"prompt_tokens": 10, "completion_tokens": 3, "cost_usd": 0.5}}
    copied = {"is_copied_context": True}
    files = {
        "trajectory.json": trajectory(
            step("user"), step(observation=seen("o"), **used), step(**used),
            continued_trajectory_ref="trajectory.cont-1.json",
        ),
        "trajectory.cont-1.json": trajectory(
            step("user", **copied), step(**copied, **used), step("user"), step(**used)
        ),
    }  # fmt: skip
    first, second = session(tmp_path, files).episodes
    assert (first.copied_turns, second.copied_turns) == ((), (1,))
    assert [(e.input_tokens, e.output_tokens, e.cost_usd) for e in (first, second)] == [
        (20, 6, 1.0),
        (10, 3, 0.5),
    ]


def test_parts_of_a_message_are_kept_and_media_refused(tmp_path):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    [found] = session(tmp_path / "a", {"trajectory.json": trajectory(step(message=parts))}).episodes
    assert found.messages == (records.Message("assistant", "one\ntwo"),)
    image = [{"type": "image", "source": {}}]
    shown = trajectory(step(observation={"results": [{"content": image}]}), step())
    with pytest.raises(atif.TrajectoryError, match=atif.MEDIA):
        session(tmp_path / "b", {"trajectory.json": shown})


BROKEN = {
    "cut": '{"steps": [{"source"',
    "list": "[]",
    "no steps": "{}",
    "steps of text": '{"steps": ["a"]}',
    "agent of text": '{"agent": "x", "steps": []}',
    "observation of text": json.dumps(trajectory(step(observation="x"), step())),
    "metrics of text": json.dumps(trajectory(step(metrics="x"))),
    "tool call of text": json.dumps(trajectory(step(tool_calls=["x"]))),
    "deep": "[" * 100_000,
    "bytes": "\udcff",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_trajectories(tmp_path, name):
    folder = write_trial(tmp_path / "trial", {}) / "agent"
    (folder / "trajectory.json").write_bytes(BROKEN[name].encode(errors="surrogateescape"))
    with pytest.raises(atif.TrajectoryError) as caught:
        atif.read_session(folder)
    assert caught.value.reason == atif.DAMAGED


def test_missing_trajectory(tmp_path):
    with pytest.raises(atif.TrajectoryError) as caught:
        session(tmp_path, {})
    assert caught.value.reason == atif.NO_FILE


def test_what_lies_beside_a_good_trajectory_is_no_reason_to_drop_it(tmp_path):
    files = {
        "trajectory.json": trajectory(step(), continued_trajectory_ref="trajectory.cont-1.json"),
        "trajectory.cont-1.json": "{",
        "trajectory.summarization-1-summary.json": "{",
    }
    found = session(tmp_path, files)
    assert len(found.episodes) == 1
    assert sorted(found.faults) == sorted((atif.LOST_CONTINUATION, atif.LOST_SUBAGENT))


@pytest.mark.parametrize(
    "name", ("../../secret.json", "/etc/passwd", "trajectory.json", "trajectory.cont-1.json/..", "")
)
def test_a_name_from_a_file_leads_nowhere_else(tmp_path, name):
    secret = trajectory(step(message="secret"))
    (tmp_path / "secret.json").write_text(json.dumps(secret))
    found = session(
        tmp_path, {"trajectory.json": trajectory(step(), continued_trajectory_ref=name)}
    )
    assert len(found.episodes) == 1 and "secret" not in str(found)


def test_links_and_pipes_are_not_followed(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(trajectory(step(message="secret"))))
    folder = write_trial(tmp_path / "trial", {"trajectory.json": trajectory(step())}) / "agent"
    (folder / "trajectory.summarization-1-link.json").symlink_to(secret)
    os.mkfifo(folder / "trajectory.summarization-1-pipe.json")
    found = atif.read_session(folder)
    assert len(found.episodes) == 1 and found.faults == (atif.LOST_SUBAGENT,) * 2
    (folder / "trajectory.json").unlink()
    (folder / "trajectory.json").symlink_to(secret)
    with pytest.raises(atif.TrajectoryError, match=atif.DAMAGED):
        atif.read_session(folder)
