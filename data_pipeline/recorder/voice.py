"""How a solver words its thoughts: phrase banks, drawn from by the session's random source.

The phrases only frame what a family says; every fact in a sentence (a file, a count, an error)
comes from the family or from the observation.
"""

import random

_START = (
    "The task wants {brief}. Nothing has been run yet, so I start by looking around.",
    "I am asked for {brief}. First I need to see what is really there.",
    "Goal: {brief}. Before deciding anything I should look at the input.",
    "What is wanted is {brief}. I do not know the exact layout yet.",
    "Let me think about what is needed: {brief}. I should not guess the format.",
)
_START_ANALYSIS = (
    "Nothing has been run so far; the terminal is at a prompt in /app.",
    "The shell waits in /app and no command has been run.",
    "This is a fresh shell in /app. The input has not been looked at yet.",
    "Fresh terminal at /app; the files are still unknown.",
)
_DOUBT = (
    "I should read the result before I trust it.",
    "Small steps: run it, then compare with what I expect.",
    "Standard tools are enough for this.",
    "One command should be enough here.",
    "It is worth printing the result at once.",
    "If the output looks odd I can still change course.",
)
_WHY = ("{why}", "{why}", "{why}", "One thing to keep in mind: {why}")
_INTENT = (
    "So the next step is to {goal}.",
    "Now I can {goal}.",
    "Next I {goal}.",
    "I will {goal}.",
    "Let me {goal}.",
)
_PLAN = (
    "{Goal}.",
    "{Goal}, then read the output.",
    "I will {goal}.",
    "Next: {goal}.",
    "Now {goal}.",
    "{Goal} and check what comes back.",
)
_AGREE = (
    "This is what the task describes.",
    "That agrees with the task, so I can finish.",
    "I compared it with the instruction: name, place and format fit.",
    "Nothing is left to do.",
    "The result is in place.",
)
_SEEN = (
    "The terminal shows {quote}.",
    "The last line printed is {quote}.",
    "The output ends with {quote}.",
    "I read {quote} at the end.",
    "The screen now ends with {quote}.",
)
_QUIET = (
    "The command printed nothing, which is what it does when it works.",
    "No output and no error, so the command went through.",
    "The prompt came back without any message.",
)
_ERROR = (
    "That failed: `{error}`.",
    "The shell answers `{error}`, so this did not work.",
    "There is an error: `{error}`.",
    "Not what I wanted: `{error}`.",
)
_SLIP = {
    "word": (
        "I mistyped the command name.",
        "That was a typing mistake in the command.",
        "Just a typo; the program is called `{right}`.",
    ),
    "path": (
        "I got the file name wrong.",
        "The path has a typo; the listing and the task name it differently.",
        "No such file under that name: I misspelled it.",
    ),
    "flag": (
        "That option does not exist for `{right}`.",
        "I invented an option that `{right}` does not have.",
        "Wrong flag; I leave it out.",
    ),
}
_NOTICE = (
    "That cannot be right: {clue}",
    "Wait, {clue}",
    "Something is off. {Clue}",
    "Checking this against the task: {clue}",
    "Not correct yet: {clue}",
)
_DONE = (
    "{summary} Everything that was asked for is there.",
    "{summary} That is what the task asks for.",
    "{summary} I see nothing left to do.",
    "{summary} The result has been checked.",
)
_DONE_PLAN = (
    "Mark the task as complete.",
    "Nothing more to run; declare the task finished.",
    "The work is done, so I finish here.",
)
_CONFIRM = (
    "I am asked to confirm. {summary}",
    "Yes: {summary}",
    "The result stands as checked. {summary}",
    "Nothing has changed since the last check. {summary}",
)
_AGAIN = (
    "My last reply was not valid JSON, so nothing was run. I send the same step again, properly.",
    "The harness could not parse the reply; the step itself was fine. Here it is as clean JSON.",
    "A formatting mistake of mine. Same commands, this time as valid JSON.",
)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class Voice:
    """Draws phrases; the same random source says the same things."""

    def __init__(self, rng: random.Random):
        self._rng = rng

    def _say(self, bank: tuple[str, ...], **words: str) -> str:
        capitals = {_capital(k): _capital(v) for k, v in words.items()}
        return self._rng.choice(bank).format(**words, **capitals)

    def start(self, brief: str) -> tuple[str, str]:
        """Thought and analysis of the first turn."""
        return self._say(_START, brief=brief), self._say(_START_ANALYSIS)

    def agree(self) -> str:
        """Content with the result, as the end of a thought."""
        return self._say(_AGREE)

    def why(self, why: str) -> str:
        """A reason."""
        return self._say(_WHY, why=why)

    def intent(self, goal: str) -> str:
        """What will be done, as the end of a thought."""
        return self._say(_INTENT, goal=goal)

    def doubt(self) -> str:
        """A general remark, or nothing."""
        return self._say(_DOUBT) if self._rng.random() < 0.3 else ""

    def plan(self, goal: str) -> str:
        """What will be done, as a plan."""
        return self._say(_PLAN, goal=goal)

    def seen(self, quote: str) -> str:
        """What the screen shows; without a quote, that it shows nothing."""
        return self._say(_SEEN, quote=quote) if quote else self._say(_QUIET)

    def error(self, error: str) -> str:
        """An error message that was read."""
        return self._say(_ERROR, error=error)

    def slip(self, kind: str, right: str) -> str:
        """The cause of a typing mistake."""
        return self._say(_SLIP[kind], right=right)

    def notice(self, clue: str) -> str:
        """The moment a wrong result is noticed."""
        return self._say(_NOTICE, clue=clue)

    def done(self, summary: str) -> tuple[str, str]:
        """Analysis and plan of the turn that declares the task finished."""
        return self._say(_DONE, summary=summary), self._say(_DONE_PLAN)

    def confirm(self, summary: str) -> str:
        """Analysis of the second confirmation."""
        return self._say(_CONFIRM, summary=summary)

    def again(self) -> str:
        """Analysis of a reply sent again after a parse error."""
        return self._say(_AGAIN)
