"""What adapt asks of each record by itself, before records are compared with each other."""

import dataclasses
from collections.abc import Callable, Sequence

from data_pipeline import cli
from data_pipeline.curation import decontamination
from data_pipeline.taskgen import adapt_report, adapters, dataset_rows, novelty_options
from data_pipeline.taskgen import task as task_module


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions(novelty_options.NoveltyOptions):
    """What adapt is told."""

    prompt_column: str = dataclasses.field(
        default="",
        metadata=cli.flag(
            f"column of the prompts; unset takes the first filled one of "
            f"{', '.join(adapters.PROMPT_COLUMNS)}"
        ),
    )
    response_column: str = dataclasses.field(
        default="",
        metadata=cli.flag(
            f"column of the responses, for the two least lengths; unset takes the first filled one "
            f"of {', '.join(adapters.RESPONSE_COLUMNS)}"
        ),
    )
    answer_column: str = dataclasses.field(
        default="",
        metadata=cli.flag(
            f"column of the expected answers, for --answer_tests; unset takes the first filled one "
            f"of {', '.join(adapters.ANSWER_COLUMNS)}"
        ),
    )
    min_response_chars: int = dataclasses.field(
        default=0,
        metadata=cli.flag("records whose response is shorter go: their problems are easy; 0: none"),
    )
    min_response_tokens: int = dataclasses.field(
        default=0,
        metadata=cli.flag("the same in tokens of --tokenizer; the paper's math has 2000; 0: none"),
    )
    answer_tests: bool = dataclasses.field(
        default=False,
        metadata=cli.flag("math: make a test where the expected answer is a number"),
    )
    near_duplicates: float = dataclasses.field(
        default=0.9,
        metadata=cli.flag(
            "similarity of prompts from which on the later one goes; 0 compares for equality alone"
        ),
    )
    dockerfile: str = dataclasses.field(
        default="",
        metadata=cli.flag(
            "Dockerfile of the tasks; unset takes that of the kind's domain",
            changes_output=False,  # what is in it does
        ),
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("min_response_chars", "min_response_tokens"):
            value = getattr(self, name)
            cli.require(value >= 0, f"--{name}={value} must not be negative")


class Maker:
    """What is asked of one record after another; nothing of it depends on the records before."""

    def __init__(
        self,
        kind: adapters.Kind,
        options: AdaptOptions,
        dockerfile: str,
        benchmark: Sequence[tuple[str, str]],
        count_tokens: Callable[[str], int] | None,
    ):
        self.options = options
        self._kind: adapters.Kind = kind
        self._dockerfile = dockerfile
        self._count_tokens = count_tokens
        self._decontaminator = decontamination.Decontaminator(
            benchmark, ngram=options.ngram, normalisation="words"
        )

    def make(self, row: dataset_rows.DatasetRow) -> tuple[str, str, task_module.Task]:
        """Column of the prompt, the prompt, the task.

        Raises:
            adapters.Unadaptable: naming the reason.
        """
        if row.values is None:
            raise adapters.Unadaptable(adapt_report.BAD_ROW, row.fault)
        column, prompt = self._find(row, self.options.prompt_column, adapters.PROMPT_COLUMNS)
        if not prompt:
            has = ", ".join(map(str, list(row.values)[:12]))
            raise adapters.Unadaptable(adapters.NO_PROMPT, f"the record has {has}")
        self._judge_response(row)
        if found := self._decontaminator.find(prompt):
            raise adapters.Unadaptable(adapt_report.CONTAMINATED, found)
        task = adapters.adapt(
            self._kind,
            row.values,
            prompt=prompt,
            dockerfile=self._dockerfile,
            location=row.location.rpartition("/")[2],
            answer=self._answer(row) if self.options.answer_tests else "",
        )
        return column, prompt, task

    def _find(
        self, row: dataset_rows.DatasetRow, told: str, columns: Sequence[str], role: str = "user"
    ) -> tuple[str, str]:
        return adapters.find_text(row.values or {}, (told,) if told else columns, role=role)

    def _judge_response(self, row: dataset_rows.DatasetRow) -> None:
        min_chars, min_tokens = self.options.min_response_chars, self.options.min_response_tokens
        if not min_chars and not min_tokens:
            return
        _, response = self._find(
            row, self.options.response_column, adapters.RESPONSE_COLUMNS, "assistant"
        )
        if len(response) < min_chars:
            detail = f"{len(response):,} characters"
        elif self._count_tokens and (num := self._count_tokens(response)) < min_tokens:
            detail = f"{num:,} tokens"
        else:
            return
        raise adapters.Unadaptable(adapt_report.SHORT_RESPONSE, detail)

    def _answer(self, row: dataset_rows.DatasetRow) -> str:
        told = self.options.answer_column
        for column in (told,) if told else adapters.ANSWER_COLUMNS:
            value = (row.values or {}).get(column)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return str(value)
        return ""
