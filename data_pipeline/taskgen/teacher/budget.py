"""What was spent, what it may be, and the stop when it is reached."""

import dataclasses

from data_pipeline.taskgen.teacher import settings as settings_module


class BudgetExceeded(Exception):
    """The budget is used up: the question was not sent. What is in the cache is still answered."""


@dataclasses.dataclass(frozen=True)
class Spend:
    """Tokens and their price in dollars."""

    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0

    @property
    def tokens(self) -> int:
        """Both kinds together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Spend") -> "Spend":
        return Spend(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.dollars + other.dollars,
        )


class Budget:
    """Counts up to the limits.

    A request is sent while what was settled is below them. So they are passed by no more than the
    requests that were in flight when they were reached.
    """

    def __init__(self, settings: settings_module.Settings, spent: Spend):
        """Begin at what earlier runs spent."""
        self._settings = settings
        self.spent = spent

    def add(self, spend: Spend) -> None:
        """Count what a request cost."""
        self.spent += spend

    def require_left(self) -> None:
        """Raise BudgetExceeded where a limit is reached."""
        limits, spent = self._settings, self.spent
        if limits.max_dollars and spent.dollars >= limits.max_dollars:
            raise BudgetExceeded(
                f"${spent.dollars:.4f} are spent of --max_dollars={limits.max_dollars:g}; nothing "
                "more is sent"
            )
        if limits.max_total_tokens and spent.tokens >= limits.max_total_tokens:
            raise BudgetExceeded(
                f"{spent.tokens:,} tokens are used of --max_total_tokens="
                f"{limits.max_total_tokens}; nothing more is sent"
            )


def price(settings: settings_module.Settings, *, input_tokens: int, output_tokens: int) -> Spend:
    """So many tokens, with what they cost."""
    dollars = (
        input_tokens * settings.dollars_per_million_input
        + output_tokens * settings.dollars_per_million_output
    ) / 1e6
    return Spend(input_tokens, output_tokens, dollars)
