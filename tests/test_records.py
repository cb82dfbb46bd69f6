import dataclasses
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import corpus, corpus_writer, manifest, records


def read_all(*paths):
    spans = [span for piece in corpus.split_into_spans(paths, max_rows=3) for span in piece]
    return list(corpus.read_conversations(spans))


def rows_of(conversations):
    return [conversation.to_row() for conversation in conversations]


@pytest.fixture(scope="module")
def rows():
    return random_rows(seed=1, num=25)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([1], "must be an object, not list"),
        ({"messages": []}, r"no column `conversations`; it has \['messages'\]"),
        ({"conversations": []}, "must be a non-empty list"),
        ({"conversations": "hi"}, "must be a non-empty list"),
        ({"conversations": ["hi"]}, "turn 0 must be an object"),
        ({"conversations": [{"role": "human", "content": "a"}]}, "turn 0 has the unknown role"),
        ({"conversations": [{"role": "user", "content": None}]}, "content of type NoneType"),
        ({"conversations": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        (dialogue("a", "b", reward="much"), "`reward` is 'much', not a float"),
        (dialogue("a", "b", complete=1), "`complete` is 1, not a bool"),
        (dialogue("a", "b", num_errors=True), "`num_errors` is True, not a int"),
        (dialogue("a", "b", untrained_turns=[0]), "`untrained_turns` names turn 0, which is no"),
        (dialogue("a", "b", untrained_turns=[-1, 2]), "names turn -1, .* names turn 2, which is"),
        (dialogue("a", "b", untrained_turns=["1"]), "`untrained_turns` is .'1'., not a list of"),
        (dialogue("a", "b", num_errors=1 << 31), "`num_errors` is 2147483648, which no int32"),
        (dialogue("a", "b", edits=["\ud800"]), "`edits` holds half of a surrogate pair"),
        (dialogue("a", "b", extra="[" * 100_000), "`extra` is not a JSON object"),
        (dialogue("a", "b", edits="x"), "`edits` is 'x', not a list of str"),
        (dialogue("a", "b", reward=float("nan")), "`reward` is nan; give a finite number"),
        (dialogue("a", "b", reward=float("-inf")), "`reward` is -inf; give a finite number"),
        (dialogue("a", "b", reward=10**400), "`reward` is 1000.*; give a finite number"),
        (dialogue("a", "b", task="\ud800"), "`task` holds half of a surrogate pair"),
        (
            {"conversations": [{"role": "user", "content": "", "reasoning_content": "so"}]},
            "turn 0 has `reasoning_content`, which is not part of the schema; put it into content",
        ),
        (
            {"conversations": [{"role": "user", "content": "", "tool_calls": []}]},
            "turn 0 has `tool_calls`, which is not part of the schema",
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}]},
            "turn 0 has its role and text in from, value; name them role, content",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_fault(row, fault):
    with pytest.raises(ValueError, match=f"^x.jsonl line 7: .*{fault}"):
        records.conversation_from_row(row, location="x.jsonl line 7")


def test_all_faults_of_a_row_are_told_at_once():
    row = {"conversations": [{"role": "x", "content": 1}, {"role": "user"}]}
    with pytest.raises(ValueError, match=r"turn 0 has the unknown.*turn 0 has content.*turn 1 has"):
        records.conversation_from_row(row, location="here")


def test_a_row_of_many_faults_stays_short():
    row = {"conversations": [{"from": "human", "value": "hi"}] * 500, "task": ["long"] * 9999}
    with pytest.raises(ValueError, match=r"turn 0 .*turn 1 .*turn 2 .*; and 498 more$") as caught:
        records.conversation_from_row(row, location="here")
    assert len(str(caught.value)) < 500
    with pytest.raises(ValueError) as caught:
        records.conversation_from_row(dialogue("a", "b", task=["long"] * 9999), location="here")
    assert len(str(caught.value)) < 200
    turn = {"role": "user", "content": "a", "k" * 9999: 1, "\ud800": 1}
    for row in ({"conversations": [turn]}, {"c" * 9999: 1}):
        with pytest.raises(ValueError) as caught:
            records.conversation_from_row(row, location="here")
        assert len(str(caught.value).encode()) < 300


def test_a_null_key_of_a_turn_is_no_fault():
    turns = [{"role": "user", "content": "a", "tool_calls": None}]
    made = records.conversation_from_row({"conversations": turns}, location="here")
    assert made.messages == (records.Message("user", "a"),)


def test_parquet_and_jsonl_hold_the_same(tmp_path, rows):
    rows = [row | {"reward": 0.5, "complete": True, "date": "today"} for row in rows]
    plain = write_jsonl(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    from_plain = read_all(plain)
    assert corpus_writer.write_parquet(from_plain, tmp_path / "c.parquet") == len(rows)
    expected = rows_of(from_plain)
    assert expected[3]["conversations"] == rows[3]["conversations"]
    assert expected[3]["reward"] == 0.5
    assert json.loads(expected[3]["extra"]) == {"date": "today"}
    assert rows_of(read_all(packed)) == expected
    assert rows_of(read_all(tmp_path / "c.parquet")) == expected


@pytest.mark.parametrize("max_rows", [1, 4, 7, 100])
def test_spans_cover_every_row_once_and_in_order(tmp_path, rows, max_rows):
    blank_lines = [line for row in rows for line in (json.dumps(row), "", "  ")]
    files = [write_jsonl(tmp_path / "a.jsonl", blank_lines), tmp_path / "b.parquet"]
    expected = rows_of(read_all(files[0]))
    assert [row["conversations"] for row in expected] == [row["conversations"] for row in rows]
    table = pa.Table.from_pylist(expected, records.CORPUS_SCHEMA)
    pq.write_table(table, files[1], row_group_size=6)
    pieces = corpus.split_into_spans(files, max_rows=max_rows)
    sizes = [sum(span.num_rows for span in piece) for piece in pieces]
    assert all(size == max_rows for size in sizes[:-1])
    found = [c.to_row() for piece in pieces for c in corpus.read_conversations(piece)]
    assert found == 2 * expected


def test_locations_are_lines_and_rows(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ["", dialogue("q", "r"), "", dialogue("q", "s")])
    assert [c.location for c in read_all(file)] == [f"{file} line 2", f"{file} line 4"]
    corpus_writer.write_parquet(read_all(file), tmp_path / "b.parquet")
    assert [c.location for c in read_all(tmp_path / "b.parquet")] == [
        f"{tmp_path}/b.parquet row 0",
        f"{tmp_path}/b.parquet row 1",
    ]


def test_a_malformed_line_is_named(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [dialogue("q", "r"), '{"conversations": [', "[1]"])
    with pytest.raises(ValueError, match=r"a\.jsonl line 2: not valid JSON"):
        read_all(file)
    faults = [row.fault for row in corpus.read_rows(file)]
    assert faults[0] == "" and "line 2" in faults[1] and "line 3: a row must be" in faults[2]
    assert faults[1].endswith("a.jsonl line 2: not valid JSON (Expecting value, column 20)")
    (tmp_path / "b.jsonl").write_bytes(b'{"conversations": "\xff"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl line 1: not valid JSON"):
        read_all(tmp_path / "b.jsonl")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, rows, share):
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    whole = {"c.jsonl.gz": gzip.compress(file.read_bytes())}
    corpus_writer.write_parquet(read_all(file), tmp_path / "b.parquet")
    whole["b.parquet"] = (tmp_path / "b.parquet").read_bytes()
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        if share or name.endswith(".parquet"):  # an empty .gz is an empty file to gzip
            with pytest.raises(ValueError, match=name):
                read_all(tmp_path / name)


def test_damage_inside_a_parquet_file_is_named(tmp_path, rows):
    corpus_writer.write_parquet(
        read_all(write_jsonl(tmp_path / "a.jsonl", rows)), tmp_path / "b.parquet"
    )
    content = bytearray((tmp_path / "b.parquet").read_bytes())
    content[40:400] = bytes(360)
    (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"b\.parquet: damaged"):
        read_all(tmp_path / "b.parquet")


def test_a_parquet_file_of_other_columns_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: no column `conversations`; it has"):
        read_all(tmp_path / "a.parquet")


def test_a_corpus_is_found(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    names = ["in/b.jsonl", "in/a.parquet", "in/deep/c.jsonl.gz", "in/README.md"]
    for name in names:
        (tmp_path / name).touch()
    found = corpus.find_files([str(tmp_path / "in")])
    assert [p.name for p in found] == ["a.parquet", "b.jsonl", "c.jsonl.gz"]
    assert corpus.find_files(["embedded"])[0].name == "sessions.parquet"
    (tmp_path / "void").mkdir()
    for bad, fault in [
        ([], "no CORPUS given"),
        ([str(tmp_path / "in/README.md")], "must end in"),
        ([str(tmp_path / "no")], "no such file or folder"),
        ([str(tmp_path / "void")], "holds no file"),
    ]:
        with pytest.raises(ValueError, match=fault):
            corpus.find_files(bad)


@pytest.fixture
def curated(tmp_path):
    """A folder as curate leaves it."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("heldout", "removed", "train"):
        (folder / name).mkdir()
        (folder / name / "part-00000.parquet").touch()
    (folder / "statistics.parquet").touch()
    manifest.write_json(
        folder / "manifest.json", {"stage": "curate", "inputs": {}, "options": {}, "counts": {}}
    )
    return folder


def test_of_a_curated_folder_only_what_is_to_be_trained_is_read(curated):
    [train] = corpus.find_files([str(curated)])
    assert train == curated / "train" / "part-00000.parquet"
    (curated.parent / "other.jsonl").touch()
    found = corpus.find_files([str(curated.parent)])
    assert found == [train, curated.parent / "other.jsonl"]
    (curated / "manifest.json").write_text('["of", "something else"]')
    assert len(corpus.find_files([str(curated)])) == 4


def test_an_unfinished_folder_is_no_corpus(curated):
    (curated / "manifest.json").rename(curated / "unfinished.json")
    for folder in (curated, curated.parent):
        with pytest.raises(ValueError, match=r"corpus: the output of .*curate is unfinished; give"):
            corpus.find_files([str(folder)])


def test_hidden_files_and_folders_are_no_corpus(tmp_path):
    (tmp_path / ".cache" / "deep").mkdir(parents=True)
    for name in (".cache/deep/a.jsonl", ".b.jsonl", "c.jsonl"):
        (tmp_path / name).touch()
    assert corpus.find_files([str(tmp_path)]) == [tmp_path / "c.jsonl"]
    hidden = tmp_path / ".cache" / "deep"  # but what is named is meant
    assert corpus.find_files([str(hidden)]) == [hidden / "a.jsonl"]


def test_a_file_named_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    for names in (["a.jsonl"] * 2, [".", "a.jsonl"], ["a.jsonl", "b.jsonl"], ["."]):
        with pytest.raises(ValueError, match=r"jsonl: this file.* is in the corpus twice; name it"):
            corpus.find_files([str(tmp_path / name) for name in names])


def test_a_failed_write_leaves_the_old_file(tmp_path, rows):
    good = read_all(write_jsonl(tmp_path / "a.jsonl", rows))
    corpus_writer.write_parquet(good[:1], tmp_path / "b.parquet")

    def failing():
        yield from good
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        corpus_writer.write_parquet(failing(), tmp_path / "b.parquet")
    assert len(read_all(tmp_path / "b.parquet")) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.parquet"]


def test_digests_tell_turns_apart():
    def digests(*contents):
        row = dialogue(*contents)
        return records.conversation_from_row(row, location="x").digests()

    assert digests("a", "b", "c")[:2] == digests("a", "b")
    assert digests("ab", "c")[-1] != digests("a", "bc")[-1]


def random_example(seed, num_tokens):
    rng = np.random.default_rng(seed)
    starts = np.unique(np.append(0, rng.integers(num_tokens, size=num_tokens // 9)))
    mask = rng.integers(2, size=num_tokens, dtype=np.uint8)
    mask[[0, -1]] = 0, 1
    return records.Example(
        tokens=rng.integers(2**31 - 1, size=num_tokens, dtype=np.int32),
        loss_mask=mask,
        turn_starts=starts.astype(np.int32),
        turn_is_assistant=rng.integers(2, size=len(starts), dtype=np.uint8),
        id="00ff",
        source="skill \u00e9",
    )


@pytest.mark.parametrize(("value", "fault"), [(0, "only zeros"), (1, "only ones")])
def test_a_mask_of_one_value_is_refused(value, fault):
    example = random_example(0, 20)
    with pytest.raises(ValueError, match=f"the loss mask holds {fault}"):
        dataclasses.replace(example, loss_mask=np.full(20, value, np.uint8))


@pytest.mark.parametrize("num_tokens", [2, 7, 8, 9, 1000])
def test_an_example_survives_its_record(num_tokens):
    example = random_example(num_tokens, num_tokens)
    found = records.example_from_bytes(records.example_to_bytes(example))
    for field in dataclasses.fields(records.Example):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(example, field.name))
    assert found.tokens.dtype == np.int32 and found.loss_mask.dtype == np.uint8


def test_a_damaged_record_is_refused():
    record = records.example_to_bytes(random_example(0, 50))
    for at in range(4, len(record)):
        damaged = bytearray(record)
        damaged[at] ^= 64
        if 6 <= at < 8:  # reserved
            continue
        with pytest.raises(ValueError, match="record"):
            records.example_from_bytes(bytes(damaged))
    for end in range(len(record)):
        with pytest.raises(ValueError, match="record"):
            records.example_from_bytes(record[:end])


@pytest.mark.parametrize("seed", range(5))
def test_loss_spans_are_the_mask(seed):
    example = random_example(seed, 60)
    mask = np.zeros(60, np.uint8)
    for start, end in zip(*example.loss_spans(), strict=True):
        mask[start:end] = 1
        assert start == 0 or not example.loss_mask[start - 1]
    np.testing.assert_array_equal(mask, example.loss_mask)
