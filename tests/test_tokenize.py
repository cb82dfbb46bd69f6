import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import tokenize as of_python

import numpy as np
import pyarrow.parquet as pq
import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import chat, corpus, embedded, executor, manifest, shards, tokenize

OPTIONS = tokenize.TokenizeOptions(shard_examples=7)


def run(file, output, options=OPTIONS, **kwargs):
    return tokenize.tokenize(
        [str(file)], tokenizer_dir="embedded", output_dir=output, options=options, **kwargs
    )


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".digests.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", random_rows(seed=2, num=40))


@pytest.fixture(scope="module")
def made(tmp_path_factory, file):
    return run(file, tmp_path_factory.mktemp("made") / "tokens")


def test_pythons_own_tokenize_is_not_shadowed():
    assert "data_pipeline" not in of_python.__file__


def test_every_conversation_is_there_in_order(made, file):
    names = sorted(p.name for p in made.glob("*.array_record"))
    assert names == [f"shard-{i:05d}-of-00006.array_record" for i in range(6)]
    reader = shards.ShardReader([made / name for name in names])
    index = pq.read_table(made / "index.parquet").to_pylist()
    tokenizer = chat.ChatTokenizer(pathlib.Path(embedded.tokenizer_dir()))
    for row, number, source in zip(index, range(40), corpus.read_rows(file), strict=True):
        assert (row["shard"], row["position"]) == divmod(number, 7)
        assert source.conversation is not None
        expected = tokenizer.example(source.conversation)
        example = reader.read(row["shard"], row["position"])
        np.testing.assert_array_equal(example.tokens, expected.tokens)
        np.testing.assert_array_equal(example.loss_mask, expected.loss_mask)
        assert row["num_tokens"] == len(expected.tokens)
        assert row["num_loss_tokens"] == expected.loss_mask.sum()
        assert row["turn_starts"] == expected.turn_starts.tolist()
        assert row["id"] == example.id == expected.id
        assert row["task"] == source.conversation.get("task")
        assert row["source"] == source.conversation.get("source")


def test_manifest_counts(made):
    found = manifest.read(made, stage="tokenize")
    index = pq.read_table(made / "index.parquet")
    assert found["counts"]["num_examples"] == len(index) == 40
    for name in ("num_tokens", "num_loss_tokens", "num_turns"):
        assert found["counts"][name] == sum(index[name].to_pylist())
    sizes = [p.stat().st_size for p in sorted(made.glob("*.array_record"))]
    assert found["counts"]["shard_bytes"] == sizes
    assert found["options"] == {"think": "keep", "shard_examples": 7}
    assert {"tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"} < set(found["inputs"])
    assert not (made / "parts").exists() and not (made / "unfinished.json").exists()


def test_a_second_run_does_nothing_and_says_so(made, file, capsys):
    before = {p: p.stat().st_mtime_ns for p in made.iterdir() if p.name != ".digests.json"}
    run(file, made)
    assert "is done already" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_other_options_are_refused_by_name(made, file, tmp_path):
    other = tokenize.TokenizeOptions(shard_examples=7, think="strip_history")
    with pytest.raises(ValueError, match=r"think='keep', now 'strip_history'; .* --overwrite"):
        run(file, made, other)
    more = write_jsonl(tmp_path / "a.jsonl", random_rows(seed=3, num=2))
    with pytest.raises(ValueError, match=r"other inputs: 0:a.jsonl"):
        run(more, made)
    nine = executor.WorkerOptions(num_workers=9)
    run(file, made, tokenize.TokenizeOptions(shard_examples=7), workers=nine)  # changes nothing


def test_overwrite_replaces_its_own_output_only(made, file, tmp_path):
    output = tmp_path / "tokens"
    run(file, output)
    other = tokenize.TokenizeOptions(shard_examples=50, think="strip_history")
    run(file, output, other, overwrite=True)
    assert len(list(output.glob("*.array_record"))) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is not empty and holds no output of `tokenize`"):
        run(file, tmp_path / "mine", overwrite=True)
    manifest.write_json(tmp_path / "mine" / "manifest.json", {"stage": "plan"})
    with pytest.raises(ValueError, match=r"stage 'plan', now 'tokenize'; choose another folder$"):
        run(file, tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (dialogue("hi"), "a.jsonl line 9: no assistant turn"),
        (dialogue("hi", "<|im_end|>"), "a.jsonl line 9: turn 1 holds the special token"),
        ("{", "a.jsonl line 9: not valid JSON"),
    ],
)
def test_a_bad_row_is_named_and_leaves_nothing(tmp_path, row, fault):
    file = write_jsonl(tmp_path / "a.jsonl", [*random_rows(seed=4, num=8), row])
    with pytest.raises(ValueError, match=fault):
        run(file, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_a_bad_row_gives_back_what_it_was_to_replace(made, file, tmp_path):
    output = tmp_path / "tokens"
    run(file, output)
    bad = write_jsonl(tmp_path / "a.jsonl", [*random_rows(seed=4, num=8), "{"])
    with pytest.raises(ValueError, match=r"a\.jsonl line 9: not valid JSON"):
        run(bad, output, overwrite=True)
    assert contents(output) == contents(made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "tokens"]


def test_a_kill_while_the_folder_is_begun_is_no_obstacle(made, file, tmp_path):
    output = tmp_path / "tokens"
    output.mkdir()
    (output / "unfinished.json.tmp").write_text('{"stage": "tok')
    run(file, output)
    assert contents(output) == contents(made)


def test_a_system_that_does_not_tell_its_cores(made, file, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    run(file, tmp_path / "small")
    monkeypatch.setattr(executor, "PROCESS_BYTES", 0)  # no corpus is small any more
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    run(file, tmp_path / "large")
    assert contents(tmp_path / "small") == contents(tmp_path / "large") == contents(made)


def test_an_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: the corpus is empty, .*; name other files"):
        run(tmp_path / "a.jsonl", tmp_path / "tokens")


def test_a_damaged_shard_is_named_with_its_record(made, file, tmp_path):
    output = run(file, tmp_path / "tokens")
    path = sorted(output.glob("*.array_record"))[1]
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.7):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=f"{path.name} record 3: cannot be read"):
            shards.ShardReader([path]).read(0, 3)
    for start in range(
        0, len(whole), len(whole) // 10 + 1
    ):  # damage in the middle: found or harmless
        path.write_bytes(whole[:start] + bytes(b ^ 255 for b in whole[start : start + 64]) +
                         whole[start + 64 :])  # fmt: skip
        pristine = shards.ShardReader([made / path.name])
        for record in range(7):
            try:
                found = shards.ShardReader([path]).read(0, record)
            except ValueError as error:
                assert f"{path.name} record {record}" in str(error)
            else:
                np.testing.assert_array_equal(found.tokens, pristine.read(0, record).tokens)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} record 3: cannot be read .no such file"):
        shards.ShardReader([path]).read(0, 3)


def command(file, output, *flags):
    return [
        sys.executable, "-m", "data_pipeline.tokenize", str(file), "--tokenizer=embedded",
        f"--output={output}", "--shard_examples=7", *flags,
    ]  # fmt: skip


def test_a_user_error_is_one_line_and_exit_code_1(tmp_path):
    file = tmp_path / "a.jsonl"
    done = subprocess.run(command(file, tmp_path / "t"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {file}: no such file")


@pytest.mark.slow
def test_processes_write_the_same_bytes(made, file, tmp_path):
    subprocess.run(command(file, tmp_path / "tokens", "--num_workers=2"), check=True)
    assert contents(tmp_path / "tokens") == contents(made)


@pytest.mark.slow
def test_kill_and_go_on_leaves_the_same_bytes(tmp_path):
    # A corpus that takes some seconds: each row again, under another task.
    rows = random_rows(seed=5, num=40)
    for row in rows:
        row["conversations"] *= 60
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(file, undisturbed)
    process = subprocess.Popen(command(file, killed, "--num_workers=1"))
    give_up = time.monotonic() + 60
    while not list(killed.glob("parts/*.parquet")) and time.monotonic() < give_up:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (killed / "manifest.json").exists()
    first = min(killed.glob("*.array_record"))
    written = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="is unfinished"):
        manifest.read(killed, stage="tokenize")
    run(file, killed)
    assert first.stat().st_mtime_ns == written  # the whole shard was not made again
    assert contents(killed) == contents(undisturbed)


def test_real_sessions_have_the_tokens_they_should(shared_data, tmp_path):
    file = shared_data / "trajectories" / "terminus2_real.jsonl"
    output = tokenize.tokenize(
        [str(file)],
        tokenizer_dir=str(shared_data / "qwen3-tokenizer"),
        output_dir=tmp_path / "tokens",
        options=tokenize.TokenizeOptions(),
    )
    index = pq.read_table(output / "index.parquet").to_pylist()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["num_turns"] for row in index] == [len(row["conversations"]) for row in rows]
    assert sum(len(row["loss_starts"]) for row in index) == 46  # its README: 46 assistant turns
