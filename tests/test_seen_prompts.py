"""Prompts seen before are found as the definition of their similarity says, in flat memory."""

import random
import subprocess
import sys

import pytest

from data_pipeline.taskgen import seen_prompts

LONG = " ".join(f"word{i}" for i in range(30))


def shingles(text):
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_near_prompts_are_found_as_jaccard_says(tmp_path):
    rng = random.Random(3)
    seen = seen_prompts.SeenPrompts(tmp_path / "s.sqlite", threshold=0.8)
    missed = wrong = near = 0
    for i in range(200):
        words = [f"w{rng.randrange(10_000)}" for _ in range(200)]
        changed = list(words)
        for place in rng.sample(range(200), rng.randrange(1, 8)):
            changed[place] = "other"
        texts = [" ".join(words), " ".join(changed)]
        a, b = map(shingles, texts)
        true = len(a & b) / len(a | b)
        assert seen.add(f"{i}a", texts[0]) is None
        found = seen.add(f"{i}b", texts[1])
        assert found is None or found[0] == f"{i}a"
        near += true > 0.9
        missed += true > 0.9 and found is None
        wrong += true < 0.7 and found is not None
    assert near > 20 and missed == 0 and wrong == 0


def test_what_was_not_committed_was_never_seen(tmp_path):
    for expected in (None, None, ("b", 1.0)):
        seen = seen_prompts.SeenPrompts(tmp_path / "s.sqlite", threshold=0.9)
        assert seen.state("x", "0") == ("1" if expected else "0")
        assert seen.add("b", LONG) == expected
        if (tmp_path / "second").exists():
            seen.commit(x="1")
        seen.close()
        (tmp_path / "second").touch()


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    """Ten times the records take no more memory: what grows is on the disk."""
    script = (
        "import resource, sys, itertools\nfrom data_pipeline.taskgen import seen_prompts\n"
        "import pathlib, random\nrng = random.Random(0)\n"
        "seen = seen_prompts.SeenPrompts(pathlib.Path(sys.argv[1]), threshold=0.9)\n"
        "for i in range(int(sys.argv[2])):\n"
        "    seen.add(str(i), ' '.join(str(rng.random()) for _ in range(30)))\n"
        "    if i % 2000 == 0: seen.commit()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", script, str(tmp_path / n), n]))
        for n in ("2000", "20000")
    ]
    assert peaks[1] < 1.1 * peaks[0]
