"""The words around a session: the first prompt and the messages the harness sends.

The protocol is Terminus 2's (one user message, JSON replies, incremental output, a second
confirmation, a message after a reply that does not parse); the wording is ours.
"""

PREFIX = """\
You work alone at a Linux terminal until a task is done. Each turn you see what is new on the \
screen and reply with one JSON object and nothing after it:

{
  "analysis": "what the screen shows and what is still missing",
  "plan": "what the next commands do and why",
  "commands": [
    {"keystrokes": "ls -l\\n", "duration": 0.1}
  ],
  "task_complete": false
}

"keystrokes" are typed exactly as given: end a shell line with \\n, or send C-c or C-d alone for \
those keys. "duration" is how many seconds to wait before the next command: 0.1 for instant ones, \
1 or more for slow ones, 60 at most. "commands" may be empty. Set "task_complete" to true only \
when the result has been checked.

"""


def first_message(instruction: str, terminal_state: str) -> str:
    """The user message that opens a session."""
    return (
        f"{PREFIX}Task Description:\n{instruction}\n\nCurrent terminal state:\n{terminal_state}\n"
    )


def observation(output: str) -> str:
    """The user message after commands have run."""
    return f"New Terminal Output:\n{output}\n"


def confirmation(output: str) -> str:
    """The user message after the first "task_complete": true."""
    return (
        f"Current terminal state:\n{output}\n\n"
        "Is the task really finished? Once you confirm, the result is graded and nothing can be "
        'changed any more. To confirm, send "task_complete": true once more.'
    )


def parse_error(reason: str) -> str:
    """The user message after a reply that is not the JSON asked for."""
    return (
        f"Previous response had parsing errors:\nERROR: {reason}\n\n"
        "Nothing was run. Send the reply again as one valid JSON object."
    )
