"""What the engine is given: one order a task, to be asked of the teacher."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

Message = Mapping[str, str]  # role and content, as the chat-completions protocol has them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """One task that is wanted.

    Attributes:
        name: of the task's folder.
        messages: the question to the teacher.
        dockerfile: the environment the task is made for, without the task's own files.
        source: which generator asks, "seed" or "skill".
        takes_solution: whether the reply holds a solution, which is then tried and never shown.
        reference: a text that no agent may see, in the instruction or in a file.
        info: free metadata of the task.
    """

    name: str
    messages: tuple[Message, ...]
    dockerfile: str
    source: str
    domain: str
    difficulty: str = ""
    skills: tuple[str, ...] = ()
    takes_solution: bool = False
    reference: str = ""
    info: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Recipe(Protocol):
    """Numbered orders, the same at every start."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def orders(self, is_settled: Callable[[int], bool]) -> Iterator[tuple[int, Order]]:
        """Number and order, in order, of those that are not settled.

        An order depends on its number alone, not on what is settled.
        """
        ...
