"""Tokenising against the tokenizer library alone: the same texts, the same cores, one run.

    python benchmarks/tokenize_speed.py --tokenizer=../shared/data/qwen3-tokenizer \
        ../shared/data/trajectories/*.jsonl

(a) `encode_batch` of the texts already rendered, all of them in one call: what the library can do.
(b) the whole stage: Parquet -> checked rows -> chat template -> tokens and mask -> ArrayRecord,
index, manifest. The corpus is the named files again and again, each copy's text varied a little
so that no cache of words sees the same text twice. Both are timed by turns, each in a process of
its own, and the medians compared: by the clock, and by CPU time (which neighbours disturb less).
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import psutil
import pyarrow.parquet as pq

from data_pipeline import chat, corpus, corpus_writer, executor, records, shards, tokenize


def varied(text: str, copy: int) -> str:
    """The text with each digit moved on by `copy`: other numbers, the same shape."""
    return text.translate({ord(str(d)): str((d + copy) % 10) for d in range(10)})


def make_corpus(names: list[str], megabytes: float, path: pathlib.Path) -> None:
    rows = [row.conversation for name in corpus.find_files(names) for row in corpus.read_rows(name)]
    usable = [row for row in rows if row and any(m.role == "assistant" for m in row.messages)]

    corpus_writer.write_parquet(_copies(usable, megabytes * 1e6), path)


def _copies(rows: list[records.Conversation], num_bytes: float) -> Iterator[records.Conversation]:
    for copy in itertools.count():
        for row in rows:
            turns = tuple(records.Message(m.role, varied(m.content, copy)) for m in row.messages)
            yield records.Conversation(turns, {**row.metadata, "task": f"{copy}"}, row.location)
            num_bytes -= sum(len(turn.content.encode()) for turn in turns)
            if num_bytes < 0:
                return


def encode_alone(path: pathlib.Path, tokenizer_dir: pathlib.Path) -> dict[str, float]:
    import tokenizers

    chat_tokenizer = chat.ChatTokenizer(tokenizer_dir)
    texts = [
        chat_tokenizer.render(row.conversation)
        for row in corpus.read_rows(path)
        if row.conversation
    ]
    library = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    start, cpu = time.perf_counter(), time.process_time()
    num_tokens = 0
    for batch in itertools.batched(texts, 1024):  # all encodings at once would not fit
        encodings = library.encode_batch(list(batch), add_special_tokens=False)
        num_tokens += sum(map(len, encodings))
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "tokens": num_tokens,
    }


def whole_stage(path: pathlib.Path, tokenizer_dir: pathlib.Path, workers: int) -> dict[str, float]:
    chat.ChatTokenizer(tokenizer_dir)  # imports transformers: on neither side is that counted
    with tempfile.TemporaryDirectory() as folder:
        start, cpu = time.perf_counter(), _cpu_seconds()
        output = tokenize.tokenize(
            [str(path)],
            tokenizer_dir=str(tokenizer_dir),
            output_dir=pathlib.Path(folder) / "tokens",
            options=tokenize.TokenizeOptions(),
            workers=executor.WorkerOptions(num_workers=workers),
        )
        counts = pq.read_table(output / shards.INDEX_FILE, columns=["num_tokens"])
        return {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": _cpu_seconds() - cpu,
            "tokens": sum(counts["num_tokens"].to_pylist()),
        }


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usages = [resource.getrusage(kind) for kind in kinds]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def in_process(kind: str, args: argparse.Namespace, path: pathlib.Path) -> dict[str, float]:
    """Time one side in a process of its own; adds the peak memory of it and its children."""
    command = [sys.executable, __file__, str(path), f"--tokenizer={args.tokenizer}"]
    command += [f"--only={kind}", f"--workers={args.workers}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "true"},
    )  # fmt: skip
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(each.memory_full_info().pss for each in family))  # shared once
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.05)
    assert process.stdout and process.returncode == 0, f"{' '.join(command)} failed"
    return json.loads(process.stdout.read()) | {"peak_bytes": peak}


def compare(args: argparse.Namespace) -> None:
    packages = ("tokenizers", "transformers", "pyarrow", "array-record", "numpy")
    print(f"{executor.num_cores()} cores;", ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in packages
    ))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "corpus.parquet"
        make_corpus(args.files, args.megabytes, path)
        runs = {kind: [] for kind in ("library", "stage")}
        for round_ in range(args.rounds):
            for kind, made in runs.items():
                made.append(in_process(kind, args, path))
                print(round_, kind, json.dumps(made[-1]), flush=True)
    library, stage = (
        {key: statistics.median(run[key] for run in made) for key in made[0]}
        for made in runs.values()
    )
    assert library["tokens"] == stage["tokens"]
    for name, found in (("encode_batch", library), ("whole stage", stage)):
        print(
            f"{name:12} {found['seconds']:6.1f} s  {found['cpu_seconds']:6.1f} CPU s  "
            f"{found['tokens'] / found['seconds'] / 1e6:.2f} M tokens/s  "
            f"peak {found['peak_bytes'] / 2**30:.2f} GiB"
        )
    clock, cpu = (library[kind] / stage[kind] for kind in ("seconds", "cpu_seconds"))
    print(f"throughput, stage over library: {clock:.2f} by the clock, {cpu:.2f} by CPU time")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", help="Parquet or JSONL of conversations")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--megabytes", type=float, default=120, help="of text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--only", choices=("library", "stage"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "library":
        print(json.dumps(encode_alone(pathlib.Path(args.files[0]), args.tokenizer)))
    elif args.only == "stage":
        print(json.dumps(whole_stage(pathlib.Path(args.files[0]), args.tokenizer, args.workers)))
    else:
        compare(args)


if __name__ == "__main__":
    main()
