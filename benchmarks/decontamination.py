"""Decontamination, measured: planted runs found, false hits, instructions a second.

    python benchmarks/decontamination.py --instructions=50000 --tasks=89

Synthetic instructions are made of a vocabulary of common and rare words. Into some of them a run
of n words of a benchmark task is planted, with its case, spaces and punctuation changed, inside
words too; the others
are the control set, and so are instructions into which a run of n - 1 words is planted.
"""

import argparse
import random
import time

from data_pipeline.curation import decontamination

SEPARATORS = (" ", "  ", "\n", ", ", "-", " (", ") ", "\t", '" ', ": ", "_", " - ")


class Maker:
    """Makes instructions, all from one seed."""

    def __init__(self, seed: int, *, num_words: int = 4000):
        self._random = random.Random(seed)
        letters = "aeioulnrstdmpé"
        self._words = ["".join(self._random.choices(letters, k=self._random.randint(2, 8)))
                       for _ in range(num_words)]  # fmt: skip
        self._weights = [1 / (rank + 3) for rank in range(num_words)]  # as words of a language

    def instruction(self, num_words: int) -> str:
        return " ".join(self._random.choices(self._words, self._weights, k=num_words))

    def lengths(self, num: int) -> list[int]:
        return [self._random.randint(40, 400) for _ in range(num)]

    def planted(self, host: str, task: str, num_words: int) -> str:
        """`host` with a run of `task` inside, disguised."""
        words, inside = host.split(" "), task.split(" ")
        start = self._random.randrange(len(inside) - num_words + 1)
        at = self._random.randrange(len(words) + 1)
        # A neighbour of the run is one that no task has, so that its length is what it is said.
        run = ["zzz", *map(self._disguised, inside[start : start + num_words]), "zzz"]
        return " ".join([*words[:at], self._spaced(run), *words[at:]])

    def _disguised(self, word: str) -> str:
        word = self._random.choice((word.lower(), word.upper(), word.capitalize()))
        cut = self._random.randrange(4 * len(word))  # beyond its end: it stays whole
        return word[:cut] + self._random.choice("'*,.`") + word[cut:] if cut < len(word) else word

    def _spaced(self, words: list[str]) -> str:
        return "".join(word + self._random.choice(SEPARATORS) for word in words)


def measure(
    *, num_instructions: int, num_tasks: int, ngram: int, seed: int = 0
) -> dict[str, float]:
    """A third of the instructions is planted, a third nearly so, a third untouched."""
    maker = Maker(seed)
    tasks = [(f"task-{i}", maker.instruction(n)) for i, n in enumerate(maker.lengths(num_tasks))]
    planted, control = [], []
    for i, length in enumerate(maker.lengths(num_instructions)):
        made, (name, task) = maker.instruction(length), tasks[i % num_tasks]
        if i % 3 == 0:
            planted.append((maker.planted(made, task, ngram), name))
        else:
            control.append(maker.planted(made, task, ngram - 1) if i % 3 == 1 else made)
    began = time.perf_counter()
    finder = decontamination.Decontaminator(tasks, ngram=ngram, normalisation="words")
    found = [finder.find(text) for text, _ in planted]
    false = [finder.find(text) for text in control]
    seconds = time.perf_counter() - began
    return {
        "planted": len(planted),
        "found": sum(f" {name}: " in hit for hit, (_, name) in zip(found, planted, strict=True)),
        "control": len(control),
        "false_hits": sum(map(bool, false)),
        "instructions_per_second": round(num_instructions / seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instructions", type=int, default=50_000)
    parser.add_argument("--tasks", type=int, default=89)
    parser.add_argument("--ngram", type=int, default=14)
    given = parser.parse_args()
    for name, value in measure(
        num_instructions=given.instructions, num_tasks=given.tasks, ngram=given.ngram
    ).items():
        print(f"{name:>24} {value:,}")


if __name__ == "__main__":
    main()
