"""Scripted solvers: what an assistant turn is, and the moves a family's script is made of.

A family's `solve(agent)` is a generator: it yields turns and is sent what the terminal then showed.
Its moves are `yield from agent.run(...)`, `agent.attempt(...)` and `agent.finish(...)`; they return
the observation, so that the script can decide from it.
"""

import dataclasses
import json
import random
import re
from collections.abc import Generator, Sequence

from data_pipeline.recorder import screen, slips, voice

FLAWS = ("none", "recover", "fail")
Moves = Generator["Turn", str, str]
Path = str | Sequence[str]
_SLOW = re.compile(r"^(python3|find|tar|sort|make|git|gzip|gunzip|bash|timeout|\./|sleep|awk)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Keystrokes as typed and the seconds to wait; `waits`: it will not come back to a prompt."""

    keystrokes: str
    duration_s: float
    waits: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One assistant turn."""

    think: str
    analysis: str
    plan: str
    commands: tuple[Command, ...] = ()
    done: bool = False

    def reply(self, *, thinks: bool) -> str:
        """The turn as the assistant's message."""
        body = {
            "analysis": self.analysis,
            "plan": self.plan,
            "commands": [
                {"keystrokes": c.keystrokes, "duration": c.duration_s} for c in self.commands
            ],
            "task_complete": self.done,
        }
        text = json.dumps(body, indent=2, ensure_ascii=False)
        return f"<think>\n{self.think}\n</think>\n\n{text}" if thinks and self.think else text


class Agent:
    """Makes turns: words them, and lets the mistakes happen that the session is to have.

    Attributes:
        rng: the session's random source, for a script's own choices.
        flaw: "none"; "recover": the first attempt that knows a wrong way takes it and mends it;
            "fail": it takes it and does not notice.
        slip: one read-only command will be mistyped, and typed again.
    """

    def __init__(self, rng: random.Random, *, brief: str, flaw: str, slip: bool):
        assert flaw in FLAWS, flaw
        self.rng = rng
        self.flaw = flaw
        self.slip = slip
        self._voice = voice.Voice(rng)
        self._brief = brief
        self._last: str | None = None

    def run(self, goal: str, *lines: str | Command, seen: str = "", why: str = "") -> Moves:
        """One turn: run lines.

        Args:
            goal: what they are for, a verb phrase without a full stop ("count the lines").
            *lines: shell lines, typed with a newline, or commands.
            seen: what the last observation told, a sentence; left out, the screen is quoted.
            why: a reason worth saying, a sentence.
        """
        slip = next((s for s in map(self._mistype, lines) if s), None) if self.slip else None
        if slip is None:
            return (yield from self._turn(goal, lines, seen=seen, why=why))
        self.slip = False
        meant = next(line for line in lines if self._mistype_of(line, slip))
        typed = [slip.line if line == meant else line for line in lines]
        first = yield from self._turn(goal, typed, seen=seen, why=why)
        cause = f"{self._reaction()} {self._voice.slip(slip.kind, slip.program)}"
        again = f"repeat the `{slip.program}` command without the mistake"
        second = yield from self._turn(again, [meant], seen=cause)
        return f"{first}\n{second}"

    def attempt(
        self,
        goal: str,
        *,
        right: Sequence[Path],
        wrong: Path | None = None,
        mend: Path | None = None,
        clue: str = "",
        show: str = "",
        seen: str = "",
        why: str = "",
    ) -> Moves:
        """Do the work, perhaps wrongly first.

        Args:
            goal: what the work is, a verb phrase.
            right: ways that do it, one is drawn; a way is a line or several.
            wrong: a plausible way that does not.
            mend: the way to put it right after the wrong one, where `right` would not do.
            clue: how one notices, a clause without capital ("the header line is counted too").
            show: a line that shows the result, run after the work.
            seen: what the last observation told.
            why: the reason behind the right way.
        """
        way = self.rng.choice(list(right))
        if wrong is not None and self.flaw != "none":
            flaw, self.flaw = self.flaw, "none"
            result = yield from self._work(goal, wrong, show, seen=seen)
            if flaw == "fail":
                return result
            again = self.rng.choice(("do it again the right way", "correct this", "put it right"))
            noticed = self._voice.notice(clue)
            return (yield from self._work(again, mend or way, show, seen=noticed, why=why))
        return (yield from self._work(goal, way, show, seen=seen, why=why))

    def finish(self, summary: str) -> Moves:
        """Declare the task complete, and confirm it when asked.

        Args:
            summary: what was achieved, a sentence.
        """
        analysis, plan = self._voice.done(summary)
        shown = screen.quote(screen.output_lines(self._last or ""))
        think = f"{self._voice.seen(shown)} {self._voice.agree()}"
        yield Turn(think=think, analysis=analysis, plan=plan, done=True)
        confirmed = self._voice.confirm(summary)
        return (yield Turn(think="", analysis=confirmed, plan="Confirm.", done=True))

    def again(self, turn: Turn) -> Turn:
        """The same turn, sent again after its reply did not parse."""
        sorry = self._voice.again()
        return dataclasses.replace(turn, think=sorry, analysis=f"{sorry} {turn.analysis}")

    def _work(self, goal: str, way: Path, show: str, *, seen: str, why: str = "") -> Moves:
        """The lines of one way and the line that shows the result, in one turn or in two."""
        lines = [way] if isinstance(way, str) else list(way)
        if show and self.rng.random() < 0.6:
            return (yield from self._turn(goal, [*lines, show], seen=seen, why=why))
        result = yield from self._turn(goal, lines, seen=seen, why=why)
        if not show:
            return result
        return (yield from self._turn("look at the result", [show]))

    def _turn(
        self, goal: str, lines: Sequence[str | Command], *, seen: str = "", why: str = ""
    ) -> Moves:
        """Word one turn, yield it and keep what comes back."""
        if self._last is None:
            think, analysis = self._voice.start(self._brief)
        else:
            think = analysis = seen or self._reaction()
        if why and self.rng.random() < 0.6:
            think = f"{think} {self._voice.why(why)}"
        elif why:
            analysis = f"{analysis} {self._voice.why(why)}"
        words = [think, self._voice.intent(goal), self._voice.doubt()]
        self._last = yield Turn(
            think=" ".join(w for w in words if w),
            analysis=analysis,
            plan=self._voice.plan(goal),
            commands=tuple(_command(line) for line in lines),
        )
        return self._last

    def _reaction(self) -> str:
        """A sentence on the last observation: its error, or a quote."""
        error = screen.error_line(self._last or "")
        if error and "`" not in error and len(error) < 120:
            return self._voice.error(error)
        return self._voice.seen(screen.quote(screen.output_lines(self._last or "")))

    def _mistype(self, line: str | Command) -> slips.Slip | None:
        """A mistyped version of a line, where one can be made."""
        if isinstance(line, Command):
            return None
        return slips.draw(line, random.Random(f"{line}/{self._brief}"))

    def _mistype_of(self, line: str | Command, slip: slips.Slip) -> bool:
        return self._mistype(line) == slip


def heredoc(path: str, text: str) -> str:
    """The line (of several) that writes a file."""
    return f"cat > {path} <<'EOF'\n{text.rstrip()}\nEOF"


def _command(line: str | Command) -> Command:
    """A typed line with the wait that suits it."""
    if isinstance(line, Command):
        return line
    slow = _SLOW.match(line) is not None
    return Command(keystrokes=f"{line}\n", duration_s=1.0 if slow else 0.1)
