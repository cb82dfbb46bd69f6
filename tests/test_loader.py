import pickle
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from conversations import random_rows, write_jsonl

from data_pipeline import loader, plan, shards, tokenize


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    rows = random_rows(seed=10, num=50)
    tokenize.tokenize(
        [str(write_jsonl(folder / "a.jsonl", rows))],
        tokenizer_dir="embedded",
        output_dir=folder / "tokens",
        options=tokenize.TokenizeOptions(shard_examples=20),
    )
    options = plan.PlanOptions(row_length=300, global_batch_size=8, epochs=2, pictures=False)
    plan.make_plan(folder / "tokens", output_dir=folder / "plan", options=options)
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    return loader.Plan.open(folder / "plan")


def assert_equal(one, two):
    assert set(one) == set(two) == set(loader.FIELDS)
    for name in loader.FIELDS:
        assert one[name].dtype == two[name].dtype == np.int32
        np.testing.assert_array_equal(one[name], two[name])


def test_a_row_is_its_segments(opened, folder):
    index = pq.read_table(folder / "tokens" / "index.parquet").to_pylist()
    paths = [folder / "tokens" / shards.shard_name(i, 3) for i in range(3)]
    reader = shards.ShardReader(paths)
    for number in range(opened.num_rows):
        row, at = opened.read_row(number), 0
        for segment_id, segment in enumerate(opened.segments(number), start=1):
            entry = index[segment.example]
            example = reader.read(entry["shard"], entry["position"])
            body = range(segment.first_token, segment.first_token + segment.num_tokens)
            for j, token in enumerate([*range(segment.prompt), *body]):
                assert row["tokens"][at + j] == example.tokens[token]
                assert row["positions"][at + j] == j
                assert row["segment_ids"][at + j] == segment_id
                is_trained = j > segment.prompt and example.loss_mask[token]
                assert row["loss_mask"][at + j] == is_trained
            assert (segment.source, segment.domain) == (entry["source"], entry["domain"])
            at += segment.prompt + segment.num_tokens
        assert at <= 300
        assert all(not row[name][at:].any() for name in loader.FIELDS)


def test_the_iterator_is_the_random_access(opened):
    batches = list(loader.make_loader(opened))
    assert len(batches) == opened.num_steps > 3
    for step, batch in enumerate(batches):
        assert batch["tokens"].shape == (8, 300)
        assert_equal(batch, opened.read_batch(step))
        for i in range(8):
            np.testing.assert_array_equal(
                batch["tokens"][i], opened.read_row(8 * step + i)["tokens"]
            )


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_one_integer_resumes(opened, stop):
    first = loader.make_loader(opened)
    for _ in range(stop):
        next(first)
    assert first.step == stop and isinstance(first.step, int)
    for one, two in zip(first, loader.make_loader(opened, start_step=stop), strict=True):
        assert_equal(one, two)
    assert first.step == opened.num_steps
    assert list(loader.make_loader(opened, start_step=opened.num_steps)) == []


@pytest.mark.parametrize(
    "dealt", [[range(8)], [range(4), range(4, 8)], [(0, 2, 5), (1, 7), (3, 4, 6)]]
)
def test_the_parts_of_processes_are_the_global_batch(opened, dealt):
    loaders = [loader.make_loader(opened, rows_of=lambda _, own=rows: own) for rows in dealt]
    order = np.argsort(np.concatenate(dealt))
    for step, parts in enumerate(zip(*loaders, strict=True)):
        joined = {name: np.concatenate(values)[order] for name, values in _columns(parts).items()}
        assert_equal(joined, opened.read_batch(step))
        assert_equal(opened.read_batch(step, rows=dealt[-1]), parts[-1])


def test_processes_may_change_on_the_way(opened):
    later = [
        loader.make_loader(
            opened, start_step=2, rows_of=lambda _, i=i: (2 * i, 2 * i + 1), num_threads=1
        )
        for i in range(4)
    ]
    joined = {n: np.concatenate(v) for n, v in _columns([next(each) for each in later]).items()}
    assert_equal(joined, opened.read_batch(2))


def test_stages_have_shapes_of_their_own(folder, tmp_path):
    stages = tmp_path / "stages.toml"
    stages.write_text(
        "[[stage]]\nname = 'short'\n"
        "[[stage]]\nname = 'long'\nrow_length = 600\nglobal_batch_size = 3\nepochs = 0.5\n"
    )
    options = plan.PlanOptions(
        row_length=300,
        global_batch_size=8,
        curriculum="staged",
        stages=str(stages),
        pictures=False,
    )
    plan.make_plan(folder / "tokens", output_dir=tmp_path / "plan", options=options)
    staged = loader.Plan.open(tmp_path / "plan", tokens_dir=folder / "tokens")
    short, long = staged.stages
    assert (short.name, long.name) == ("short", "long")
    assert long.first_step == short.num_steps and long.first_row == 8 * short.num_steps
    assert staged.num_rows == long.first_row + 3 * long.num_steps
    shapes = [batch["tokens"].shape for batch in loader.make_loader(staged)]
    assert shapes == [(8, 300)] * short.num_steps + [(3, 600)] * long.num_steps
    seen = []

    def last_row(size):
        seen.append(size)
        return [size - 1]

    for start in (0, 1, short.num_steps, short.num_steps + 1, staged.num_steps):
        made = loader.make_loader(staged, start_step=start, rows_of=last_row)
        for step, batch in enumerate(made, start):
            size = staged.stage_of_step(step).global_batch_size
            assert_equal(batch, staged.read_batch(step, rows=[size - 1]))
        assert made.step == staged.num_steps
    assert set(seen) == {8, 3}


def _columns(parts):
    return {name: [part[name] for part in parts] for name in loader.FIELDS}


def test_a_plan_travels(opened):
    copy = pickle.loads(pickle.dumps(opened))
    assert_equal(copy.read_batch(1), opened.read_batch(1))


@pytest.mark.slow
def test_workers_give_the_same(opened):
    expected = loader.make_loader(opened, start_step=1)
    for one, two in zip(
        loader.make_loader(opened, start_step=1, num_workers=2), expected, strict=True
    ):
        assert_equal(one, two)


def test_the_folder_can_move(folder, opened, tmp_path):
    for name in ("tokens", "plan"):
        shutil.copytree(folder / name, tmp_path / "deep" / name)
    assert_equal(loader.Plan.open(tmp_path / "deep" / "plan").read_batch(0), opened.read_batch(0))
    (tmp_path / "deep" / "tokens").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        loader.Plan.open(tmp_path / "deep" / "plan")
    found = loader.Plan.open(tmp_path / "deep" / "plan", tokens_dir=tmp_path / "elsewhere")
    assert_equal(found.read_batch(0), opened.read_batch(0))


def test_other_tokens_are_refused(folder, tmp_path):
    other = tokenize.tokenize(
        [str(folder / "a.jsonl")],
        tokenizer_dir="embedded",
        output_dir=tmp_path / "tokens",
        options=tokenize.TokenizeOptions(think="strip_history"),
    )
    with pytest.raises(ValueError, match=r"not the tokens that .* was planned on"):
        loader.Plan.open(folder / "plan", tokens_dir=other)


def test_a_truncated_shard_is_named(folder, tmp_path):
    for name in ("tokens", "plan"):
        shutil.copytree(folder / name, tmp_path / name)
    path = tmp_path / "tokens" / shards.shard_name(1, 3)
    path.write_bytes(path.read_bytes()[:-40_000])
    with pytest.raises(ValueError, match=r"shard-00001-of-00003\.array_record holds 91,072 bytes"):
        loader.Plan.open(tmp_path / "plan")
    path.unlink()
    with pytest.raises(ValueError, match=r"shard-00001-of-00003\.array_record is absent"):
        loader.Plan.open(tmp_path / "plan")


def test_a_damaged_shard_of_the_right_size_is_named(folder, tmp_path):
    for name in ("tokens", "plan"):
        shutil.copytree(folder / name, tmp_path / name)
    path = tmp_path / "tokens" / shards.shard_name(1, 3)
    path.write_bytes(bytes(path.stat().st_size))
    damaged = loader.Plan.open(tmp_path / "plan")
    with pytest.raises(ValueError, match=r"shard-00001-of-00003\.array_record record \d+: cannot"):
        list(loader.make_loader(damaged))


def test_a_damaged_index_is_named(folder, tmp_path):
    for name in ("tokens", "plan"):
        shutil.copytree(folder / name, tmp_path / name)
    path = tmp_path / "tokens" / "index.parquet"
    for content in (path.read_bytes()[:-100], None):
        if content:
            path.write_bytes(content)
        else:
            path.unlink()
        with pytest.raises(ValueError, match=r"index\.parquet: cannot be read .*tokenize again"):
            loader.Plan.open(tmp_path / "plan")
        with pytest.raises(ValueError, match=r"index\.parquet: cannot be read"):
            options = plan.PlanOptions(row_length=300)
            plan.make_plan(tmp_path / "tokens", output_dir=tmp_path / "new", options=options)
        assert not (tmp_path / "new").exists()


def test_bad_arguments_are_named(opened):
    with pytest.raises(ValueError, match="start_step=-1 is outside"):
        loader.make_loader(opened, start_step=-1)
    with pytest.raises(ValueError, match=r"rows=\[3, 8\] must be some of the 8 rows"):
        loader.make_loader(opened, rows_of=lambda size: (3, size))
    with pytest.raises(IndexError, match=f"row {opened.num_rows} of a plan"):
        opened.read_row(opened.num_rows)
    with pytest.raises(IndexError, match="step -1 of a plan"):
        opened.read_batch(-1)
