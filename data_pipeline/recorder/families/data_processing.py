"""Data processing: logs, CSV and text turned into other files."""

import collections
import random

from data_pipeline.recorder import checks, draw, family, screen, solver


@family.register("data_processing")
def log_status_counts(rng: random.Random) -> family.Task:
    """Count an access log's requests by status."""
    statuses = rng.choices(["200", "301", "404", "500", "403"], k=rng.randint(24, 40))
    rows = [f"{draw.ip(rng)} GET /{draw.word(rng)} {s} {rng.randint(80, 9000)}" for s in statuses]
    counts = collections.Counter(statuses)
    out = rng.choice(["status_counts.txt", "codes.txt", "report.txt"])

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("list the folder and look at the log", "ls", "head -n 3 access.log")
        first = screen.output_of(obs, "head -n 3")[:1]
        yield from a.attempt(
            "count the statuses",
            right=[
                f"awk '{{n[$4]++}} END {{for (s in n) print s, n[s]}}' access.log | sort > {out}",
                f"cut -d' ' -f4 access.log | sort | uniq -c | awk '{{print $2, $1}}' > {out}",
            ],
            wrong=f"cut -d' ' -f4 access.log | sort | uniq -c > {out}",
            clue="`uniq -c` puts the count first, the task wants the status first.",
            show=f"cat {out}",
            seen=f"A line looks like {screen.quote(first)}; the status is the fourth field.",
        )
        yield from a.finish(f"/app/{out} has one line for each status, sorted.")

    return family.Task(
        instruction=draw.one(
            rng,
            "/app/access.log has one request a line: address, method, path, status, bytes. Count "
            "the "
            f"requests of each status and write `STATUS COUNT` lines, sorted by status, to "
            f"/app/{out}.",
            f"How often does each HTTP status occur in /app/access.log? Write /app/{out} with one "
            "line a status, the status first, then a space and the count, in order of the status.",
        ),
        brief="the number of requests of each status",
        files={"access.log": draw.text(rows)},
        check=checks.lines(out, [f"{s} {n}" for s, n in sorted(counts.items())]),
        solve=solve,
    )


@family.register("data_processing", difficulty="medium")
def csv_to_json(rng: random.Random) -> family.Task:
    """Turn a CSV file with some separator into a JSON list with integer columns."""
    sep = rng.choice([",", ";", "|"])
    people = draw.names(rng, rng.randint(4, 8))
    rows = [{"id": i, "name": n, "qty": rng.randint(1, 90)} for i, n in enumerate(people, 1)]
    src = rng.choice(["items.csv", "stock.csv", "parts.csv"])
    out = src.replace(".csv", ".json")

    def script(delimiter: str, cast: str) -> str:
        return solver.heredoc(
            "conv.py",
            f"import csv, json\nrows = list(csv.DictReader(open('{src}'), "
            f"delimiter='{delimiter}'))\n"
            f"{cast}json.dump(rows, open('{out}', 'w'), indent=1)\nprint(len(rows), rows[0])",
        )

    ints = "for r in rows:\n    r['id'], r['qty'] = int(r['id']), int(r['qty'])\n"

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run(f"see how {src} is laid out", f"head -n 3 {src}")
        header = next((x for x in screen.output_of(obs, src) if "name" in x), "id,name,qty")
        delimiter = next(c for c in ",;|" if c in header)
        yield from a.attempt(
            "convert it with a short script",
            right=[(script(delimiter, ints), "python3 conv.py")],
            wrong=(script(delimiter, ""), "python3 conv.py"),
            clue="the numbers are strings: the csv module does not convert them.",
            seen=f"The header is `{header}`, so the separator is `{delimiter}`.",
            why="The task wants integers, and csv gives strings.",
        )
        check = f"python3 -m json.tool --compact {out} | head -c 120"
        yield from a.run("check the file by parsing it again", f"{check}; echo")
        yield from a.finish(f"/app/{out} is valid JSON and holds all rows.")

    return family.Task(
        instruction=draw.one(
            rng,
            f"Convert /app/{src} to JSON: write /app/{out} as a list of objects with the keys id, "
            "name and qty, in the order of the file. id and qty must be integers. The separator is "
            "not documented.",
            f"/app/{src} is a table with a header (id, name, qty); find out its separator. Write "
            f"the "
            f"rows as a JSON list of objects to /app/{out}; id and qty as integers, same order.",
        ),
        brief=f"{src} as a JSON list",
        files={src: draw.table("id,name,qty", [r.values() for r in rows], sep=sep)},
        check=checks.json_value(out, rows),
        solve=solve,
    )


@family.register("data_processing")
def drop_repeated_lines(rng: random.Random) -> family.Task:
    """Remove repeated lines, keeping the first of each and the order."""
    pool = draw.words(rng, rng.randint(6, 9))
    lines = [*pool, *rng.choices(pool, k=rng.randint(4, 8))]
    rng.shuffle(lines)
    src, out = rng.choice([("tags.txt", "unique.txt"), ("queue.txt", "queue_once.txt")])

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the lines", f"wc -l {src}", f"cat {src}")
        num = len(screen.output_of(obs, f"cat {src}"))
        yield from a.attempt(
            "keep the first of each line",
            right=[
                f"awk '!seen[$0]++' {src} > {out}",
                f"awk '!($0 in s) {{s[$0]; print}}' {src} > {out}",
            ],
            wrong=f"sort -u {src} > {out}",
            clue="`sort -u` has sorted the lines, and the order had to stay.",
            show=f"cat {out}",
            seen=f"{src} has {num} lines and some of them come again.",
            why="awk can remember which lines it has already printed.",
        )
        yield from a.run(
            "count the different lines as a check", f"sort -u {src} | wc -l", f"wc -l < {out}"
        )
        yield from a.finish(f"/app/{out} has each line once, in the original order.")

    return family.Task(
        instruction=draw.one(
            rng,
            f"Remove the repeated lines of /app/{src}: keep the first of each, in the original "
            f"order, and write the rest to /app/{out}.",
            f"/app/{src} names some things more than once. Write /app/{out} with every line once, "
            "in the order of first appearance. Leave the input as it is.",
        ),
        brief="each line once, in the old order",
        files={src: draw.text(lines)},
        check=checks.lines(out, list(dict.fromkeys(lines))),
        solve=solve,
    )


@family.register("data_processing", difficulty="medium")
def fill_gaps(rng: random.Random) -> family.Task:
    """Fill missing readings with the last known one, or by the mean of the neighbours."""
    values: list[int | None] = [rng.randrange(10, 60, 2) for _ in range(rng.randint(9, 13))]
    gaps = sorted(rng.sample(range(1, len(values) - 1, 2), 3))
    mean = rng.random() < 0.5
    filled = list(values)
    for i in gaps:
        before, after = values[i - 1] or 0, values[i + 1] or 0
        filled[i] = (before + after) // 2 if mean else before
        values[i] = None
    rule = "the mean of its two neighbours" if mean else "the last value before it"
    change = "(int(v[i-1]) + int(v[i+1])) // 2" if mean else "v[i-1]"

    def script(value: str) -> str:
        return solver.heredoc(
            "fill.py",
            "rows = [line.rstrip('\\n').split(',') for line in open('readings.csv')]\n"
            "v = [r[1] for r in rows]\nfor i in range(1, len(v)):\n    if v[i] == '':\n"
            f"        v[i] = str({value})\nwith open('filled.csv', 'w') as f:\n"
            "    for r, x in zip(rows, v):\n        print(r[0], x, sep=',', file=f)",
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run(
            "look at the readings", "cat readings.csv", "grep -c ',$' readings.csv"
        )
        num = (screen.output_of(obs, "grep -c") or ["some"])[0]
        yield from a.attempt(
            "fill the gaps with a script",
            right=[(script(change), "python3 fill.py")],
            wrong=(script("0"), "python3 fill.py"),
            clue=f"a gap became 0, but the rule is {rule}.",
            show="cat filled.csv",
            seen=f"{num} lines end with a comma and have no value.",
            why=f"Each gap takes {rule}.",
        )
        yield from a.finish("/app/filled.csv has no gap left.")

    return family.Task(
        instruction="/app/readings.csv has a header and lines `hour,value`; some values are "
        "missing. "
        f"Write /app/filled.csv with the same header and lines, each missing value being {rule}. "
        "Two gaps never stand next to each other.",
        brief="the readings without gaps",
        files={"readings.csv": _readings(values)},
        check=checks.text("filled.csv", _readings(filled)),
        solve=solve,
    )


def _readings(values: list[int | None]) -> str:
    """Hourly readings, a gap as nothing."""
    rows = [(f"{hour:02d}:00", "" if value is None else value) for hour, value in enumerate(values)]
    return draw.table("hour,value", rows)


@family.register("data_processing")
def iso_dates(rng: random.Random) -> family.Task:
    """Rewrite day.month.year dates as year-month-day."""
    dates = [draw.date(rng) for _ in range(rng.randint(5, 9))]
    sep = rng.choice([".", "/"])
    events = draw.words(rng, len(dates))
    old = [f"{sep.join(reversed(d.split('-')))} {e}" for d, e in zip(dates, events, strict=True)]
    class_ = "[.]" if sep == "." else "[/]"

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("see how the dates are written", "ls", "head -n 4 events.txt")
        first = (screen.output_of(obs, "head") or [""])[0]
        pattern = f"([0-9]+){class_}([0-9]+){class_}([0-9]+)"
        yield from a.attempt(
            "turn the dates round",
            right=[
                f"sed -E 's#^{pattern}#\\3-\\2-\\1#' events.txt > iso.txt",
                f'awk \'{{split($1, d, "{class_}"); print d[3] "-" d[2] "-" d[1], $2}}\' '
                f"events.txt > iso.txt",
            ],
            wrong=f"sed -E 's#^{pattern}#\\3-\\1-\\2#' events.txt > iso.txt",
            clue="day and month are swapped, months above 12 appear.",
            show="cat iso.txt",
            seen=f"The first line is `{first}`: day, month, year.",
        )
        yield from a.finish("/app/iso.txt has every date as YEAR-MONTH-DAY.")

    return family.Task(
        instruction=f"The lines of /app/events.txt begin with a date written "
        f"DAY{sep}MONTH{sep}YEAR. "
        "Write /app/iso.txt with the same lines, the date written YEAR-MONTH-DAY.",
        brief="the events with ISO dates",
        files={"events.txt": draw.text(old)},
        check=checks.lines("iso.txt", [f"{d} {e}" for d, e in zip(dates, events, strict=True)]),
        solve=solve,
    )
