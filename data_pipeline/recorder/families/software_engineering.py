"""Software engineering: functions to tests, renaming, versions, change logs, reports on code."""

import random
import re

from data_pipeline.recorder import checks, draw, family, screen, solver

_FUNCTIONS = {
    "is_leap": (
        "return whether a year is a leap year in the Gregorian calendar",
        "y",
        "return y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)",
        "return y % 4 == 0",
        [(2024, True), (2023, False), (1900, False), (2000, True)],
        "1900 was no leap year: centuries count only when 400 divides them.",
    ),
    "clamp": (
        "return x limited to the range from 0 to 100",
        "x",
        "return max(0, min(100, x))",
        "return min(100, x)",
        [(5, 5), (-3, 0), (120, 100), (100, 100)],
        "negative numbers are not raised to 0.",
    ),
    "initials": (
        "return the initials of a name in upper case, such as AL for 'ada lovelace'",
        "name",
        "return ''.join(w[0].upper() for w in name.split())",
        "return ''.join(w[0] for w in name.split())",
        [("ada lovelace", "AL"), ("Bo", "B"), ("", "")],
        "the letters are not in upper case.",
    ),
    "digit_sum": (
        "return the sum of the decimal digits of an integer, its sign ignored",
        "n",
        "return sum(int(d) for d in str(abs(n)))",
        "return sum(int(d) for d in str(n))",
        [(0, 0), (907, 16), (-45, 9)],
        "a negative number fails: its minus sign is no digit.",
    ),
    "median": (
        "return the median of a list of numbers, for an even count the mean of the middle two",
        "xs",
        "s, n = sorted(xs), len(xs)\n    return (s[(n - 1) // 2] + s[n // 2]) / 2",
        "return sorted(xs)[len(xs) // 2]",
        [([3, 1, 2], 2), ([4, 1, 3, 2], 2.5), ([7], 7)],
        "with an even count the mean of the middle two is asked.",
    ),
}


@family.register("software_engineering", difficulty="medium")
def write_function(rng: random.Random) -> family.Task:
    """Write a function so that given unit tests pass."""
    name = rng.choice(sorted(_FUNCTIONS))
    doc, arg, body, slack, cases, clue = _FUNCTIONS[name]
    module = rng.choice(["tools", "core", "lib"])
    test = f"import unittest\n\nfrom {module} import {name}\n\n\n"
    test += "class Test(unittest.TestCase):\n    def test_it(self):\n"
    test += "".join(f"        self.assertEqual({name}({x!r}), {y!r})\n" for x, y in cases)
    hidden = " and ".join(f"f({x!r}) == {y!r}" for x, y in cases)

    def way(code: str) -> str:
        return solver.heredoc(f"{module}.py", f"def {name}({arg}):\n    {code}")

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("read the tests", "ls", f"cat test_{module}.py")
        num = obs.count("assertEqual")
        run = "python3 -m unittest -q 2>&1 | grep -E 'Error|OK|FAILED'"
        yield from a.attempt(
            f"write {name} and run the tests",
            right=[(way(body), run)],
            wrong=(way(slack), run),
            clue=clue,
            seen=f"There are {num} assertions about {name}.",
        )
        yield from a.finish(f"/app/{module}.py has {name}.")

    return family.Task(
        instruction=f"Create /app/{module}.py with a function {name}({arg}): {doc}. The tests in "
        f"/app/test_{module}.py must pass (python3 -m unittest); do not change them.",
        brief=f"the function {name}",
        files={f"test_{module}.py": test},
        check=checks.every(
            checks.command("python3 -m unittest -q"),
            checks.command(f'python3 -c "from {module} import {name} as f; assert {hidden}"'),
        ),
        solve=solve,
    )


@family.register("software_engineering", difficulty="medium")
def rename_function(rng: random.Random) -> family.Task:
    """Rename a function in a small package, longer names that contain it left alone."""
    old, new = rng.choice([("load", "read_file"), ("calc", "compute"), ("get", "fetch")])
    word = draw.word(rng)
    modules = {
        "pkg/__init__.py": "",
        f"pkg/{word}.py": f"def {old}(x):\n    return x + 1\n\n\n"
        f"def re{old}(x):\n    return {old}({old}(x))\n",
        "pkg/main.py": f"from pkg.{word} import {old}, re{old}\n\nprint({old}(1), re{old}(1))\n",
    }
    expected = {k: re.sub(rf"\b{old}\b", new, v) for k, v in modules.items()}

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run(
            "find every use", f"grep -rn {old} pkg | sort", "python3 -m pkg.main"
        )
        num = len([x for x in screen.output_of(obs, "grep -rn") if ".py:" in x])
        yield from a.attempt(
            f"rename {old} as a whole word",
            right=[
                f"sed -i 's/\\b{old}\\b/{new}/g' pkg/*.py",
                f"grep -rlw {old} pkg | xargs sed -i 's/\\<{old}\\>/{new}/g'",
            ],
            wrong=f"sed -i 's/{old}/{new}/g' pkg/*.py",
            mend=f"sed -i 's/re{new}/re{old}/g' pkg/*.py",
            clue=f"re{old} has become re{new}, and it had to keep its name.",
            show="cat pkg/main.py; python3 -m pkg.main",
            seen=f"{num} lines mention {old}, some of them as part of re{old}." if num else "",
        )
        yield from a.finish(f"The function is called {new} everywhere and the program still runs.")

    return family.Task(
        instruction=f"Rename the function {old} of the Python package /app/pkg to {new}, at its "
        f"definition and "
        f"at every use. re{old} keeps its name. `python3 -m pkg.main` must print the same as "
        f"before.",
        brief=f"{old} renamed to {new}",
        files=modules,
        check=checks.every(
            checks.files(expected), checks.files({"pkg/main.py": expected["pkg/main.py"]})
        ),
        solve=solve,
    )


@family.register("software_engineering")
def bump_version(rng: random.Random) -> family.Task:
    """Raise a version everywhere it is written."""
    major, minor, patch = rng.randint(0, 4), rng.randint(0, 8), rng.randint(1, 8)
    old = f"{major}.{minor}.{patch}"
    part = rng.choice(["major", "minor", "patch"])
    new = {
        "major": f"{major + 1}.0.0",
        "minor": f"{major}.{minor + 1}.0",
        "patch": f"{major}.{minor}.{patch + 1}",
    }[part]
    wrong = {
        "major": f"{major + 1}.{minor}.{patch}",
        "minor": f"{major}.{minor + 1}.{patch}",
        "patch": f"{major}.{minor}.{patch + 2}",
    }[part]
    files = {
        "VERSION": f"{old}\n",
        "setup.cfg": f"[metadata]\nname = demo\nversion = {old}\n",
        "demo/__init__.py": f'__version__ = "{old}"\n',
        "NEWS": f"1{old} is another number\n",
    }

    def replace(a: str, b: str) -> str:
        return f"sed -i 's/{a.replace('.', '[.]')}/{b}/' VERSION setup.cfg demo/__init__.py"

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run(
            "find the version", "cat VERSION", 'grep -rnF "$(cat VERSION)" . | sort'
        )
        found = (screen.output_of(obs, "# cat VERSION") or [old])[0]
        yield from a.attempt(
            f"raise the {part} number",
            right=[replace(found, new)],
            wrong=replace(found, wrong),
            mend=replace(wrong, new),
            clue="the numbers right of the raised one go back to 0."
            if part != "patch"
            else "the patch number went up by two.",
            show="cat VERSION setup.cfg demo/__init__.py",
            seen=f"The version is {found}; NEWS has it only inside another number.",
        )
        yield from a.finish(f"All three files say {new}.")

    return family.Task(
        instruction=f"Raise the {part} number of the version (semantic versioning) in "
        f"/app/VERSION, "
        "/app/setup.cfg and /app/demo/__init__.py. Leave NEWS alone.",
        brief=f"the next {part} version",
        files=files,
        check=checks.every(
            checks.files({k: v.replace(old, new) for k, v in files.items() if k != "NEWS"}),
            checks.text("VERSION", new),
            checks.files({"NEWS": files["NEWS"]}),
        ),
        solve=solve,
    )


@family.register("software_engineering")
def change_log(rng: random.Random) -> family.Task:
    """Group commit subjects by type into a change log."""
    kinds = ["feat", "fix", "docs"]
    commits = [(rng.choice(kinds), f"{draw.word(rng)} {draw.word(rng)}") for _ in range(8)]
    commits[:2] = [("feat", "start"), ("fix", "prefix of feat")]
    rng.shuffle(commits)
    lines = [f"{draw.hexes(rng, 7)} {kind}: {text}" for kind, text in commits]
    feats = [t for k, t in commits if k == "feat"]
    fixes = [t for k, t in commits if k == "fix"]
    expected = ["# Features", *(f"- {t}" for t in feats), "# Fixes", *(f"- {t}" for t in fixes)]

    def part(pattern: str, kind: str) -> str:
        return f"grep -E '{pattern}' commits.txt | sed -E 's/^[0-9a-f]+ {kind}: /- /'"

    def way(anchor: str) -> str:
        feat, fix = (part(anchor + k, k) for k in ("feat", "fix"))
        return f"{{ echo '# Features'; {feat}; echo '# Fixes'; {fix}; }} > CHANGES.md"

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("read the commits", "cat commits.txt")
        num = sum(" docs: " in x for x in screen.output_lines(obs))
        yield from a.attempt(
            "collect features and fixes",
            right=[way("^[0-9a-f]+ "), way("^.{7} ")],
            wrong=way(""),
            clue="a subject that only mentions the word was taken twice.",
            show="cat CHANGES.md",
            seen=f"{num} of the commits are documentation and do not belong there." if num else "",
            why="The type stands right after the hash.",
        )
        yield from a.finish("/app/CHANGES.md has features and fixes.")

    return family.Task(
        instruction="/app/commits.txt has commits, `HASH TYPE: SUBJECT`. Write /app/CHANGES.md: "
        "the line "
        "`# Features`, then `- SUBJECT` for each commit of type feat, then `# Fixes` and the same "
        "for fix, in the order of the file. Other types are left out.",
        brief="a change log",
        files={"commits.txt": draw.text(lines)},
        check=checks.lines("CHANGES.md", expected),
        solve=solve,
    )


@family.register("software_engineering")
def unused_functions(rng: random.Random) -> family.Task:
    """Functions that are defined and never called."""
    names = draw.words(rng, 6)
    called = names[:4]
    body = "\n\n".join(f"def {n}(x):\n    return x + {i}\n" for i, n in enumerate(names))
    main = "import lib\n\n" + "".join(f"print(lib.{n}({i}))\n" for i, n in enumerate(called))
    expected = sorted(names[4:])

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run(
            "see the definitions and the calls", "grep -n def lib.py", "cat main.py"
        )
        num = sum("def " in x for x in screen.output_of(obs, "grep -n def"))
        defs = "grep -oP '^def \\K\\w+' lib.py | sort"
        uses = "grep -oP 'lib\\.\\K\\w+' main.py | sort -u"
        yield from a.attempt(
            "compare definitions and calls",
            right=[
                f"comm -23 <({defs}) <({uses}) > unused.txt",
                f"{defs} | grep -vxF -f <({uses}) > unused.txt",
            ],
            wrong=f"comm -12 <({defs}) <({uses}) > unused.txt",
            clue="these are the functions that are called.",
            show="cat unused.txt",
            seen=f"lib.py defines {num} functions." if num else "",
        )
        yield from a.finish("/app/unused.txt names the functions nobody calls.")

    return family.Task(
        instruction="Which functions of /app/lib.py does /app/main.py never call? Write their "
        "names to "
        "/app/unused.txt, sorted, one a line.",
        brief="the unused functions",
        files={"lib.py": body, "main.py": main},
        check=checks.lines("unused.txt", expected),
        solve=solve,
    )


@family.register("software_engineering", difficulty="medium", tools=("git",))
def git_branch_commit(rng: random.Random) -> family.Task:
    """Start a repository, commit on a new branch, leave a file out."""
    branch = f"{rng.choice(['feature', 'topic'])}/{draw.word(rng)}"
    kept, left = f"{draw.word(rng)}.py", f"{draw.word(rng)}.tmp"
    message = f"Add {kept}"
    identity = "git config user.name agent && git config user.email agent@example.org"
    check = (
        f'test "$(git rev-parse --abbrev-ref HEAD)" = {branch} && '
        f'test "$(git log -1 --format=%s)" = "{message}" && '
        f'test "$(git ls-tree --name-only HEAD)" = {kept}'
    )

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("see what is there", "ls", "git status --short")
        yield from a.run(
            "make the repository and the branch",
            "git init -q -b main",
            identity,
            f"git checkout -q -b {branch}",
            seen="This is not a repository yet.",
        )
        yield from a.attempt(
            f"commit {kept} only",
            right=[f"git add {kept} && git commit -q -m '{message}'"],
            wrong=f"git add . && git commit -q -m '{message}'",
            mend=(f"git rm -q --cached {left}", "git commit -q --amend --no-edit"),
            clue=f"{left} was committed too.",
            show="git ls-tree --name-only HEAD; git status --short",
            why=f"{left} is not to be committed.",
        )
        yield from a.finish(f"The branch {branch} has one commit with {kept}.")

    return family.Task(
        instruction=f"Make /app a git repository, create the branch {branch} and commit {kept} "
        f"there with the "
        f"message `{message}`. {left} must not be in the commit. No author is configured yet: use "
        "agent, agent@example.org.",
        brief=f"a commit on {branch}",
        files={kept: "print(1)\n", left: "scratch\n"},
        check=checks.command(check),
        solve=solve,
    )
