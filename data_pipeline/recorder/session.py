"""Plays one session: a solver against a shell, from the first prompt to the graded result."""

import dataclasses
import random

from data_pipeline.recorder import family as family_lib
from data_pipeline.recorder import garble, isolation, prompt, solver, terminal

AGENT, MODEL = "terminus-2", "jaxterm-scripted-solver"
MAX_TURNS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manner:
    """How a session goes; drawn once at its start.

    Attributes:
        flaw: see solver.Agent.
        slip: see solver.Agent.
        thinks: replies begin with a <think> block.
        stop_after: turns after which the session is cut short; None: it runs to its end.
        garble: the turn whose reply is first sent as broken JSON; None: no such turn.
    """

    flaw: str
    slip: bool
    thinks: bool
    stop_after: int | None
    garble: int | None


def draw_manner(rng: random.Random) -> Manner:
    """Draw a manner: most sessions succeed, some after a mistake, a few do not."""
    return Manner(
        flaw=rng.choices(solver.FLAWS, weights=(0.52, 0.38, 0.10))[0],
        slip=rng.random() < 0.22,
        thinks=rng.random() < 0.88,
        stop_after=rng.choice((2, 3)) if rng.random() < 0.05 else None,
        garble=rng.choice((0, 1, 2)) if rng.random() < 0.07 else None,
    )


def play(
    family: family_lib.Family, number: int, *, seed: int, sandbox: str, manner: Manner | None = None
) -> dict:
    """Record one session.

    Args:
        family: what is to be solved.
        number: which of the family's sessions; seed, name and number fix everything drawn.
        seed: of the whole recording.
        sandbox: see isolation.
        manner: how it goes, if not as drawn.

    Returns:
        One row of the corpus.
    """
    identity = f"{seed}/{family.name}/{number}"
    task = family.make(random.Random(identity))
    rng = random.Random(f"{identity}/manner")
    manner = manner or draw_manner(rng)
    agent = solver.Agent(rng, brief=task.brief, flaw=manner.flaw, slip=manner.slip)
    with isolation.make_world(task.files, sandbox=sandbox) as world:
        with terminal.Terminal(world) as shell:
            recording = _Recording(world, shell, agent, manner)
            recording.play(task)
        reward = task.check(world)
    return {
        "conversations": recording.messages,
        "agent": AGENT,
        "model": MODEL,
        "task": f"{family.name}-{number:03d}",
        "episode": f"episode-{recording.num_replies - 1}",
        "run_id": f"recorder-seed-{seed}",
        "trial_name": f"{family.name}-{number:03d}__seed{seed}",
        "enable_thinking": manner.thinks,
        "source": family.domain,
        "reward": float(reward),
        "complete": recording.complete,
        "domain": family.domain,
        "difficulty": family.difficulty,
    }


class _Recording:
    """The messages of a session while it is played."""

    def __init__(
        self,
        world: isolation.World,
        shell: terminal.Terminal,
        agent: solver.Agent,
        manner: Manner,
    ):
        self.messages: list[dict[str, str]] = []
        self.num_replies = 0
        self.complete = False
        self._world, self._shell, self._agent, self._manner = world, shell, agent, manner

    def play(self, task: family_lib.Task) -> None:
        """Let the solver and the shell take turns; the last message is the solver's."""
        instruction = self._world.localize(task.instruction)
        self._hear(prompt.first_message(instruction, self._shell.read()))
        script = task.solve(self._agent)
        turn, asked = next(script), False
        while True:
            self._say(turn)
            self.complete = turn.done and asked
            if self.complete or self.num_replies >= (self._manner.stop_after or MAX_TURNS):
                return
            output, asked = self._type(turn), turn.done
            self._hear(prompt.confirmation(output) if asked else prompt.observation(output))
            turn = script.send(output)

    def _say(self, turn: solver.Turn) -> None:
        """The solver's reply; once in a garbled session a broken one comes first."""
        if self.num_replies == self._manner.garble and not turn.done:
            reply = turn.reply(thinks=self._manner.thinks)
            broken, reason = garble.garble(reply, self._agent.rng)
            self._reply(broken)
            self._hear(prompt.parse_error(reason))
            turn = self._agent.again(turn)
        self._reply(turn.reply(thinks=self._manner.thinks))

    def _type(self, turn: solver.Turn) -> str:
        """Type the turn's commands and read what is new on the screen."""
        for command in turn.commands:
            keystrokes = self._world.localize(command.keystrokes)
            self._shell.send(keystrokes, command.duration_s, waits=command.waits)
        return self._shell.read()

    def _hear(self, content: str) -> None:
        self.messages.append({"role": "user", "content": content})

    def _reply(self, content: str) -> None:
        self.messages.append({"role": "assistant", "content": self._world.localize(content)})
        self.num_replies += 1
