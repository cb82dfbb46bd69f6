"""Data querying: answers out of tables, a database, JSON and a graph."""

import collections
import json
import random
import sqlite3

from data_pipeline.recorder import checks, draw, family, screen, solver


def _database(rows: list[tuple[str, str, int, int]]) -> bytes:
    """A SQLite file with the table orders(city, item, qty, price)."""
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE orders (city TEXT, item TEXT, qty INTEGER, price INTEGER)")
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", rows)
    data = connection.serialize()
    connection.close()
    return data


@family.register("data_querying", difficulty="medium")
def sqlite_revenue(rng: random.Random) -> family.Task:
    """Sum qty * price by city in a SQLite database of unknown layout."""
    cities, items = draw.cities(rng, 3), draw.words(rng, 4)
    rows = [
        (rng.choice(cities), rng.choice(items), rng.randint(2, 9), rng.randint(3, 40))
        for _ in range(rng.randint(9, 16))
    ]
    total = collections.Counter()
    for city, _, qty, price in rows:
        total[city] += qty * price
    best = sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))

    def query(expression: str) -> str:
        return (
            f"python3 -c \"import sqlite3; [print(*r) for r in sqlite3.connect('shop.db').execute("
            f"'SELECT city, {expression} AS t FROM orders GROUP BY city ORDER BY t DESC, city')]\""
            " > revenue.txt"
        )

    def solve(a: solver.Agent) -> family.Play:
        peek = "python3 -c \"import sqlite3; print(*sqlite3.connect('shop.db').execute("
        yield from a.run("list the folder", "ls", "head -c 15 shop.db; echo")
        obs = yield from a.run(
            "read the schema with Python",
            f"{peek}'SELECT sql FROM sqlite_master'))\"",
            f"{peek}'SELECT * FROM orders LIMIT 2'))\"",
            why="Python's sqlite3 module is enough, a client program is not needed.",
        )
        shown = screen.quote(screen.output_of(obs, "LIMIT 2"))
        yield from a.attempt(
            "sum quantity times price by city",
            right=[query("SUM(qty * price)")],
            wrong=query("SUM(price)"),
            clue="this adds the prices only, the quantities are left out.",
            show="cat revenue.txt",
            seen=f"The table is orders; its first rows are {shown}.",
        )
        yield from a.finish("/app/revenue.txt lists the cities by revenue.")

    return family.Task(
        instruction=draw.one(
            rng,
            "/app/shop.db is a SQLite database with orders. Write the revenue (quantity times "
            "price) "
            "of each city to /app/revenue.txt, one line `CITY REVENUE`, the highest first.",
            "Query the SQLite file /app/shop.db: for every city the sum of quantity times price. "
            "Write `CITY SUM` lines, largest sum first, to /app/revenue.txt.",
        ),
        brief="the revenue of each city",
        files={"shop.db": _database(rows)},
        check=checks.lines("revenue.txt", [f"{city} {value}" for city, value in best]),
        solve=solve,
    )


@family.register("data_querying")
def json_filter(rng: random.Random) -> family.Task:
    """Names of the active users older than a limit, from JSON."""
    users = [
        {"name": n, "age": rng.randint(18, 70), "active": rng.random() < 0.6}
        for n in draw.names(rng, rng.randint(6, 10))
    ]
    limit = rng.randint(25, 45)
    users[0] |= {"age": limit, "active": True}
    users[1] |= {"age": limit + 5, "active": True}
    users[2] |= {"age": limit + 7, "active": False}
    expected = sorted(str(u["name"]) for u in users if u["active"] and u["age"] > limit)

    def way(condition: str) -> str:
        return (
            "python3 -c \"import json; print(*sorted(u['name'] for u in "
            "json.load(open('users.json'))"
            f" if {condition}), sep='\\n')\" > selected.txt"
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the JSON", "head -c 200 users.json; echo")
        shown = screen.quote(screen.output_lines(obs)[-1:])
        yield from a.attempt(
            "select and sort the names",
            right=[way(f"u['active'] and u['age'] > {limit}")],
            wrong=way(f"u['age'] > {limit}"),
            clue="users that are not active are in it as well.",
            show="cat selected.txt",
            seen=f"It is a list of objects with name, age and active: {shown}.",
            why=f"Older than {limit} excludes {limit} itself.",
        )
        yield from a.finish(f"/app/selected.txt names the active users older than {limit}.")

    return family.Task(
        instruction=f"From /app/users.json take the users that are active and older than {limit}. "
        "Write their names to /app/selected.txt, one a line, in alphabetical order.",
        brief=f"the active users older than {limit}",
        files={"users.json": json.dumps(users) + "\n"},
        check=checks.lines("selected.txt", expected),
        solve=solve,
    )


@family.register("data_querying", difficulty="medium")
def join_tables(rng: random.Random) -> family.Task:
    """Join two tables on a key, leaving out what has no partner."""
    names = draw.names(rng, 6)
    ids = rng.sample(range(10, 99), 6)
    people = list(zip(ids, names, strict=True))
    logins = [(i, rng.randint(1, 60)) for i in rng.sample(ids, 4)] + [(rng.randint(100, 120), 3)]
    rng.shuffle(logins)
    name_of = dict(people)
    expected = [f"{i},{name_of[i]},{n}" for i, n in sorted(logins) if i in name_of]

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at both tables", "cat people.csv", "cat logins.csv")
        yield from a.attempt(
            "join them on the number",
            right=[
                "join -t, <(sort people.csv) <(sort logins.csv) > joined.csv",
                "awk -F, 'NR==FNR {n[$1]=$2; next} $1 in n {print $1 FS n[$1] FS $2}' people.csv "
                "logins.csv | sort > joined.csv",
            ],
            wrong="join -t, people.csv logins.csv > joined.csv",
            clue="`join` needs sorted input, rows are missing.",
            show="cat joined.csv",
            seen="Both tables have the number first and are not sorted.",
            why="`join` works only on sorted files.",
        )
        yield from a.finish("/app/joined.csv has each person that occurs in both tables.")

    return family.Task(
        instruction="/app/people.csv has lines `id,name`, /app/logins.csv lines `id,count`. Write "
        "/app/joined.csv with lines `id,name,count` for the ids found in both, sorted by id.",
        brief="the two tables joined by id",
        files={"people.csv": draw.rows(people), "logins.csv": draw.rows(logins)},
        check=checks.lines("joined.csv", expected),
        solve=solve,
    )


@family.register("data_querying", difficulty="hard")
def shortest_route(rng: random.Random) -> family.Task:
    """The number of hops of the shortest path in an undirected graph."""
    nodes = draw.words(rng, 9)
    edges = [(nodes[i], nodes[i + 1]) for i in range(8)]
    edges += [tuple(rng.sample(nodes[1:], 2)) for _ in range(2)]
    start, goal = nodes[0], nodes[rng.randint(5, 8)]
    turned = [edge[0] == start or rng.random() < 0.5 for edge in edges]
    edges = [edge[::-1] if turn else edge for edge, turn in zip(edges, turned, strict=True)]
    rng.shuffle(edges)
    hops = _hops(edges, start)[goal]

    def script(both: str) -> str:
        return solver.heredoc(
            "bfs.py",
            "import collections\nnext_to = collections.defaultdict(list)\n"
            f"for line in open('edges.txt'):\n    a, b = line.split()\n    "
            f"next_to[a].append(b)\n{both}"
            f"dist = {{'{start}': 0}}\nqueue = collections.deque(dist)\nwhile queue:\n"
            "    n = queue.popleft()\n    for m in next_to[n]:\n        if m not in dist:\n"
            f"            dist[m] = dist[n] + 1\n            "
            f"queue.append(m)\nprint(dist.get('{goal}'))",
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the edges", "wc -l edges.txt", "cat edges.txt")
        num = len(screen.output_of(obs, "cat edges.txt"))
        yield from a.attempt(
            "search breadth first",
            right=[(script("    next_to[b].append(a)\n"), "python3 bfs.py | tee hops.txt")],
            wrong=(script(""), "python3 bfs.py | tee hops.txt"),
            clue="an edge can be used in both directions, and the script follows only one.",
            seen=f"There are {num} edges, two names a line.",
            why="Breadth-first search finds the fewest hops.",
        )
        yield from a.finish(f"/app/hops.txt has the number of hops from {start} to {goal}.")

    return family.Task(
        instruction=f"/app/edges.txt lists two-way connections, two names a line. Write the "
        f"smallest "
        f"number of hops from {start} to {goal} to /app/hops.txt (only the number).",
        brief=f"the shortest way from {start} to {goal}",
        files={"edges.txt": draw.text(" ".join(edge) for edge in edges)},
        check=checks.number("hops.txt", hops),
        solve=solve,
    )


def _hops(edges: list, start: str) -> dict[str, int]:
    """Distances from `start`, by relaxing every edge until nothing changes."""
    dist = {start: 0}
    for _ in range(len(edges)):
        for a, b in [*edges, *(e[::-1] for e in edges)]:
            if a in dist:
                dist[b] = min(dist.get(b, len(edges)), dist[a] + 1)
    return dist


@family.register("data_querying")
def best_of_each(rng: random.Random) -> family.Task:
    """The row with the highest score of each team."""
    teams = draw.words(rng, 3)
    names = draw.names(rng, rng.randint(8, 11))
    scores = rng.sample(range(5, 250), len(names))
    teams_of = [teams[i % 3] for i in range(len(names))]
    rows = list(zip(names, teams_of, scores, strict=True))
    best = {t: max((r for r in rows if r[1] == t), key=lambda r: r[2]) for t in teams}
    out = rng.choice(["winners.txt", "best.txt"])

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at the table", "head -n 4 scores.csv", "wc -l scores.csv")
        tail = f"awk -F, '!s[$2]++ {{print $2, $1, $3}}' | sort > {out}"
        yield from a.attempt(
            "take the highest score of each team",
            right=[
                f"tail -n +2 scores.csv | sort -t, -k3,3nr | {tail}",
                "awk -F, 'NR>1 && (!($2 in m) || $3>m[$2]) {m[$2]=$3; n[$2]=$1} END {for (t in m) "
                f"print t, n[t], m[t]}}' scores.csv | sort > {out}",
            ],
            wrong=f"tail -n +2 scores.csv | sort -t, -k3,3r | {tail}",
            clue="the scores were compared as text, so 9 comes before 100.",
            show=f"cat {out}; sort -t, -k2,2 -k3,3nr scores.csv",
            why="The sort must be numeric.",
        )
        yield from a.finish(f"/app/{out} has the best of each team.")

    return family.Task(
        instruction="/app/scores.csv has the columns name, team, score. For each team find the "
        f"highest score and write `TEAM NAME SCORE` lines to /app/{out}, sorted by team.",
        brief="the best of each team",
        files={"scores.csv": draw.table("name,team,score", rows)},
        check=checks.lines(out, [f"{t} {best[t][0]} {best[t][2]}" for t in sorted(teams)]),
        solve=solve,
    )
