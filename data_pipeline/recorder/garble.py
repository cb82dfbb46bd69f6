"""Replies that are not the JSON asked for, as models now and then send them."""

import json
import random


def garble(reply: str, rng: random.Random) -> tuple[str, str]:
    """Break a reply's JSON.

    Returns:
        The broken reply and the JSON parser's own complaint about it.
    """
    head, body = _split(reply)
    ways = (
        body.replace('",\n  "plan"', '"\n  "plan"', 1),  # a comma forgotten
        body[: body.index('"commands"') + len('"commands": [')],  # cut off in the middle
        body.replace('"plan": "', '"plan": ', 1),  # a quote forgotten
        body.replace("\n}", ",\n}"),  # a comma too many
    )
    broken = rng.choice(ways)
    try:
        json.loads(broken)
    except json.JSONDecodeError as error:
        return head + broken, f"Invalid JSON: {error}"
    raise AssertionError(f"still valid JSON: {broken}")


def _split(reply: str) -> tuple[str, str]:
    """The think block, if any, and the JSON."""
    head, mark, body = reply.rpartition("</think>\n\n")
    return head + mark, body
