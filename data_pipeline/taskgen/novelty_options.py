"""Which tasks are too like others to be kept: settings that all stages which make tasks share."""

import dataclasses

from data_pipeline import cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoveltyOptions:
    """What instructions are compared with, and how alike they may be."""

    benchmarks: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata=cli.flag(
            "folders of Harbor or Terminal-Bench tasks, or .jsonl files of instructions: tasks "
            "that share --ngram words in a row with one of them go",
            changes_output=False,  # the instructions in them do
        ),
    )
    ngram: int = dataclasses.field(
        default=14, metadata=cli.flag("words in a row that make a task contaminated")
    )
    near_duplicates: float = dataclasses.field(
        default=0.7,
        metadata=cli.flag(
            "similarity from which on an instruction repeats an earlier one; 0: equal ones alone"
        ),
    )

    def __post_init__(self):
        cli.require(self.ngram > 0, f"--ngram={self.ngram} must be positive")
        cli.require(
            0 <= self.near_duplicates <= 1,
            f"--near_duplicates={self.near_duplicates} must be in [0, 1]",
        )
