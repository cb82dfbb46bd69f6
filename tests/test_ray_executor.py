"""The stages on a real Ray cluster of this machine: the bytes of a local run, whatever dies."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conversations import dialogue, random_rows, write_jsonl

from data_pipeline import executor, ray_executor, shards, tokenize, tokenize_shard

ON_RAY = executor.WorkerOptions(executor="ray", num_workers=2)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"
)
OPTIONS = tokenize.TokenizeOptions(shard_examples=7)


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".digests.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def run(file, output, workers):
    return tokenize.tokenize(
        [str(file)], tokenizer_dir="embedded", output_dir=output, options=OPTIONS, workers=workers
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", random_rows(seed=2, num=40))


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster that this process has joined, with room for two shards at once."""
    ray = ray_executor.load_ray()
    here = pathlib.Path(__file__).parent
    joined = ray.init(
        num_cpus=2 * tokenize_shard.THREADS,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}},
    )
    yield joined.address_info["gcs_address"]
    ray.shutdown()


def die_once(task):
    """Run a shard; the first worker to get the third example of the third is killed there."""
    write_shard, killed = shards.write_shard, task.parts_dir.parent.with_suffix(".killed")

    def deadly(examples):
        for number, example in enumerate(examples):
            if task.shard == 2 and number == 2 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield example

    shards.write_shard = lambda examples, path: write_shard(deadly(examples), path)
    try:
        return tokenize_shard.run(task)
    finally:
        shards.write_shard = write_shard


def stay(folder):
    """Say how many others are here, and where."""
    mark = pathlib.Path(folder, str(os.getpid()))
    mark.touch()
    time.sleep(0.1)
    num = len(os.listdir(folder))
    mark.unlink()
    return num, os.getcwd()


def refuse(number):
    raise NotADirectoryError(20, "refused", f"number {number}")


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "curate"])
@pytest.mark.parametrize("is_joined", [False, True])
def test_ray_leaves_the_bytes_of_a_local_run(request, file, tmp_path, stage, is_joined):
    special = ["--tokenizer=embedded", "--shard_examples=7"] if stage == "tokenize" else []
    on_ray = ["--executor=ray", "--num_workers=2"]
    if is_joined:
        on_ray += [f"--ray_address={request.getfixturevalue('cluster')}"]
    for output, flags in (("local", []), ("ray", on_ray)):  # relative: workers find it too
        command = [sys.executable, "-m", f"data_pipeline.{stage}", str(file), f"--output={output}"]
        subprocess.run([*command, *special, *flags], check=True, cwd=tmp_path)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_leaves_the_same_bytes(cluster, file, tmp_path, monkeypatch):
    run(file, tmp_path / "local", executor.WorkerOptions())
    monkeypatch.setattr(tokenize_shard, "run", die_once)
    run(file, tmp_path / "ray", ON_RAY)
    assert (tmp_path / "ray.killed").exists()
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@needs_ray
@pytest.mark.slow
def test_an_error_keeps_its_type_and_leaves_nothing(cluster, tmp_path):
    bad = write_jsonl(tmp_path / "a.jsonl", [*random_rows(seed=4, num=30), dialogue("hi")])
    with pytest.raises(ValueError, match=r"a\.jsonl line 31: no assistant turn") as caught:
        run(bad, tmp_path / "tokens", ON_RAY)
    assert type(caught.value) is ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    with pytest.raises(NotADirectoryError) as caught:
        list(executor.results(refuse, [1], ON_RAY, input_bytes=0))
    assert caught.value.filename == "number 1" and caught.value.errno == 20


@needs_ray
@pytest.mark.slow
def test_no_more_run_at_once_than_told(cluster, tmp_path):
    for num_workers, most in ((1, 1), (2, 2)):
        workers = executor.WorkerOptions(executor="ray", num_workers=num_workers)
        done = list(executor.results(stay, [str(tmp_path)] * 20, workers, input_bytes=0))
        assert len(done) == 20
        assert max(num for _, (num, _) in done) <= most
        assert {folder for _, (_, folder) in done} == {os.getcwd()}


@needs_ray
@pytest.mark.slow
def test_an_address_that_does_not_answer_is_named(file, tmp_path):
    command = [sys.executable, "-m", "data_pipeline.tokenize", str(file), "--tokenizer=embedded",
               "--output=tokens", "--executor=ray", "--ray_address=127.0.0.1:1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: --ray_address=127.0.0.1:1: no Ray cluster can be reached" in done.stderr


def test_without_ray_the_extra_is_named(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--executor=ray needs Ray.* uv sync --extra ray"):
        run(file, tmp_path / "tokens", ON_RAY)
    with pytest.raises(ValueError, match=r"--ray_address=auto needs --executor=ray"):
        executor.WorkerOptions(ray_address="auto")
