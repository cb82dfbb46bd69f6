"""Scientific computing: integrals, roots, simulations, matrices, distances."""

import itertools
import math
import random
from collections.abc import Callable

from data_pipeline.recorder import checks, draw, family, screen, solver


def _trapezoid(f: Callable[[float], float], a: float, b: float, num: int) -> float:
    h = (b - a) / num
    return h * (f(a) / 2 + f(b) / 2 + math.fsum(f(a + i * h) for i in range(1, num)))


@family.register("scientific_computing", difficulty="medium")
def integrate_samples(rng: random.Random) -> family.Task:
    """The trapezoid rule over samples at uneven times."""
    times = sorted(rng.sample(range(0, 60), rng.randint(7, 10)))
    power = [rng.randint(5, 80) for _ in times]
    area = sum(
        (times[i + 1] - times[i]) * (power[i] + power[i + 1]) / 2 for i in range(len(times) - 1)
    )

    def way(width: str) -> str:
        add = f"NR>2 {{s+={width}*($2+p)/2}}"
        return f"awk -F, '{add} {{t=$1; p=$2}} END {{print s}}' power.csv > energy.txt"

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the samples", "cat power.csv")
        shown = [x for x in screen.output_of(obs, "power.csv") if x[:1].isdigit()]
        steps = {int(b.split(",")[0]) - int(c.split(",")[0]) for c, b in itertools.pairwise(shown)}
        yield from a.attempt(
            "add up the trapezoids",
            right=[way("($1-t)")],
            wrong=way("1"),
            clue="the width of each interval was taken as 1.",
            show="cat energy.txt",
            seen=f"The steps in time are uneven, from {min(steps)} to {max(steps)}."
            if steps
            else "",
            why="Each trapezoid has its own width.",
        )
        yield from a.finish("/app/energy.txt has the integral.")

    return family.Task(
        instruction="/app/power.csv has the columns t and watt, the times unevenly spaced. "
        "Integrate "
        "the power over time by the trapezoid rule and write the result to /app/energy.txt.",
        brief="the integral of the samples",
        files={"power.csv": draw.table("t,watt", zip(times, power, strict=True))},
        check=checks.number("energy.txt", area, tolerance=0.51),
        solve=solve,
    )


@family.register("scientific_computing", difficulty="medium")
def find_root(rng: random.Random) -> family.Task:
    """A root of a polynomial by bisection or Newton's method."""
    b, c = rng.randint(1, 6), rng.randint(5, 40)
    low, high = 0.0, 10.0
    for _ in range(100):
        mid = (low + high) / 2
        low, high = (mid, high) if mid**3 + b * mid - c < 0 else (low, mid)
    digits = rng.choice([4, 6])

    def bisect(rounds: int) -> str:
        return solver.heredoc(
            "root.py",
            f"lo, hi = 0.0, 10.0\nfor _ in range({rounds}):\n    m = (lo + hi) / 2\n"
            f"    if m**3 + {b} * m - {c} < 0:\n        lo = m\n    else:\n        hi = m\n"
            f"print(f'{{m:.{digits}f}}')",
        )

    newton = solver.heredoc(
        "root.py",
        f"x = 3.0\nfor _ in range(50):\n    x -= (x**3 + {b} * x - {c}) / (3 * x * x + {b})\n"
        f"print(f'{{x:.{digits}f}}')",
    )

    def solve(a: solver.Agent) -> family.Play:
        run = "python3 root.py | tee root.txt"
        obs = yield from a.run("read the equation", "cat equation.txt")
        shown = screen.quote(screen.output_of(obs, "equation.txt"))
        yield from a.attempt(
            "solve it numerically",
            right=[(bisect(60), run), (newton, run)],
            wrong=(bisect(8), run),
            clue="eight halvings are far too few for this precision.",
            seen=f"The equation is {shown}; its left side grows with x." if shown else "",
            why="The interval has to shrink below the asked precision.",
        )
        yield from a.run(
            "put the root back into the equation",
            f"awk '{{print $1^3 + {b}*$1 - {c}}}' root.txt | cut -c1-8",
        )
        yield from a.finish("/app/root.txt has the root.")

    return family.Task(
        instruction="/app/equation.txt has an equation with one real root between 0 and 10. Write "
        "the "
        f"root with {digits} decimals to /app/root.txt.",
        brief="the root of an equation",
        files={"equation.txt": f"x^3 + {b}*x - {c} = 0\n"},
        check=checks.text("root.txt", f"{low:.{digits}f}"),
        solve=solve,
    )


@family.register("scientific_computing")
def cooling_simulation(rng: random.Random) -> family.Task:
    """Explicit Euler steps of Newton's law of cooling."""
    start, room = rng.randint(70, 95), rng.randint(15, 24)
    rate, steps = rng.choice([0.05, 0.1, 0.2]), rng.randint(8, 25)
    temperature = float(start)
    for _ in range(steps):
        temperature += rate * (room - temperature)

    def way(sign: str, rounds: int) -> str:
        return (
            f"awk 'BEGIN {{T={start}; for (i=0; i<{rounds}; i++) T+={rate}*{sign}; "
            'printf "%.3f\\n", T}\' > final.txt'
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("read the parameters", "cat params.ini")
        read = dict(x.split(" = ") for x in screen.output_of(obs, "params.ini") if " = " in x)
        yield from a.attempt(
            f"simulate {read.get('steps', steps)} steps",
            right=[way(f"({room}-T)", steps)],
            wrong=way(f"(T-{room})", steps),
            clue="the temperature rises, the sign of the difference is wrong.",
            show="cat final.txt",
            seen=f"It starts at {read.get('start', start)} degrees in a room of "
            f"{read.get('room', room)}.",
            why="The body cools towards the room.",
        )
        yield from a.finish("/app/final.txt has the last temperature.")

    return family.Task(
        instruction="Simulate Newton's law of cooling with the parameters in /app/params.ini: in "
        "each "
        "step T grows by rate * (room - T). Write T after all steps, with three decimals, to "
        "/app/final.txt.",
        brief="a cooling simulation",
        files={"params.ini": f"start = {start}\nroom = {room}\nrate = {rate}\nsteps = {steps}\n"},
        check=checks.text("final.txt", f"{temperature:.3f}"),
        solve=solve,
    )


@family.register("scientific_computing", difficulty="medium")
def matrix_product(rng: random.Random) -> family.Task:
    """The product of two small integer matrices."""
    size = rng.choice([2, 3])
    left, right = ([[rng.randint(-5, 9) for _ in range(size)] for _ in range(size)] for _ in "ab")
    left[0][1], right[0][1] = left[1][0] + 1, right[1][0] + 2
    product = [
        [sum(left[i][k] * right[k][j] for k in range(size)) for j in range(size)]
        for i in range(size)
    ]

    def way(term: str) -> str:
        return solver.heredoc(
            "mul.py",
            "a, b = ([list(map(int, x.split())) for x in open(f)] for f in ('a.txt', 'b.txt'))\n"
            "n = range(len(a))\nfor i in n:\n"
            f"    print(*(sum({term} for k in n) for j in n))",
        )

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at the matrices", "cat a.txt", "cat b.txt")
        run = "python3 mul.py | tee c.txt"
        yield from a.attempt(
            "multiply the matrices",
            right=[(way("a[i][k] * b[k][j]"), run)],
            wrong=(way("a[i][k] * b[j][k]"), run),
            clue="this multiplies with the transpose of b.",
            why="An entry of the product is a row of a times a column of b.",
        )
        yield from a.finish("/app/c.txt has the product.")

    return family.Task(
        instruction="/app/a.txt and /app/b.txt hold square matrices, one row a line. Write the "
        "matrix "
        "product a b in the same form to /app/c.txt.",
        brief="a matrix product",
        files={"a.txt": draw.rows(left, sep=" "), "b.txt": draw.rows(right, sep=" ")},
        check=checks.text("c.txt", draw.rows(product, sep=" ")),
        solve=solve,
    )


@family.register("scientific_computing", difficulty="medium")
def distribution_distance(rng: random.Random) -> family.Task:
    """Total variation distance between two discrete distributions given as counts."""
    names = sorted(draw.words(rng, 4))
    first = {n: rng.randint(5, 40) for n in names}
    second = {n: rng.randint(50, 300) for n in names}
    sums = sum(first.values()), sum(second.values())
    distance = sum(abs(first[n] / sums[0] - second[n] / sums[1]) for n in names) / 2

    def way(half: str) -> str:
        return (
            "paste -d' ' p.txt q.txt | awk '{n[NR]=$2; m[NR]=$4; s+=$2; t+=$4} END {for (i in n) "
            f'{{d=n[i]/s-m[i]/t; x+=d<0?-d:d}}; printf "%.4f\\n", x{half}}}\' > distance.txt'
        )

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at both counts", "paste -d' ' p.txt q.txt")
        yield from a.attempt(
            "compute the distance",
            right=[way("/2")],
            wrong=way(""),
            clue="the total variation distance is half of this sum.",
            show="cat distance.txt",
            why="The counts must be divided by their sums first.",
        )
        yield from a.finish("/app/distance.txt has the distance.")

    return family.Task(
        instruction="/app/p.txt and /app/q.txt have counts for the same categories in the same "
        "order. "
        "Turn both into probabilities and write their total variation distance (half the sum of "
        "the absolute differences), with four decimals, to /app/distance.txt.",
        brief="the distance of two distributions",
        files={
            "p.txt": draw.rows(first.items(), sep=" "),
            "q.txt": draw.rows(second.items(), sep=" "),
        },
        check=checks.number("distance.txt", distance, tolerance=6e-5),
        solve=solve,
    )


@family.register("scientific_computing")
def unit_conversion(rng: random.Random) -> family.Task:
    """Convert measured values between units, header kept."""
    unit, rule, f = rng.choice(
        [
            ("celsius", "F = C * 9 / 5 + 32", lambda c: c * 9 / 5 + 32),
            ("kelvin", "F = (K - 273) * 9 / 5 + 32", lambda k: (k - 273) * 9 / 5 + 32),
        ]
    )
    base = 273 if unit == "kelvin" else 0
    values = [base + rng.randint(-10, 40) for _ in range(rng.randint(5, 8))]
    expression = "($2-273)*9/5+32" if base else "$2*9/5+32"
    wrong = "($2-273)*5/9+32" if base else "$2*5/9+32"

    def way(formula: str) -> str:
        return (
            'awk -F, \'NR==1 {print "day,fahrenheit"; next} {printf "%d,%.1f\\n", $1, '
            f"{formula}}}' {unit}.csv > fahrenheit.csv"
        )

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at the table", "ls", f"cat {unit}.csv")
        yield from a.attempt(
            "convert the column",
            right=[way(expression)],
            wrong=way(wrong),
            clue="the fraction is upside down, it must be 9/5.",
            show="cat fahrenheit.csv",
            why=f"The rule is {rule}.",
        )
        yield from a.finish("/app/fahrenheit.csv has the converted values.")

    return family.Task(
        instruction=f"/app/{unit}.csv has the columns day and {unit}. Write /app/fahrenheit.csv "
        f"with the "
        f"columns day and fahrenheit, values with one decimal ({rule}).",
        brief="the temperatures in Fahrenheit",
        files={f"{unit}.csv": draw.table(f"day,{unit}", enumerate(values, 1))},
        check=checks.text(
            "fahrenheit.csv",
            draw.table("day,fahrenheit", ((i, f"{f(v):.1f}") for i, v in enumerate(values, 1))),
        ),
        solve=solve,
    )
