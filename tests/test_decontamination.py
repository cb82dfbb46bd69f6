import json
import pathlib
import sys
import unicodedata
from functools import partial

import pytest
from conversations import dialogue, write_jsonl

from data_pipeline import curate, records
from data_pipeline.curation import benchmark_tasks, decontamination

WORDS = "Write a script that reads every log file below /var/log and counts, per host, the errors."


def find(instruction, *, ngram=14, normalisation="words", tasks=(("t", WORDS),)):
    made = decontamination.Decontaminator(tasks, ngram=ngram, normalisation=normalisation)
    return made.find(instruction)


def test_planted_runs_are_found_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
    sys.modules.pop("decontamination", None)
    import decontamination as benchmark  # type: ignore

    for ngram in (8, 14):
        found = benchmark.measure(num_instructions=300, num_tasks=10, ngram=ngram, seed=ngram)
        assert found["found"] == found["planted"] == 100
        assert found["control"] == 200 and found["false_hits"] == 0


def test_the_run_and_its_task_are_told():
    shouted = "please: " + WORDS.upper().replace(" ", "\n\n").replace("/", " - ") + " thanks"
    run = "write a script that reads every log file below var log and counts per"
    assert find(shouted) == f"14 words of t: {run}"
    assert find(" ".join(WORDS.split()[:12])) == ""  # 13 words: /var/log is two
    assert find(WORDS.replace("every", "each")) == ""
    assert find(" ".join(WORDS.split()[::-1])) == ""
    assert find("ﬁle " * 14, tasks=[("ligature", "file " * 20)])  # one form of Unicode


def test_case_form_and_what_is_not_seen_make_no_difference():
    """The law, for every letter that has a case or another form."""
    changes = [str.upper, str.lower, str.title, str.casefold]
    changes += [partial(unicodedata.normalize, form) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    letters = [c for c in map(chr, range(0x2D30)) if c.isalpha()]
    cased = [c for c in letters if any(change(c) != c for change in changes)]
    assert len(cased) > 2000
    for letter in cased:
        text = f"x{letter}y {letter}"
        words = decontamination.split_words(text, "words")
        for change in changes:
            assert decontamination.split_words(change(text), "words") == words, (letter, change)
    for hidden in "\u00ad\u200b\u200c\u200d\u2060\ufeff\ufe0f\u202e\U000e0041":
        assert find(hidden.join(WORDS)), hex(ord(hidden))


@pytest.mark.parametrize(
    ("benchmark", "disguised"),
    [("don't", "dont"), ("dont", "don't"), ("1,000", "1000"), ("1000", "1,000"), ("e.g.", "eg"),
     ("file", "**fi**le"), ("file-name", "filename"), ("read_me.md", "README md")],
)  # fmt: skip
def test_punctuation_may_join_and_part_words(benchmark, disguised):
    task = WORDS.replace("every", benchmark)
    first = f"{benchmark} log file below /var/log and counts per host how many errors there are, ok"
    for told in (task, first):
        assert find(told.replace(benchmark, disguised), tasks=[("t", told)]), told
    # A run begins and ends with a word: letters more are another word.
    run = "a b c d e f g h i j k l m n"
    for other in (f"x{run}", f"{run}x", run.replace("g", "gx")):
        assert not find(f"{other} o p", tasks=[("t", run)])
        assert not find(other, tasks=[("t", f"o {run} p")])


def test_exact_words_are_compared_as_they_stand():
    assert find(WORDS, normalisation="exact")
    assert find(WORDS.replace(" ", " \n "), normalisation="exact")
    assert not find(WORDS.upper(), normalisation="exact")


def test_short_instructions_are_compared_whole():
    tasks = [("hello", "Print hello, world!")]
    assert find("print HELLO world", tasks=tasks) == "the whole of hello: print hello world"
    assert find("now print hello world", tasks=tasks) == ""
    assert find("…", tasks=[("no word", "!!! ???")]) == ""


def test_the_instruction_is_the_task_in_the_prompt():
    def of(prompt):
        turns = [records.Message("system", "s"), records.Message("user", prompt)]
        return decontamination.instruction_of(turns)

    prompt = "Rules.\n\nTask Description:\nDo it.\n\nIn two parts.\n\nCurrent terminal state:\n$"
    assert of(prompt) == "Do it.\n\nIn two parts."
    assert of("Just do it.") == "Just do it."
    assert of("Task Description:\nNo screen.") == "No screen."


def test_benchmarks_are_read_from_folders_and_jsonl(tmp_path):
    for name in ("bench/a", "bench/deep/b", "bench/old"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bench/a/instruction.md").write_text("Do a.")
    (tmp_path / "bench/a/task.toml").touch()
    (tmp_path / "bench/deep/b/instruction.md").write_text("Do b.")
    (tmp_path / "bench/old/task.yaml").write_text("instruction: |-\n  Do c:\n  all\ntags: [x]\n")
    rows = [{"instruction": "Do d.", "id": 7}, {"problem_statement": "Do e."}]
    write_jsonl(tmp_path / "more.jsonl", rows)
    found = benchmark_tasks.read([str(tmp_path / "bench"), str(tmp_path / "more.jsonl")])
    assert found == (
        ("bench/a", "Do a."), ("bench/deep/b", "Do b."), ("bench/old", "Do c:\nall"),
        ("7", "Do d."), ("more.jsonl line 2", "Do e."),
    )  # fmt: skip
    assert benchmark_tasks.read([str(tmp_path / "bench/a")]) == (("a", "Do a."),)


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("b.jsonl", '{"instruction": "x"}\n{', r"b\.jsonl line 2: not valid JSON"),
        ("b.jsonl", '{"text": "x"}', r"b\.jsonl line 1: no text in instruction, prompt"),
        ("b.jsonl", "[1]", r"b\.jsonl line 1: no text in instruction, prompt"),
        ("b.jsonl", "", "no task there"),
        ("b.jsonl", '{"instruction": " "}', "the instruction of .* is empty"),
        ("b.txt", "x", r"name a folder of tasks or a \.jsonl file"),
        ("task.yaml", "instruction: [", r"task\.yaml: not valid YAML"),
        ("task.yaml", "title: x", r"task\.yaml: no `instruction`"),
    ],
)
def test_a_bad_benchmark_is_named(tmp_path, file, text, fault):
    (tmp_path / file).write_text(text)
    name = tmp_path if file == "task.yaml" else tmp_path / file
    with pytest.raises(ValueError, match=fault):
        benchmark_tasks.read([str(name)])


def test_curate_removes_what_overlaps_and_tells_the_run(tmp_path):
    bench = write_jsonl(tmp_path / "bench.jsonl", [{"id": "errors", "instruction": WORDS}])
    prompt = f"{WORDS} as rules\n\nTask Description:\n{{}}\n\nCurrent terminal state:\n$"
    rows = [dialogue(prompt.format(task), "ok") for task in ("Sing.", WORDS.title())]
    file = write_jsonl(tmp_path / "a.jsonl", rows)

    def run(name, **options):
        return curate.curate(
            [str(file)], output_dir=tmp_path / name, options=curate.CurateOptions(**options)
        )

    curated = run("out", benchmarks=(str(bench),))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [filter] = [each for each in report["filters"] if each["removed"]]
    assert filter["examples"][0]["detail"].startswith("14 words of errors: write a script")
    assert filter["examples"][0]["location"].endswith("line 2")
    assert report["benchmark_tasks"] == 1 and report["benchmark_tasks_compared_whole"] == []
    assert curated.removed is not None
    assert run("apart").removed is None
    bench.write_text(json.dumps({"instruction": "Another."}))
    with pytest.raises(ValueError, match=r"benchmark_instructions=.*--overwrite"):
        run("out", benchmarks=(str(bench),))
