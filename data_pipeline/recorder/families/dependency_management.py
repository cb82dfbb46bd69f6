"""Dependency management: build orders, versions, requirements against imports."""

import random

from data_pipeline.recorder import checks, draw, family, screen, solver


def _version(rng: random.Random) -> str:
    return f"{rng.randint(0, 3)}.{rng.randint(0, 12)}.{rng.randint(0, 9)}"


def _key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@family.register("dependency_management", difficulty="medium")
def build_order(rng: random.Random) -> family.Task:
    """An order in which each package comes after what it needs."""
    packages = draw.words(rng, 6)
    needs = [(packages[i], packages[rng.randrange(i)]) for i in range(1, 6)]
    needs.append((packages[5], packages[0]))
    needs = list(dict.fromkeys(needs))
    rng.shuffle(needs)

    def ordered(world) -> float:
        found = (checks.read(world, "order.txt") or "").split()
        right = sorted(found) == sorted(packages)
        return float(right and all(found.index(b) < found.index(a) for a, b in needs))

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the dependencies", "cat deps.txt")
        first = next((x for x in screen.output_of(obs, "deps.txt") if " " in x), "")
        package, _, need = first.partition(" ")
        yield from a.attempt(
            "sort the packages topologically",
            right=[
                "awk '{print $2, $1}' deps.txt | tsort > order.txt",
                "tsort deps.txt | tac > order.txt",
            ],
            wrong="tsort deps.txt > order.txt",
            clue="the packages come before what they need, the order is backwards.",
            show="cat order.txt",
            seen=f"The line `{first}` says that {package} needs {need}." if first else "",
            why="`tsort` prints the left name of a pair before the right one.",
        )
        yield from a.finish("/app/order.txt has every package after its dependencies.")

    return family.Task(
        instruction="A line `A B` in /app/deps.txt says that package A needs package B. Write all "
        "packages to /app/order.txt, one a line, so that each comes after everything it needs.",
        brief="a build order",
        files={"deps.txt": draw.rows(needs, sep=" ")},
        check=ordered,
        solve=solve,
    )


@family.register("dependency_management")
def outdated_packages(rng: random.Random) -> family.Task:
    """Packages whose installed version is lower than the latest, compared as versions."""
    packages = draw.words(rng, rng.randint(5, 7))
    installed = {p: _version(rng) for p in packages}
    latest = {p: v if rng.random() < 0.5 else _version(rng) for p, v in installed.items()}
    installed[packages[0]], latest[packages[0]] = "1.9.0", "1.10.0"
    installed[packages[1]], latest[packages[1]] = "2.11.3", "2.9.8"
    expected = sorted(p for p in packages if _key(installed[p]) < _key(latest[p]))

    def way(key: str) -> str:
        return solver.heredoc(
            "old.py",
            f"def key(v):\n    return {key}\n\n\n"
            "a, b = (dict(x.split() for x in open(f)) for f in ('installed.txt', 'latest.txt'))\n"
            "print(*sorted(p for p in a if key(a[p]) < key(b[p])), sep='\\n')",
        )

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("compare the two lists", "paste installed.txt latest.txt")
        run = "python3 old.py | tee outdated.txt"
        yield from a.attempt(
            "find the packages with a newer version",
            right=[(way("[int(x) for x in v.split('.')]"), run)],
            wrong=(way("v"), run),
            clue=f"{packages[0]} is missing: as text 1.10 comes before 1.9.",
            why="Versions compare number by number.",
        )
        yield from a.finish("/app/outdated.txt names the packages to upgrade.")

    return family.Task(
        instruction="/app/installed.txt and /app/latest.txt have lines `PACKAGE VERSION`. Write "
        "the "
        "packages whose installed version is lower than the latest one to /app/outdated.txt, "
        "one a line, in alphabetical order.",
        brief="the outdated packages",
        files={
            "installed.txt": draw.rows(installed.items(), sep=" "),
            "latest.txt": draw.rows(latest.items(), sep=" "),
        },
        check=checks.lines("outdated.txt", expected),
        solve=solve,
    )


@family.register("dependency_management")
def undeclared_imports(rng: random.Random) -> family.Task:
    """Modules that the code imports and the requirements do not name."""
    modules = draw.words(rng, 6)
    used, declared = modules[:4], [modules[0], modules[2], modules[4], modules[5]]
    forms = [f"import {m}" if rng.random() < 0.5 else f"from {m} import run" for m in used]
    files = {
        "src/main.py": draw.text([*forms[:2], "", "print('start')"]),
        "src/tools.py": draw.text([*forms[2:], forms[0]]),
        "requirements.txt": draw.text(f"{m}=={_version(rng)}" for m in declared),
    }
    expected = sorted(set(used) - set(declared))
    names = "grep -hoE '^(import|from) [a-z]+' src/*.py | awk '{print $2}' | sort -u"
    known = "sort requirements.txt | cut -d= -f1"

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("see what there is", "ls -R", "cat requirements.txt")
        obs = yield from a.run("list the imports", "grep -n -E 'import' src/*.py")
        num = len(screen.output_of(obs, "grep -n"))
        yield from a.attempt(
            "compare imports and requirements",
            right=[
                f"comm -23 <({names}) <({known}) > missing.txt",
                f"{names} | grep -vxF -f <({known}) > missing.txt",
            ],
            wrong=f"comm -13 <({names}) <({known}) > missing.txt",
            clue="these are declared and unused, asked is the other direction.",
            show="cat missing.txt",
            seen=f"There are {num} import lines in two forms, `import X` and `from X import`.",
        )
        yield from a.finish("/app/missing.txt names what requirements.txt lacks.")

    return family.Task(
        instruction="Some modules that the Python files in /app/src import are not in "
        "/app/requirements.txt. Write their names to /app/missing.txt, sorted, one a line.",
        brief="the imports that are not declared",
        files=files,
        check=checks.lines("missing.txt", expected),
        solve=solve,
    )


@family.register("dependency_management", difficulty="medium")
def pin_versions(rng: random.Random) -> family.Task:
    """Pin each requirement to the highest version on offer that its bound allows."""
    packages = sorted(draw.words(rng, 3))
    offers = {p: ["1.2.0", "1.9.4", "1.10.1", f"2.{rng.randint(0, 9)}.0"] for p in packages}
    for versions in offers.values():
        rng.shuffle(versions)
    bound = rng.choice(["2", "2.0"])
    index = [(p, v) for p in packages for v in offers[p]]
    expected = [f"{p}==1.10.1" for p in packages]

    def way(sort: str) -> str:
        return (
            f"for p in $(cut -d'<' -f1 requirements.in); do v=$(grep \"^$p \" index.txt | cut -d' "
            f"' -f2 "
            f'| grep -v "^2" | {sort} | tail -n 1); echo "$p==$v"; done > requirements.txt'
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the input", "cat requirements.in", "cat index.txt")
        example = screen.quote(screen.output_of(obs, "requirements.in")[:1])
        yield from a.attempt(
            "take the highest version below 2 for each package",
            right=[way("sort -V")],
            wrong=way("sort"),
            clue="1.9.4 was taken as higher than 1.10.1, the sort was alphabetical.",
            show="cat requirements.txt",
            seen=f"A requirement reads {example}, so version 2 is excluded." if example else "",
            why="`sort -V` orders version numbers.",
        )
        yield from a.finish("/app/requirements.txt pins every package.")

    return family.Task(
        instruction="/app/requirements.in has lines `PACKAGE<BOUND`, /app/index.txt the versions "
        "on "
        "offer. Write /app/requirements.txt with a line `PACKAGE==VERSION` for each package, in "
        "the same order, with the highest version below the bound.",
        brief="pinned requirements",
        files={
            "requirements.in": draw.text(f"{p}<{bound}" for p in packages),
            "index.txt": draw.rows(index, sep=" "),
        },
        check=checks.lines("requirements.txt", expected),
        solve=solve,
    )


@family.register("dependency_management")
def version_conflicts(rng: random.Random) -> family.Task:
    """Packages that two services pin to different versions."""
    shared = draw.words(rng, rng.randint(5, 7))
    web = {p: _version(rng) for p in shared}
    worker = {p: v if rng.random() < 0.5 else _version(rng) for p, v in web.items()}
    worker[shared[0]] = web[shared[0]] + "1"
    extra = rng.choice([w for w in draw.WORDS if w not in shared])
    worker[extra] = _version(rng)
    lines = [f"{p} {web[p]} {worker[p]}" for p in sorted(shared) if web[p] != worker[p]]

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("list the two files", "ls web worker", "cat web/pins.txt worker/pins.txt")
        pair = "<(sort web/pins.txt) <(sort worker/pins.txt)"
        yield from a.attempt(
            "join the pins by name and keep those that differ",
            right=[f"join -t= {pair} | awk -F= '$2!=$3 {{print $1, $2, $3}}' > conflicts.txt"],
            wrong=f"join -t= {pair} | awk -F= '{{print $1, $2, $3}}' > conflicts.txt",
            clue="packages with equal versions are listed too.",
            show="cat conflicts.txt",
            why="Only a difference is a conflict.",
        )
        yield from a.finish("/app/conflicts.txt lists the conflicting pins.")

    return family.Task(
        instruction="/app/web/pins.txt and /app/worker/pins.txt pin packages as `NAME=VERSION`. "
        "For "
        "each package in both with different versions write `NAME WEB_VERSION WORKER_VERSION` to "
        "/app/conflicts.txt, sorted by name.",
        brief="the conflicting pins",
        files={
            "web/pins.txt": draw.rows(web.items(), sep="="),
            "worker/pins.txt": draw.rows(worker.items(), sep="="),
        },
        check=checks.lines("conflicts.txt", lines),
        solve=solve,
    )
