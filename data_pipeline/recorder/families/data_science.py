"""Data science: figures that describe a sample, a fit, a classifier."""

import random
import statistics

from data_pipeline.recorder import checks, draw, family, screen, solver


@family.register("data_science")
def column_statistics(rng: random.Random) -> family.Task:
    """Mean, median and sample standard deviation of a column."""
    values = [rng.randint(10, 400) / 10 for _ in range(rng.randint(8, 14))]
    column = rng.choice(["height", "weight", "length", "speed"])
    digits = rng.choice([2, 3])
    figures = (statistics.mean(values), statistics.median(values), statistics.stdev(values))
    expected = [f"{x:.{digits}f}" for x in figures]

    def way(spread: str) -> str:
        return (
            "python3 -c \"import csv, statistics as s; v = [float(r['" + column + "']) for r in "
            "csv.DictReader(open('sample.csv'))]; [print(f'{f(v):." + str(digits) + "f}') for f in "
            f'(s.mean, s.median, s.{spread})]" > stats.txt'
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("see the columns", "head -n 3 sample.csv", "wc -l sample.csv")
        header = screen.quote(screen.output_of(obs, "head")[:1])
        yield from a.attempt(
            f"compute the three figures of {column}",
            right=[way("stdev")],
            wrong=way("pstdev"),
            clue="`pstdev` divides by n, the sample standard deviation divides by n - 1.",
            show="cat stats.txt",
            seen=f"The columns are {header}." if header else "",
            why="The sample standard deviation divides by n - 1.",
        )
        yield from a.finish("/app/stats.txt has mean, median and standard deviation.")

    return family.Task(
        instruction=f"For the column {column} of /app/sample.csv write three lines to "
        "/app/stats.txt: the mean, the median and the sample standard deviation (n - 1), each "
        f"with {digits} decimals.",
        brief=f"three figures that describe {column}",
        files={"sample.csv": draw.table(f"id,{column}", enumerate(values, 1))},
        check=checks.lines("stats.txt", expected),
        solve=solve,
    )


@family.register("data_science")
def group_means(rng: random.Random) -> family.Task:
    """The mean of a value by group, a header to be skipped."""
    groups = sorted(draw.words(rng, 3))
    rows = [(g, rng.randint(2, 98)) for g in groups * rng.randint(3, 4)]
    rng.shuffle(rows)
    means = [(g, statistics.mean(v for h, v in rows if h == g)) for g in groups]

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at the data", "ls", "cat trial.csv")
        end = 'END {for (g in n) printf "%s %.1f\\n", g, t[g]/n[g]}\' trial.csv | sort > means.txt'
        yield from a.attempt(
            "average by group",
            right=[
                f"awk -F, 'NR>1 {{t[$1]+=$2; n[$1]++}} {end}",
                f"tail -n +2 trial.csv | awk -F, '{{t[$1]+=$2; n[$1]++}} "
                f"{end.replace(' trial.csv', '')}",
            ],
            wrong=f"awk -F, '{{t[$1]+=$2; n[$1]++}} {end}",
            clue="the header has become a group of its own.",
            show="cat means.txt",
            seen="The first line is a header, then group and value.",
            why="The header must be skipped.",
        )
        yield from a.finish("/app/means.txt has one mean for each group.")

    return family.Task(
        instruction=draw.one(
            rng,
            "/app/trial.csv has the columns group and value. Write the mean value of each group "
            "with "
            "one decimal to /app/means.txt, lines `GROUP MEAN` sorted by group.",
            "Compute the average of value for every group in /app/trial.csv and write lines "
            "`GROUP MEAN` (one decimal, sorted by group) to /app/means.txt.",
        ),
        brief="the mean of each group",
        files={"trial.csv": draw.table("group,value", rows)},
        check=checks.lines("means.txt", [f"{g} {m:.1f}" for g, m in means]),
        solve=solve,
    )


@family.register("data_science", difficulty="medium")
def line_fit(rng: random.Random) -> family.Task:
    """Least squares: slope and intercept."""
    slope, offset = rng.randint(2, 9) / 2, rng.randint(-20, 20)
    xs = rng.sample(range(0, 40), rng.randint(7, 10))
    ys = [round(slope * x + offset + rng.uniform(-2, 2), 1) for x in xs]
    fit = statistics.linear_regression(xs, ys)

    def way(first: str, second: str) -> str:
        return solver.heredoc(
            "fit.py",
            "import csv, statistics\nrows = list(csv.DictReader(open('points.csv')))\n"
            f"u = [float(r['{first}']) for r in rows]\nv = [float(r['{second}']) for r in rows]\n"
            "fit = statistics.linear_regression(u, v)\n"
            "print(f'{fit.slope:.3f} {fit.intercept:.3f}')",
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the points", "cat points.csv")
        run = "python3 fit.py | tee fit.txt"
        first = screen.quote(screen.output_of(obs, "points.csv")[1:2])
        yield from a.attempt(
            "fit the line with Python's statistics module",
            right=[(way("x", "y"), run)],
            wrong=(way("y", "x"), run),
            clue="x and y are the wrong way round, the slope should be that of y over x.",
            seen=f"The columns are x and y; the first point is {first}." if first else "",
        )
        yield from a.finish("/app/fit.txt has the slope and the intercept.")

    return family.Task(
        instruction="Fit y = m x + c by least squares to the points in /app/points.csv. Write m "
        "and c, "
        "with three decimals and a blank between them, to /app/fit.txt.",
        brief="a least-squares line",
        files={"points.csv": draw.table("x,y", zip(xs, ys, strict=True))},
        check=checks.text("fit.txt", f"{fit.slope:.3f} {fit.intercept:.3f}"),
        solve=solve,
    )


@family.register("data_science", difficulty="medium")
def find_outliers(rng: random.Random) -> family.Task:
    """Ids of the rows further than k standard deviations from the mean."""
    limit = rng.choice([1.5, 2.0])
    values = [rng.randint(48, 56) for _ in range(rng.randint(10, 14))]
    for place, odd in zip(rng.sample(range(len(values)), 2), (90, 15), strict=True):
        values[place] = odd + rng.randint(-3, 3)
    mean, spread = statistics.mean(values), statistics.pstdev(values)
    expected = [i for i, v in enumerate(values, 1) if abs(v - mean) > limit * spread]

    def way(condition: str) -> str:
        return solver.heredoc(
            "outliers.py",
            "import csv, statistics\nrows = [(r['id'], float(r['value'])) for r in "
            "csv.DictReader(open('sensor.csv'))]\nmean = statistics.mean(v for _, v in rows)\n"
            "sd = statistics.pstdev(v for _, v in rows)\n"
            f"print(*(i for i, v in rows if {condition}), sep='\\n')",
        )

    def solve(a: solver.Agent) -> family.Play:
        run = "python3 outliers.py | tee outliers.txt"
        yield from a.run("look at the values", "cat sensor.csv")
        yield from a.attempt(
            f"list the ids beyond {limit} standard deviations",
            right=[(way(f"abs(v - mean) > {limit} * sd"), run)],
            wrong=(way(f"v - mean > {limit} * sd"), run),
            clue="only high values are found, a very low one is an outlier too.",
            why="The distance counts, in both directions.",
        )
        yield from a.finish("/app/outliers.txt lists the ids of the outliers.")

    return family.Task(
        instruction=f"In /app/sensor.csv (id, value) a value is an outlier when it is more than "
        f"{limit} "
        "population standard deviations away from the mean. Write the ids of the outliers to "
        "/app/outliers.txt, one a line, ascending.",
        brief="the outliers of a sample",
        files={"sensor.csv": draw.table("id,value", enumerate(values, 1))},
        check=checks.lines("outliers.txt", [str(i) for i in expected]),
        solve=solve,
    )


@family.register("data_science")
def classifier_scores(rng: random.Random) -> family.Task:
    """Precision and recall of predictions for one class."""
    good, bad = rng.choice([("spam", "ham"), ("cat", "dog"), ("yes", "no")])
    hits, misses, alarms, rest = (rng.randint(*x) for x in ((4, 8), (1, 2), (3, 4), (3, 5)))
    pairs = [(good, good)] * hits + [(good, bad)] * misses + [(bad, good)] * alarms
    pairs += [(bad, bad)] * rest
    rng.shuffle(pairs)
    expected = f"precision {hits / (hits + alarms):.3f}\nrecall {hits / (hits + misses):.3f}"

    def way(fp: str, fn: str) -> str:
        return (
            f'awk \'$1=="{good}" && $2=="{good}" {{tp++}} $1=="{bad}" && $2=="{good}" {{{fp}++}} '
            f'$1=="{good}" && $2=="{bad}" {{{fn}++}} END {{printf "precision %.3f\\nrecall '
            f'%.3f\\n",'
            " tp/(tp+fp), tp/(tp+fn)}' labels.txt > scores.txt"
        )

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at the labels", "head -n 3 labels.txt", "sort labels.txt | uniq -c")
        yield from a.attempt(
            "compute precision and recall",
            right=[way("fp", "fn")],
            wrong=way("fn", "fp"),
            clue="precision and recall are exchanged: false alarms lower the precision.",
            show="cat scores.txt",
            why="Precision divides by all that was predicted, recall by all that was there.",
        )
        yield from a.finish("/app/scores.txt has precision and recall.")

    return family.Task(
        instruction="Each line of /app/labels.txt has the true label and the predicted label. "
        "Write the "
        f"precision and the recall of the class {good} to /app/scores.txt as two lines, "
        "`precision X` and `recall Y`, with three decimals.",
        brief=f"precision and recall for {good}",
        files={"labels.txt": draw.rows(pairs, sep=" ")},
        check=checks.text("scores.txt", expected),
        solve=solve,
    )
