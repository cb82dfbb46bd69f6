"""Debugging: programs that fail, hang or give a wrong answer, to be mended in place."""

import json
import random

from data_pipeline.recorder import checks, draw, family, screen, solver


@family.register("debugging", difficulty="medium")
def off_by_one(rng: random.Random) -> family.Task:
    """A sum that leaves the last item out; the unit test shows it."""
    name = rng.choice(["total", "add_up", "sum_all"])
    module = rng.choice(["cart", "ledger", "tally"])
    values = [rng.randint(2, 30) for _ in range(4)]
    code = (
        f"def {name}(xs):\n    s = 0\n    for i in range(len(xs) - 1):\n"
        "        s += xs[i]\n    return s\n"
    )
    test = (
        f"import unittest\nfrom {module} import {name}\n\n\nclass Test(unittest.TestCase):\n"
        f"    def test_sum(self):\n        self.assertEqual({name}({values}), {sum(values)})\n"
    )
    cases = "(f([]), f([5]), f([1, 2])) == (0, 5, 3)"
    hidden = f"python3 -c 'from {module} import {name} as f; assert {cases}'"

    def solve(a: solver.Agent) -> family.Play:
        run = "python3 -m unittest -q 2>&1 | grep -E 'Error|OK|FAILED'"
        obs = yield from a.run("run the tests first", "ls", run)
        failed = screen.error_line(obs) or "FAILED"
        yield from a.run(
            "read the function", f"cat {module}.py", seen=f"The test fails: `{failed}`."
        )
        yield from a.attempt(
            "mend the loop",
            right=[
                f"sed -i 's/range(len(xs) - 1)/range(len(xs))/' {module}.py",
                solver.heredoc(f"{module}.py", f"def {name}(xs):\n    return sum(xs)"),
            ],
            wrong=f"sed -i 's/range(len(xs) - 1)/range(1, len(xs))/' {module}.py",
            mend=f"sed -i 's/range(1, len(xs))/range(len(xs))/' {module}.py",
            clue="now the first item is left out instead of the last.",
            show=run,
            seen="The loop runs to len(xs) - 1 and range already stops before its end.",
        )
        yield from a.finish(f"{name} in /app/{module}.py adds every item.")

    return family.Task(
        instruction=f"The unit test in /app/test_{module}.py fails. Find the fault in "
        f"/app/{module}.py "
        "and mend it there; do not change the test.",
        brief=f"a repaired {module}.py",
        files={f"{module}.py": code, f"test_{module}.py": test},
        check=checks.every(checks.command("python3 -m unittest -q"), checks.command(hidden)),
        solve=solve,
    )


@family.register("debugging", difficulty="medium")
def endless_loop(rng: random.Random) -> family.Task:
    """A script that never ends: stop it with C-c, find why, mend it."""
    start, step = rng.randint(20, 90), rng.randint(2, 5)
    start += start % step == 0
    code = (
        f"n={start}\nsteps=0\nwhile [ $n -ne 0 ]; do\n  n=$((n - {step}))\n"
        "  steps=$((steps + 1))\ndone\necho $steps\n"
    )
    expected = -(-start // step)

    def solve(a: solver.Agent) -> family.Play:
        hang = solver.Command(keystrokes="sh countdown.sh\n", duration_s=1.0, waits=True)
        stop = solver.Command(keystrokes="C-c", duration_s=0.5)
        yield from a.run("read the script", "cat countdown.sh")
        yield from a.run("run it and watch", hang, seen="It counts n down in a while loop.")
        yield from a.run(
            "interrupt it",
            stop,
            seen=f"The script does not come back: n steps by {step} and jumps over 0.",
        )
        yield from a.attempt(
            "change the condition and run it again",
            right=[
                "sed -i 's/-ne 0/-gt 0/' countdown.sh",
                "sed -i '3s/-ne/-gt/' countdown.sh",
            ],
            wrong=f"sed -i 's/-ne 0/-gt {step}/' countdown.sh",
            mend=f"sed -i 's/-gt {step}/-gt 0/' countdown.sh",
            clue="the loop now ends one step too early.",
            show="timeout 5 sh countdown.sh | tee steps.txt",
            seen="`$n -ne 0` stays true for ever, since n goes below 0 without being 0.",
        )
        yield from a.finish("The script ends, and /app/steps.txt has its output.")

    return family.Task(
        instruction="/app/countdown.sh never ends. It should count how many steps it takes until "
        "n is "
        "0 or less. Mend it and write its output to /app/steps.txt.",
        brief="a countdown that ends",
        files={"countdown.sh": code},
        check=checks.every(
            checks.number("steps.txt", expected),
            checks.command(
                f'test -s steps.txt && test "$(timeout 5 sh countdown.sh)" = {expected}'
            ),
        ),
        solve=solve,
    )


@family.register("debugging")
def broken_json(rng: random.Random) -> family.Task:
    """A settings file with one syntax error."""
    keys = draw.words(rng, 5)
    settings = {k: rng.choice([rng.randint(1, 99), draw.word(rng), True]) for k in keys}
    lines = json.dumps(settings, indent=2).splitlines()
    place = rng.randint(1, 4)
    kind = rng.choice(["comma", "quote"])
    good = lines[place]
    lines[place] = good.rstrip(",") if kind == "comma" else good.replace('":', ":", 1)
    name = rng.choice(["settings.json", "config.json"])

    def solve(a: solver.Agent) -> family.Play:
        test = f"python3 -m json.tool {name} > /dev/null && echo valid"
        obs = yield from a.run("parse the file and see the complaint", test, f"cat -n {name}")
        complaint = screen.error_line(obs) or (screen.output_lines(obs) or ["invalid"])[0]
        row = next((x for x in screen.output_of(obs, "cat -n") if _is_faulty(x)), "")
        row = row or f"{place + 1}\t{lines[place]}"
        number, _, text = row.strip().partition("\t")
        fault = "has no comma at its end" if kind == "comma" else "lacks a closing quote"
        fix, undo = ("s/$/,/", "s/,$//") if kind == "comma" else ('s/:/":/', 's/":/:/')
        yield from a.attempt(
            f"mend line {number}",
            right=[f"sed -i '{number}{fix}' {name}"],
            wrong=f"sed -i '{int(number) + 1}{fix}' {name}",
            mend=f"sed -i '{int(number) + 1}{undo}; {number}{fix}' {name}",
            clue=f"the parser still complains; the fault is in line {number}.",
            show=test,
            seen=f"The parser says `{complaint.strip()}`. Line {number}, `{text.strip()}`, "
            f"{fault}.",
        )
        yield from a.finish(f"/app/{name} is valid JSON with its old content.")

    return family.Task(
        instruction=f"The program cannot read /app/{name} any more: the JSON has a syntax error. "
        f"Mend "
        "it without changing any key or value.",
        brief=f"a {name} that parses",
        files={name: draw.text(lines)},
        check=checks.json_value(name, settings),
        solve=solve,
    )


def _is_faulty(numbered: str) -> bool:
    """Whether a numbered line of an object with one key a line is not `"key": value,`."""
    text = numbered.partition("\t")[2].strip()
    return ":" in text and ('":' not in text or not text.endswith(",")) and "\t  " in numbered


@family.register("debugging")
def wrong_line_ends(rng: random.Random) -> family.Task:
    """A shell script with Windows line ends does not start."""
    word = draw.word(rng)
    num = rng.randint(3, 9)
    code = f'#!/bin/sh\r\nfor i in $(seq {num}); do\r\n  echo "{word} $i"\r\ndone\r\n'
    name = rng.choice(["run.sh", "start.sh", "job.sh"])

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("start the script", "ls", f"./{name}")
        obs = yield from a.run("look at the bytes of its first line", f"head -n 1 {name} | od -c")
        seen = "The line ends with \\r \\n: these are Windows line ends." if "\\r" in obs else ""
        yield from a.attempt(
            "remove the carriage returns",
            right=[
                f"sed -i 's/\\r$//' {name}",
                f"tr -d '\\r' < {name} > t && cat t > {name} && rm t",
            ],
            wrong=f"sed -i '1s/\\r$//' {name}",
            clue="only the first line was mended, the others still have a carriage return.",
            show=f"./{name} > out.txt; head -n 2 out.txt; grep -c $'\\r' {name}",
            seen=seen,
        )
        yield from a.finish(f"/app/{name} runs and /app/out.txt has its output.")

    expected = draw.text(f"{word} {i}" for i in range(1, num + 1))
    return family.Task(
        instruction=f"/app/{name} came from another system and does not start. Mend the file so "
        f"that "
        "it runs, and write its output to /app/out.txt.",
        brief=f"a {name} that runs",
        files={name: code},
        check=checks.every(
            checks.files({"out.txt": expected}),
            checks.command(f'test "$(./{name} | sha256sum)" = "$(sha256sum < out.txt)"'),
        ),
        solve=solve,
    )


@family.register("debugging", difficulty="medium")
def missing_key(rng: random.Random) -> family.Task:
    """A report that dies on a record without a field."""
    field = rng.choice(["price", "cost", "fee"])
    rows = [{"item": w, field: rng.randint(2, 50)} for w in draw.words(rng, 5)]
    del rows[rng.randint(1, 3)][field]
    code = (
        "import json\n\ntotal = 0\nfor row in json.load(open('rows.json')):\n"
        f"    total += row['{field}']\nprint(total)\n"
    )
    total = sum(int(row.get(field, 0)) for row in rows)

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("run the program and read it", "python3 report.py", "cat report.py")
        error = screen.error_line(obs) or "an error"
        yield from a.run(
            "look for the record without the key",
            "python3 -m json.tool --compact rows.json",
            seen=f"It stops with `{error.strip()}`: some record has no {field}.",
        )
        yield from a.attempt(
            "treat a missing value as 0",
            right=[f"sed -i \"s/row\\['{field}'\\]/row.get('{field}', 0)/\" report.py"],
            wrong=f"sed -i \"s/row\\['{field}'\\]/row.get('{field}', 1)/\" report.py",
            mend=f"sed -i \"s/'{field}', 1/'{field}', 0/\" report.py",
            clue="the default is 1, but a missing value is to count as 0.",
            show="python3 report.py | tee total.txt; grep total report.py",
        )
        yield from a.finish("The report runs and /app/total.txt has the sum.")

    return family.Task(
        instruction=f"/app/report.py stops with an error. A record without {field} is to count as "
        f"0. "
        "Mend the program and write what it prints to /app/total.txt.",
        brief="a report that copes with missing values",
        files={"report.py": code, "rows.json": json.dumps(rows) + "\n"},
        check=checks.every(
            checks.number("total.txt", total),
            checks.command(f'test "$(python3 report.py)" = {total}'),
        ),
        solve=solve,
    )
