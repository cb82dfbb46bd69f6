"""A teacher's reply with a small task in it, to be changed by tests."""

PROMPT = "Sum the column `x` of /app/in.csv & write it to /app/out.txt if it is < 10."
TESTS = '''import pathlib


def test_sum():
    """The sum is right."""
    assert pathlib.Path("/app/out.txt").read_text() == "7\\n"


def test_there():
    assert pathlib.Path("/app/out.txt").exists()
'''
SECTIONS = {
    "prompt": PROMPT,
    "tests": TESTS,
    "weights": '{"test_sum": 3, "test_there": 0.5}',
    "info": '{"title": "Sum", "traps": ["a", 1], "hard": true}',
    "files": '<file path="in.csv">\nx\n3\n4\n</file>',
    "test_requirements": "",
    "solution": "#!/bin/bash\nawk '{s+=$1} END {print s}' in.csv > out.txt",
}


def reply(*, leave_out=(), **changes):
    sections = {name: text for name, text in (SECTIONS | changes).items() if name not in leave_out}
    return "\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in sections.items())
