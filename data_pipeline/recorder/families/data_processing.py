"""Data processing: logs, CSV and text turned into other files."""

import collections
import json
import random

from data_pipeline.recorder import checks, draw, family, screen


@family.register("data_processing")
def log_status_counts(rng: random.Random) -> family.Task:
    """Count an access log's requests by status, above a number of occurrences."""
    statuses = rng.choices(["200", "301", "404", "500", "403"], k=rng.randint(24, 40))
    rows = [f"{draw.ip(rng)} GET /{draw.word(rng)} {s} {rng.randint(80, 9000)}" for s in statuses]
    counts = collections.Counter(statuses)
    out = rng.choice(["status_counts.txt", "codes.txt", "report.txt"])
    task = f"/app/access.log has one request a line: address, method, path, status, bytes. Count the requests of each status and write one line `STATUS COUNT` for each to /app/{out}, sorted by status."

    def solve(a):
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
        instruction=task,
        brief="the number of requests of each status",
        files={"access.log": draw.text(rows)},
        check=checks.lines(out, [f"{s} {n}" for s, n in sorted(counts.items())]),
        solve=solve,
    )


@family.register("data_processing")
def csv_to_json(rng: random.Random) -> family.Task:
    """Turn a CSV file with some separator into a JSON list."""
    sep = rng.choice([",", ";", "|"])
    rows = [{"id": i + 1, "name": n, "qty": rng.randint(1, 90)} for i, n in enumerate(draw.names(rng, rng.randint(4, 8)))]
    table = [sep.join(["id", "name", "qty"])] + [sep.join(map(str, r.values())) for r in rows]
    src = rng.choice(["items.csv", "stock.csv", "parts.csv"])
    out = src.replace(".csv", ".json")

    def script(delimiter: str, cast: str) -> str:
        return f"""import csv, json
rows = list(csv.DictReader(open('{src}'), delimiter='{delimiter}'))
{cast}json.dump(rows, open('{out}', 'w'), indent=1)
print(len(rows), rows[0])
"""

    ints = "for r in rows:\n    r['id'], r['qty'] = int(r['id']), int(r['qty'])\n"

    def solve(a):
        obs = yield from a.run(f"see how {src} is laid out", f"head -n 3 {src}")
        header = (screen.output_of(obs, f"{src}") or [""])[0]
        delimiter = next(c for c in ",;|" if c in header)
        seen = f"The header is `{header}`, so the separator is `{delimiter}`."
        if a.flaw != "none":
            flaw, a.flaw = a.flaw, "none"
            yield from a.write("convert it with a short script", "conv.py", script(delimiter, ""), "python3 conv.py", seen=seen)
            if flaw == "fail":
                yield from a.finish(f"/app/{out} holds the rows as JSON objects.")
            seen = "The numbers came out as strings: the csv module does not convert them, and the task wants integers."
        yield from a.write("write the conversion with integer columns", "conv.py", script(delimiter, ints), "python3 conv.py", seen=seen)
        yield from a.run("check the file by parsing it again", f"python3 -m json.tool --compact {out} | head -c 120")
        yield from a.finish(f"/app/{out} is valid JSON with integer id and qty.")

    return family.Task(
        instruction=f"Convert /app/{src} to JSON: write /app/{out} as a list of objects with the keys id, name and qty, in the order of the file. id and qty must be integers. Look at the file first, its separator is not documented.",
        brief=f"{src} as a JSON list",
        files={src: draw.text(table)},
        check=checks.json_value(out, rows),
        solve=solve,
    )
