"""The stages on an object store, against an emulator of Google Cloud Storage that runs here.

Needs the extra `gcs` and the command of gcp-storage-emulator, which has an environment of its own:

    GCS_EMULATOR='uvx gcp-storage-emulator==2026.7.19' uv run pytest tests/test_storage.py -m ''
"""

import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import pickle
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
import pyarrow.parquet as pq
import pytest
from conversations import random_rows, write_jsonl

from data_pipeline import curate, embedded, executor, loader, manifest, plan, prepare, storage
from data_pipeline import tokenize as tokenize_stage

# Read where gcsfs is imported: it would ask the real store, by gRPC, what kind of bucket it is.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

OPTIONS = prepare.PrepareOptions(
    curation=curate.CurateOptions(heldout_fraction=0.1),
    planning=plan.PlanOptions(row_length=2048, global_batch_size=8),
)


@pytest.fixture(scope="module")
def emulator():
    """The environment in which gs:// is an emulator with the bucket `made`."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("needs the extra `gcs`")
    command = shlex.split(os.environ.get("GCS_EMULATOR", ""))
    if not command and not (command := [shutil.which("gcp-storage-emulator") or ""])[0]:
        pytest.skip("no GCS_EMULATOR='uvx gcp-storage-emulator==2026.7.19', nor that command")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [*command, "start", f"--port={port}", "--default-bucket=made", "-M", "-q"]
    process = subprocess.Popen(started, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    variables = {"STORAGE_EMULATOR_HOST": url, "FSSPEC_GCS_TOKEN": "anon"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import fsspec

        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        try:
            _wait_for(url, process)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            fsspec.get_filesystem_class("gs").clear_instance_cache()


def _wait_for(url, process):
    for _ in range(600):
        assert process.poll() is None, "the emulator ended"
        try:
            urllib.request.urlopen(f"{url}/storage/v1/b/made").close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the emulator does not answer")


@pytest.fixture
def store(emulator, tmp_path, monkeypatch):
    """An empty folder of the bucket; copies go to a folder of this test."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    folder = storage.as_path(f"gs://made/{tmp_path.name}")
    storage.remove_tree(folder)
    return folder


def put(path, content):
    with storage.write_through(path) as temporary:
        temporary.write_bytes(content)
    return path


def tree(folder):
    """Name -> bytes of every file, but for the cache of digests."""
    if isinstance(folder, pathlib.Path):
        paths = [p for p in folder.rglob("*") if p.is_file()]
    else:
        paths = list(files_in(folder))
    skipped = ".digests.json"  # times and places of the inputs, kept to hash them once
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths if p.name != skipped}


def files_in(folder):
    for path, kind in storage.entries(folder):
        yield from files_in(path) if kind == "folder" else [path]


def located(files, folder):
    """The same, IN for `folder` wherever a file tells where its input was."""
    told = {name: content.replace(str(folder).encode(), b"IN") for name, content in files.items()}
    for name in [n for n in files if n.endswith("statistics.parquet")]:
        rows = pq.read_table(io.BytesIO(files[name])).to_pylist()  # else it is compressed
        told[name] = json.dumps(rows).replace(str(folder), "IN").encode()
    return told


def stop_reading(monkeypatch, *, after):
    """The network breaks after some reads of objects."""
    import gcsfs

    left = [after]

    def broken(function):
        def fetch(*arguments, **named):
            left[0] -= 1
            if left[0] < 0:
                raise OSError("the network is gone")
            return function(*arguments, **named)

        return fetch

    for owner, name in (
        (gcsfs.core.GCSFile, "_fetch_range"),
        (gcsfs.core.GCSFileSystem, "_cat_file_concurrent"),  # of its reading ahead
    ):
        monkeypatch.setattr(owner, name, broken(getattr(owner, name)))


def test_a_local_name_is_an_ordinary_path():
    assert storage.as_path("a/b") == pathlib.Path("a/b")
    assert isinstance(storage.as_path("a/b"), pathlib.Path)
    code = (
        "import sys; from data_pipeline import prepare, storage; storage.as_path('a');"
        "sys.exit(bool({'gcsfs', 's3fs', 'aiohttp'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_absent_driver_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"gs://a/b: needs gcsfs.*uv sync --extra gcs"):
        storage.as_path("gs://a/b")
    with pytest.raises(ValueError, match=r"s3://a/b: needs s3fs.*pip install s3fs"):
        storage.as_path("s3://a/b")
    with pytest.raises(ValueError, match="az://a/b: name a local path, gs://"):
        storage.as_path("az://a/b")


@pytest.mark.parametrize(
    ("path", "start", "told"),
    [
        ("gs://a/x/tokens", "gs://a/x/plan", "../tokens"),
        ("gs://a/tokens", "gs://a/x/deep/plan", "../../../tokens"),
        ("gs://a/tokens", "gs://b/plan", "gs://a/tokens"),
        ("gs://a/tokens", "/b/plan", "gs://a/tokens"),
        ("/a/tokens", "gs://b/plan", "/a/tokens"),
        ("/a/tokens", "/a/x/plan", "../../tokens"),
    ],
)
def test_a_relative_path_leads_back(path, start, told):
    paths = [storage.StorePath(p) if p.startswith("gs") else pathlib.Path(p) for p in (path, start)]
    if told.startswith("gs"):
        pytest.importorskip("gcsfs", reason="needs the extra `gcs`")
    assert storage.relative(*paths) == told
    found = storage.join(paths[1], told)
    assert found.resolve() == paths[0] and type(found) is type(paths[0])
    assert pickle.loads(pickle.dumps(found)) == found


def test_an_object_is_written_whole_or_not_at_all(store):
    path = store / "a" / "b.bin"
    with pytest.raises(KeyError), storage.write_through(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert not path.exists() and not store.is_dir()
    put(path, b"whole")
    assert path.read_bytes() == b"whole" and path.is_file() and (store / "a").is_dir()
    assert [p.name for p in store.iterdir()] == ["a"]
    assert not any(p.is_file() for p in storage._copies().iterdir())


def test_a_copy_follows_its_object(store):
    path = put(store / "b.bin", b"one")
    first = storage.local_copy(path)
    assert first.read_bytes() == b"one" and storage.local_copy(path) == first
    put(path, b"two")  # as long as before
    assert storage.local_copy(path).read_bytes() == b"two"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        storage.local_copy(path)
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_rows_are_read_as_from_a_file(store, tmp_path, name):
    from data_pipeline import corpus, corpus_writer

    rows = write_jsonl(tmp_path / "rows.jsonl", [*random_rows(seed=5, num=9), "{"])
    file = tmp_path / name
    if name.endswith(".gz"):
        import gzip

        file.write_bytes(gzip.compress(rows.read_bytes()))
    elif name.endswith(".parquet"):
        good = (r.conversation for r in corpus.read_rows(rows) if r.conversation)
        corpus_writer.write_parquet(good, file)
    remote = put(store / name, file.read_bytes())
    read = []
    for path in (file, remote):
        pieces = corpus.split_into_spans([path], max_rows=4)
        found = [row for piece in pieces for span in piece for row in corpus.read_span(span)]
        read.append([str(row).replace(str(path), "FILE") for row in found])
    assert read[0] == read[1] and len(read[0]) >= 9


def test_a_broken_network_is_no_damage(store, tmp_path, monkeypatch):
    """Rows that could not be fetched are not taken for bad ones: the run stops, and goes on."""
    file = write_jsonl(tmp_path / "a.jsonl", random_rows(seed=3, num=12))
    remote = put(store / "in" / "a.jsonl", file.read_bytes())
    options = curate.CurateOptions(shard_rows=5)
    for num_broken in range(40):
        with monkeypatch.context() as patch:
            stop_reading(patch, after=num_broken)
            try:
                curate.curate([str(remote)], output_dir=store / "out", options=options)
                break
            except storage.StoreError as error:
                assert "the network is gone" in str(error)
    assert 3 <= num_broken < 39
    curate.curate([str(remote)], output_dir=store / "out", options=options)
    curate.curate([str(file)], output_dir=tmp_path / "out", options=options)
    assert located(tree(store / "out"), remote) == located(tree(tmp_path / "out"), file)


def test_a_bad_input_leaves_nothing(store):
    remote = put(store / "in" / "a.jsonl", b"{\n")
    with pytest.raises(ValueError, match="the corpus is empty"):
        curate.curate([str(remote)], output_dir=store / "out", options=curate.CurateOptions())
    assert not (store / "out").exists() and remote.exists()


def test_other_settings_are_refused_and_nothing_is_replaced(store, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", random_rows(seed=3, num=3))
    curate.curate([str(file)], output_dir=store / "out", options=curate.CurateOptions())
    before = tree(store / "out")
    other = curate.CurateOptions(shard_rows=2)
    for overwrite, told in ((False, "shard_rows=2048, now 2"), (True, "cannot be set aside")):
        with pytest.raises(ValueError, match=told):
            curate.curate([str(file)], output_dir=store / "out", options=other, overwrite=overwrite)
    assert tree(store / "out") == before
    manifest.discard(store / "out", stage="tokenize")
    assert tree(store / "out") == before
    manifest.discard(store / "out", stage="curate")
    assert not (store / "out").exists()


def run(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline.prepare", "--tokenizer=embedded", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_an_absent_bucket_is_one_line(store, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", random_rows(seed=3, num=3))
    for arguments, fault in (
        (["gs://absent/in", f"--output={tmp_path / 'out'}"], "gs://absent/in: no such file or"),
        ([str(file), "--output=gs://absent/out"], "there is no bucket absent"),
        ([str(file), "--output=gs://"], "names no bucket"),
    ):
        process = run(*arguments)
        _, told = process.communicate()
        assert process.returncode == 1 and "Traceback" not in told
        [line] = [line for line in told.splitlines() if line.startswith("error: ")]
        assert fault in line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    (folder / "in").mkdir()
    shutil.copy(embedded.sessions_path(), folder / "in")
    prepare.prepare(
        [str(folder / "in")],
        tokenizer_dir="embedded",
        output_dir=folder / "out",
        options=OPTIONS,
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_prepare_leaves_the_same_bytes(store, local, num_workers):
    put(store / "in" / "sessions.parquet", embedded.sessions_path().read_bytes())
    paths = prepare.prepare(
        [str(store / "in")],
        tokenizer_dir="embedded",
        output_dir=str(store / "out"),
        options=OPTIONS,
        workers=executor.WorkerOptions(num_workers=num_workers),
    )
    made, expected = tree(store / "out"), tree(local / "out")
    assert len(made) > 25
    assert located(made, store / "in") == located(expected, local / "in")
    assert all(made[name] == expected[name] for name in made if name.startswith("plan/"))
    here = loader.Plan.open(local / "out" / "plan")
    there = pickle.loads(pickle.dumps(loader.Plan.open(paths.train_plan)))
    assert here.num_steps == there.num_steps > 10
    batches = zip(loader.make_loader(here), loader.make_loader(there), strict=True)
    for mine, theirs in batches:
        assert all(np.array_equal(mine[name], theirs[name]) for name in loader.FIELDS)
    assert prepare.prepared_paths(str(store / "out")) == paths


@pytest.mark.slow
def test_a_killed_run_goes_on(store, tmp_path):
    """Killed at several places, it leaves what an uninterrupted local run does."""
    put(store / "in" / "sessions.parquet", embedded.sessions_path().read_bytes())
    arguments = [str(store / "in"), f"--output={store / 'out'}", "--row_length=2048"]
    arguments += [
        "--global_batch_size=8",
        "--shard_examples=50",
        "--shard_rows=100",
        "--nopictures",
    ]
    parts = store / "out" / "tokens" / "parts"
    kept = {}
    for sign in (
        store / "out" / "corpus" / "parts" / "judged-00001.parquet",
        store / "out" / "corpus" / "parts" / "written-00000",
        parts / "part-00002.parquet",
        store / "out" / "plan" / "unfinished.json",
    ):
        process = run(*arguments)
        while not sign.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.kill()
        process.communicate()
        if sign.parent == parts:
            shards = [p for p in parts.parent.iterdir() if p.suffix == ".array_record"]
            kept = {p: storage.stamp(p) for p in shards[:2]}
    process = run(*arguments)
    assert process.wait() == 0, process.communicate()
    assert kept and {p: storage.stamp(p) for p in kept} == kept  # not made again
    (tmp_path / "in").mkdir()
    shutil.copy(embedded.sessions_path(), tmp_path / "in")
    prepare.prepare(
        [str(tmp_path / "in")],
        tokenizer_dir="embedded",
        output_dir=tmp_path / "out",
        options=prepare.PrepareOptions(
            curation=curate.CurateOptions(shard_rows=100),
            tokenization=tokenize_stage.TokenizeOptions(shard_examples=50),
            planning=dataclasses.replace(OPTIONS.planning, pictures=False),
        ),
    )
    expected = located(tree(tmp_path / "out"), tmp_path / "in")
    assert located(tree(store / "out"), store / "in") == expected
