"""How long to wait before a question is sent again."""

import datetime
import email.utils
import random
from collections.abc import Mapping

LONGEST_PAUSE_S = 60.0


def pause_s(num_attempts: int, *, first_pause_s: float, retry_after_s: float) -> float:
    """Seconds to wait after so many attempts.

    Doubles from first_pause_s up to a minute, half of it by chance, so that questions that failed
    together do not come back together; never shorter than the server asked for.

    Args:
        num_attempts: made so far, at least 1.
        first_pause_s: the longest pause after the first.
        retry_after_s: what the server asked for; 0 where it did not.
    """
    longest = min(first_pause_s * 2.0 ** min(num_attempts - 1, 30), LONGEST_PAUSE_S)
    return max(longest * random.uniform(0.5, 1.0), retry_after_s * random.uniform(1.0, 1.25))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, by its headers; 0 where it does not say.

    `Retry-After` is a number of seconds or a date (RFC 9110, section 10.2.3); `retry-after-ms` is
    what some hosted endpoints send beside it.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    told = headers.get("retry-after", "")
    seconds = _number(told)
    return _until(told) if seconds is None else seconds


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _until(text: str) -> float:
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
