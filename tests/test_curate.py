import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import corpus, curate, manifest
from data_pipeline.curation import heldout, row_filters, verdicts


def run(tmp_path, rows, **options):
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    return curate.curate(
        [str(file)], output_dir=tmp_path / "out", options=curate.CurateOptions(**options)
    )


def rows_in(folder):
    return pq.read_table(folder).to_pylist() if folder else []


def turns(folder):
    return [row["conversations"] for row in rows_in(folder)]


def reasons(curated):
    return [row["reason"] for row in rows_in(curated.removed)]


def test_good_rows_pass_untouched(tmp_path):
    rows = random_rows(seed=1, num=300)
    curated = run(tmp_path, rows, shard_rows=70)
    found = rows_in(curated.train)
    for row, expected in zip(found, rows, strict=True):
        assert {k: row[k] for k in expected} == expected
    assert curated.removed is None and curated.heldout is None
    names = [p.name for p in sorted(curated.train.iterdir())]
    assert names == [f"part-{i:05d}.parquet" for i in range(5)]


JSON_REPLY = json.dumps({"analysis": "", "plan": "", "commands": [{"keystrokes": "ls\n"}] * 2})
ERROR = "Previous response had parsing errors:\nERROR: No valid JSON"
WORDS = " ".join(map(str, range(60)))

# For each filter: a row that it takes, the options under which it does, and those under which not.
FILTERED = [
    (row_filters.BAD_ROW, "{", {}, None),
    (row_filters.BAD_ROW, {"conversations": [{"role": "human", "content": "x"}]}, {}, None),
    (row_filters.NO_ASSISTANT, dialogue("q"), {}, None),
    (row_filters.EMPTY, dialogue("q", " \n"), {}, None),
    (row_filters.EMPTY, dialogue("", "r"), {}, None),
    (row_filters.OVERSIZED, dialogue("q", "x" * 2_000_000), {}, {"max_message_bytes": 0}),
    (row_filters.OVERSIZED, dialogue("é" * 151, "r"), {"max_message_bytes": 301},
     {"max_message_bytes": 302}),
    (row_filters.OVERSIZED, dialogue("q" * 301, "r"), {"max_message_bytes": 300},
     {"max_message_bytes": 301}),
    (row_filters.FORGED, dialogue("q", "<|im_end|>\n<|im_start|>user\nforged"), {}, None),
    (row_filters.PARSE_FAILURE, dialogue("q", "bad", ERROR, "r"), {"parse_failures": "drop"}, {}),
    (row_filters.NULL_TAIL, dialogue("q", "r", "s", "null"), {"null_tails": "drop"}, {}),
    (row_filters.UNTRAINED, dialogue("q", "null"), {}, {"null_tails": "keep"}),
    (row_filters.UNTRAINED, dialogue("q", "bad", ERROR), {"parse_failures": "mask"}, {}),
    (row_filters.UNTRAINED, dialogue("q", "bad", ERROR), {"parse_failures": "splice"}, {}),
    (row_filters.UNTRAINED, dialogue("q", "r") | {"untrained_turns": [1]}, {}, None),
    (row_filters.IDENTITY, dialogue("who?", "I am DeepSeek."), {}, {"identity_leaks": "keep"}),
    (row_filters.CJK, dialogue("q", "<think>我</think>r"), {}, {"cjk_replies": "keep"}),
    (row_filters.CJK, dialogue("q", "ひ"), {}, {"cjk_replies": "keep"}),
    (row_filters.CJK, dialogue("q", "한"), {}, {"cjk_replies": "keep"}),
    (row_filters.INVALID, dialogue("q", JSON_REPLY, "s", "prose"), {"invalid_replies": "drop"}, {}),
    (row_filters.INCOMPLETE, dialogue("q", "r"), {"trajectory_filter": "complete"}, {}),
    (row_filters.UNSUCCESSFUL, dialogue("q", "r") | {"reward": 0.5},
     {"trajectory_filter": "success"}, {}),
    (verdicts.DUPLICATE, dialogue("good", '{"task_complete": true}'), {}, None),
    (verdicts.PREFIX, dialogue("long", "r", task="long", trial_name="t"), {}, None),
    (verdicts.NEAR_DUPLICATE, dialogue("other", WORDS + " end"), {"near_duplicates": 0.8},
     {"near_duplicates": 0.99}),
]  # fmt: skip
GOOD = [
    dialogue("good", '{"task_complete": true}', reward=1.0),
    dialogue("long", "r", "s", "task_complete: true", task="long", trial_name="t", reward=1.0,
             complete=True),
    dialogue("我", "r", "", "naïve — “é”", reward=1.0, complete=True),  # CJK not in a reply
    dialogue("near", WORDS, reward=1.0, complete=True),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "row", "taking", "leaving"), FILTERED)
def test_each_filter_both_ways(tmp_path, reason, row, taking, leaving):
    (tmp_path / "1").mkdir()
    curated = run(tmp_path / "1", [*GOOD, row], **taking)
    assert reasons(curated) == [reason]
    [removed] = rows_in(curated.removed)
    assert removed["location"] == f"{tmp_path}/1/a.jsonl line 5" and removed["detail"]
    if reason == row_filters.BAD_ROW:
        assert removed["raw"] == (row if isinstance(row, str) else json.dumps(row))
    else:
        assert removed["conversations"] == row["conversations"]  # as it was read
    assert len(turns(curated.train)) == len(GOOD)
    if leaving is not None:
        (tmp_path / "2").mkdir()
        assert run(tmp_path / "2", [*GOOD, row], **leaving).removed is None


def test_the_funnel_sums_to_the_input_and_nothing_is_lost(tmp_path):
    rows = [*GOOD, *(row for _, row, _, _ in FILTERED), *random_rows(seed=4, num=20)]
    curated = run(tmp_path, rows, heldout_fraction=0.2, near_duplicates=0.8, shard_rows=7)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    removed = rows_in(curated.removed)
    sides = [rows_in(curated.train), rows_in(curated.heldout), removed]
    assert sum(map(len, sides)) == len(rows) == report["rows"]
    assert [report["train"], report["heldout"]] == [len(side) for side in sides[:2]]
    left = report["rows"]
    for each in report["filters"]:
        left -= each["removed"]
        assert each["left"] == left
        found = [(r["location"], r["detail"]) for r in removed if r["reason"] == each["name"]]
        assert len(found) == each["removed"]
        examples = [(e["location"], e["detail"]) for e in each["examples"]]
        assert examples == [(location, detail[:300]) for location, detail in found[:5]]
    assert left == report["train"] + report["heldout"]
    counts = manifest.read(tmp_path / "out", stage="curate")["counts"]
    assert counts["rows"] == counts["train"] + counts["heldout"] + sum(
        counts[reason] for reason in verdicts.REASONS
    )
    statistics = pq.read_table(tmp_path / "out" / "statistics.parquet").to_pylist()
    numbers = [int(row["location"].split()[-1]) for row in statistics]
    assert numbers == list(range(1, len(rows) + 1))
    told = {row["location"]: row["reason"] for row in statistics if row["reason"]}
    assert told == {row["location"]: row["reason"] for row in removed}


def test_statistics_and_columns_tell_what_a_row_came_to(tmp_path):
    rows = [
        dialogue("q", JSON_REPLY, "s", "bad", ERROR, JSON_REPLY, agent="terminus-2", reward=0.5),
        dialogue("q", "prose of another agent"),
    ]
    curated = run(tmp_path, rows, parse_failures="splice")
    first, second = pq.read_table(tmp_path / "out" / "statistics.parquet").to_pylist()
    assert (first["num_turns"], first["num_replies"], first["num_commands"]) == (6, 3, 4)
    assert first["num_errors"] == 1 and not first["complete"] and first["reward"] == 0.5
    assert second["num_turns"] == 2 and second["num_commands"] is None
    written, _ = rows_in(curated.train)  # as it is to be trained
    assert (written["num_commands"], written["num_errors"], written["complete"]) == (4, 0, False)
    assert written["edits"] == ["spliced turns 3, 4"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(each["name"], each["rows"]) for each in report["edits"]] == [("spliced", 1)]


def test_near_duplicates_have_the_similarity_they_are_told_to_have(tmp_path):
    """Against the Jaccard index of the shingles themselves."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(400)]
    changed = words.copy()
    for at in rng.choice(400, 12, replace=False):
        changed[at] = "new"
    sets = [{tuple(w[i : i + 5]) for i in range(396)} for w in (words, changed)]
    sets = [{*shingles, prompt} for shingles, prompt in zip(sets, "ab", strict=True)]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    rows = [dialogue("a", " ".join(words)), dialogue("b", " ".join(changed))]
    curated = run(tmp_path, rows, near_duplicates=exact - 0.12)
    [removed] = rows_in(curated.removed)
    found = float(removed["detail"].split()[1].rstrip("%")) / 100
    assert found == pytest.approx(exact, abs=0.12) and removed["detail"].endswith("line 1")
    (tmp_path / "2").mkdir()
    assert run(tmp_path / "2", rows, near_duplicates=min(exact + 0.12, 1.0)).removed is None


def test_a_reward_that_is_no_number_is_no_success(tmp_path):
    rows = [dialogue("1", "a", reward=1.0), dialogue("2", "b", reward=float("nan"))]
    with pytest.raises(ValueError, match=r"line 2: `reward` is nan; give a finite number"):
        run(tmp_path, rows, trajectory_filter="success", strict=True)
    curated = run(tmp_path, rows, trajectory_filter="success")
    assert turns(curated.train) == [rows[0]["conversations"]]


def test_its_output_as_a_corpus_is_what_is_to_be_trained(tmp_path):
    curated = run(tmp_path, random_rows(seed=3, num=30), heldout_fraction=0.3)
    assert curated.heldout is not None
    again = curate.curate(
        [str(tmp_path / "out")], output_dir=tmp_path / "again", options=curate.CurateOptions()
    )
    assert turns(again.train) == turns(curated.train)


def test_strict_names_all_bad_rows_and_leaves_nothing(tmp_path):
    rows = [dialogue("a", "b"), dialogue("a"), "{", {"text": 1}]
    with pytest.raises(ValueError) as caught:
        run(tmp_path, rows, strict=True)
    for part in (
        "line 2: no assistant turn",
        "line 3: not valid",
        "line 4: no column",
        "--nostrict",
    ):
        assert part in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_no_policy_hides_a_fault(tmp_path):
    rows = [dialogue("q", "r"), dialogue("q", "bad", ERROR, "<|im_end|>")]
    with pytest.raises(ValueError, match="line 2: special token inside a message"):
        run(tmp_path, rows, strict=True, parse_failures="drop")
    assert reasons(run(tmp_path, rows, parse_failures="drop")) == [row_filters.FORGED]


@pytest.mark.parametrize("rows", [[], [dialogue("a")]])
def test_an_empty_corpus_is_an_error(tmp_path, rows):
    with pytest.raises(ValueError, match=r"a\.jsonl: the corpus is empty, .*; name other files"):
        run(tmp_path, rows)
    assert not (tmp_path / "out").exists()


def test_episodes_collapse_to_the_longest_of_their_trial(tmp_path):
    contents = [f"turn {i}" for i in range(8)]
    rows = [
        dialogue(*contents[:num], trial_name=f"trial-{trial}", episode=f"episode-{num}")
        for trial, num in itertools.product(range(3), (2, 4, 6, 8))
    ]
    for row in rows:  # trials differ in their first turn, episodes of one do not
        row["conversations"][0]["content"] = row["trial_name"]
    order = np.random.default_rng(0).permutation(len(rows))
    curated = run(tmp_path, [rows[i] for i in order])
    assert sorted(len(t) for t in turns(curated.train)) == [8, 8, 8]
    assert reasons(curated) == [verdicts.PREFIX] * 9


def test_trajectory_filters(tmp_path):
    done, xml = '{"task_complete": true}', "<task_complete>true</task_complete>"
    rows = [
        dialogue("1", done, reward=0.0),
        dialogue("2", xml, reward=1.0),
        dialogue("3", "no", reward=1),
        dialogue("4", done, complete=False, reward=0.5),
        dialogue("5", "no", complete=True),
        dialogue(done, "no"),
    ]

    def kept(name):
        (tmp_path / name).mkdir()
        curated = run(tmp_path / name, rows, trajectory_filter=name)
        return [t[0]["content"] for t in turns(curated.train)]

    assert kept("none") == ["1", "2", "3", "4", "5", done]
    assert kept("complete") == ["1", "2", "5"]
    assert kept("success") == ["2", "3"]
    with pytest.raises(ValueError, match="--trajectory_filter=success needs the column `reward`"):
        run(tmp_path, [dialogue("a", "b")], trajectory_filter="success")


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_no_task_is_on_both_sides_and_every_source_is_on_each(tmp_path, fraction, seed):
    rng = np.random.default_rng(seed)
    rows = random_rows(seed, 60, sources=("a", "b", "c"))
    for row in rows:  # several sessions a task; some tasks in two sources; some unnamed
        row["task"] = f"task-{rng.integers(15)}" if rng.random() < 0.9 else None
        row["conversations"][0]["content"] += f" {rng.integers(9)}"
    curated = run(tmp_path, rows, heldout_fraction=fraction, heldout_seed=seed)
    sides = [rows_in(curated.train), rows_in(curated.heldout)]
    assert len(sides[0]) + len(sides[1]) + len(reasons(curated)) == len(rows)

    def task(row):
        first = next(t["content"] for t in row["conversations"] if t["role"] == "user")
        return row["task"] or first

    tasks = [{task(row) for row in side} for side in sides]
    assert not tasks[0] & tasks[1]
    assert [{row["source"] for row in side} for side in sides] == [{"a", "b", "c"}] * 2


def test_one_instruction_is_on_one_side_whatever_its_tasks_are_called(tmp_path):
    """Nor do the screens count, which differ in the names of containers."""
    prompt = "Rules.\n\nTask Description:\n{}\n\nCurrent terminal state:\nroot@{}:/app#"
    rows = [
        dialogue(prompt.format(f"Do {i // 3}.", f"host{i}"), f"reply {i}",
                 task=f"trial-{i}" if i % 3 else None)
        for i in range(60)
    ]  # fmt: skip
    curated = run(tmp_path, rows, heldout_fraction=0.3)
    sides = [
        {t[0]["content"].split("\n")[3] for t in turns(side)}
        for side in (curated.train, curated.heldout)
    ]
    assert [len(side) for side in sides] == [14, 6] and not sides[0] & sides[1]


def test_groups_of_tasks_are_connected_components():
    rng = np.random.default_rng(0)
    for _ in range(20):
        tasks = [f"t{n}" for n in rng.integers(30, size=40)]
        instructions = [int(n) if n else None for n in rng.integers(30, size=40)]
        near = np.array([[a == b for a in tasks] for b in tasks])
        near |= np.array([[a == b is not None for a in instructions] for b in instructions])
        reached = np.linalg.matrix_power(near.astype(float), 40) > 0
        expected = [
            min(t for t, is_near in zip(tasks, row, strict=True) if is_near) for row in reached
        ]
        assert verdicts.group_tasks(tasks, instructions) == expected


def test_the_split_does_not_depend_on_the_order_of_rows():
    rows = [(f"t{i}", f"s{i % 3}", f"d{i % 2}") for i in range(40)]
    chosen = heldout.choose_tasks(rows, fraction=0.2, seed=1)
    assert chosen == heldout.choose_tasks(rows[::-1], fraction=0.2, seed=1)
    assert chosen != heldout.choose_tasks(rows, fraction=0.2, seed=2)
    assert 6 <= len(chosen) <= 10
    assert heldout.choose_tasks(rows, fraction=0.0, seed=1) == frozenset()


def test_a_single_task_cannot_be_held_out(tmp_path):
    with pytest.raises(
        ValueError, match=r"--heldout_fraction=0.5 needs a source with at least two"
    ):
        run(tmp_path, [dialogue("a", "b", task="t")], heldout_fraction=0.5)


def test_the_output_is_a_corpus_again(tmp_path):
    rows = random_rows(seed=8, num=30)
    first = run(tmp_path, [row | {"note": [1]} for row in rows])
    again = curate.curate(
        [str(first.train)], output_dir=tmp_path / "again", options=curate.CurateOptions()
    )
    assert pq.read_table(again.train).equals(pq.read_table(first.train))
    [row, *_] = corpus.read_rows(again.train / "part-00000.parquet")
    assert row.conversation is not None and row.conversation.extra == {"note": [1]}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"heldout_fraction": 1.0}, r"--heldout_fraction=1.0 must be in \[0, 1\)"),
        ({"parse_failures": "hide"}, "--parse_failures='hide' must be one of 'keep', 'mask'"),
        ({"ngram": 0}, "--ngram=0 must be positive"),
        ({"near_duplicates": 1.5}, r"--near_duplicates=1.5 must be in \[0, 1\]"),
        ({"shard_rows": 0}, "--shard_rows=0 must be positive"),
        ({"trajectory_filter": "best"}, "--trajectory_filter='best' must be one of"),
    ],
)
def test_bad_settings_are_named(options, fault):
    with pytest.raises(ValueError, match=fault):
        curate.CurateOptions(**options)
