"""System administration: settings, schedules, accounts, disk reports, log rotation."""

import random

from data_pipeline.recorder import checks, draw, family, screen, solver


@family.register("system_administration")
def change_port(rng: random.Random) -> family.Task:
    """Change one setting in one section of an ini file."""
    sections = draw.words(rng, 3)
    ports = rng.sample(range(3000, 9000), 3)
    same = ports[0]
    target = rng.randint(1, 2)
    new = rng.randint(9001, 9999)
    values = [same, same, same]
    lines = [
        x
        for s, p in zip(sections, values, strict=True)
        for x in (f"[{s}]", "host = 0.0.0.0", f"port = {p}")
    ]
    expected = list(lines)
    expected[3 * target + 2] = f"port = {new}"

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("read the settings", "cat -n service.ini")
        row = next((x for x in screen.output_of(obs, "cat -n") if f"[{sections[target]}]" in x), "")
        number = int(row.split()[0]) + 2 if row else 3 * target + 3
        yield from a.attempt(
            f"change the port of {sections[target]}",
            right=[
                f"sed -i '/^\\[{sections[target]}\\]/,/^port/s/^port = .*/port = {new}/' "
                f"service.ini",
                f"sed -i '{number}s/{same}/{new}/' service.ini",
            ],
            wrong=f"sed -i 's/^port = .*/port = {new}/' service.ini",
            mend=f"sed -i '/^port/s/{new}/{same}/; {number}s/{same}/{new}/' service.ini",
            clue="all sections have the new port, only one was meant.",
            show="grep -nE '^\\[|^port' service.ini",
            seen=f"Every section has a port; the one of {sections[target]} is in line {number}.",
        )
        yield from a.finish(f"Only [{sections[target]}] has the port {new}.")

    return family.Task(
        instruction=f"In /app/service.ini set the port of the section {sections[target]} to "
        f"{new}. Nothing else "
        "may change.",
        brief=f"a new port for {sections[target]}",
        files={"service.ini": draw.text(lines)},
        check=checks.text("service.ini", draw.text(expected)),
        solve=solve,
    )


@family.register("system_administration")
def login_shells(rng: random.Random) -> family.Task:
    """Users with a real shell and a uid from 1000 on."""
    rows = []
    for i, name in enumerate(draw.names(rng, 7)):
        uid = 1000 + i if i < 4 else rng.randint(2, 900)
        shell = "/usr/sbin/nologin" if i in (1, 5) else rng.choice(["/bin/bash", "/bin/zsh"])
        rows.append((name, "x", uid, uid, "", f"/home/{name}", shell))
    expected = sorted(r[0] for r in rows if r[2] >= 1000 and "nologin" not in r[6])
    rng.shuffle(rows)

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at the accounts", "cat passwd")
        end = "{print $1}' passwd | sort > users.txt"
        yield from a.attempt(
            "select the accounts",
            right=[
                f"awk -F: '$3>=1000 && $7 !~ /nologin/ {end}",
                "grep -v nologin passwd | awk -F: '$3>=1000' | cut -d: -f1 | sort > users.txt",
            ],
            wrong=f"awk -F: '$7 !~ /nologin/ {end}",
            clue="system accounts with a uid below 1000 are listed as well.",
            show="cat users.txt",
            why="The uid is the third field, the shell the seventh.",
        )
        yield from a.finish("/app/users.txt has the people who can log in.")

    return family.Task(
        instruction="/app/passwd is a copy of a server's account list. Write the names of the "
        "users with a "
        "uid of 1000 or more whose shell is not nologin to /app/users.txt, sorted, one a line.",
        brief="the users who can log in",
        files={"passwd": draw.rows(rows, sep=":")},
        check=checks.lines("users.txt", expected),
        solve=solve,
    )


@family.register("system_administration")
def disk_report(rng: random.Random) -> family.Task:
    """Mounts above a limit of use, from saved df output."""
    limit = rng.choice([75, 80, 85])
    percents = [limit + 3, limit, limit - 8, 100, 9]
    rng.shuffle(percents)
    mounts = ["/", *(f"/{w}" for w in draw.words(rng, 4))]
    rows = [
        f"/dev/sd{'abcde'[i]}1 {100 * (i + 2)} {p * (i + 2)} {p}% {m}"
        for i, (p, m) in enumerate(zip(percents, mounts, strict=True))
    ]
    found = sorted(
        ((p, m) for p, m in zip(percents, mounts, strict=True) if p > limit), reverse=True
    )

    def way(number: str) -> str:
        return (
            f"tail -n +2 df.txt | awk '{number}>{limit} {{print $5, $4}}' | sort -k2,2nr > full.txt"
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("read the report", "cat df.txt")
        num = len(screen.output_of(obs, "df.txt")) - 1
        yield from a.attempt(
            f"list what is above {limit}%",
            right=[way("$4+0")],
            wrong=way("$4"),
            clue="with its percent sign the value is compared as text.",
            show="cat full.txt",
            seen=f"There are {num} mounts; the use is the fourth field." if num > 1 else "",
            why="Adding 0 makes a number of it.",
        )
        yield from a.finish("/app/full.txt has the full mounts.")

    return family.Task(
        instruction=f"/app/df.txt has the columns device, size, used, use%, mount. Write the "
        f"mounts that use "
        f"more than {limit}% to /app/full.txt as `MOUNT USE%` lines, the fullest first.",
        brief=f"the mounts above {limit}%",
        files={"df.txt": draw.text(["Device Size Used Use% Mount", *rows])},
        check=checks.lines("full.txt", [f"{m} {p}%" for p, m in found]),
        solve=solve,
    )


@family.register("system_administration", difficulty="medium", tools=("gzip",))
def rotate_logs(rng: random.Random) -> family.Task:
    """Rotate a log: shift the old ones, compress the newest old one, start empty."""
    name = rng.choice(["app.log", "web.log", "mail.log"])
    now, one, two = (draw.text(draw.words(rng, 3)) for _ in range(3))

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run(
            "see the logs", "ls logs", f"cat logs/{name}", why="The order of moves matters."
        )
        yield from a.attempt(
            "shift the logs from the oldest on",
            right=[
                (
                    f"cd logs && mv {name}.2 {name}.3 && mv {name}.1 {name}.2",
                    f"mv {name} {name}.1 && touch {name}",
                ),
                (
                    f"for i in 2 1; do mv logs/{name}.$i logs/{name}.$((i+1)); done",
                    f"cp logs/{name} logs/{name}.1 && : > logs/{name}",
                    "cd logs",
                ),
            ],
            wrong=(
                f"cd logs && mv {name}.2 {name}.3 && mv {name}.1 {name}.2",
                f"cp {name} {name}.1",
            ),
            mend=f": > {name}",
            clue="the current log was copied and still has its lines.",
            show="wc -l *",
        )
        yield from a.run("compress the oldest", f"gzip -n {name}.3", "ls")
        yield from a.finish("The logs are shifted and the current one is empty.")

    return family.Task(
        instruction=f"Rotate the logs in /app/logs: {name}.2 becomes {name}.3.gz (compressed), "
        f"{name}.1 becomes "
        f"{name}.2, {name} becomes {name}.1, and a new empty {name} takes its place.",
        brief=f"a rotated {name}",
        files={f"logs/{name}": now, f"logs/{name}.1": one, f"logs/{name}.2": two},
        check=checks.every(
            checks.files({f"logs/{name}.2": one, f"logs/{name}.1": now}),
            checks.files({f"logs/{name}": "", f"logs/{name}.3": None}),
            checks.command(f'test "$(zcat logs/{name}.3.gz | wc -l)" = 3'),
        ),
        solve=solve,
    )


@family.register("system_administration")
def cron_line(rng: random.Random) -> family.Task:
    """Add a schedule line and switch another off."""
    hour, minute = rng.randint(1, 22), rng.choice([5, 15, 30, 45])
    day = rng.randint(1, 5)
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
    jobs = [f"{j}.sh" for j in draw.words(rng, 3)]
    table = [f"0 {rng.randint(0, 23)} * * * /opt/{job}" for job in jobs[:2]]
    line = f"{minute} {hour} * * {day} /opt/{jobs[2]}"
    wrong = f"{hour} {minute} * * {day} /opt/{jobs[2]}"

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("read the schedule", "cat crontab.txt")
        yield from a.run(
            f"comment out {jobs[0]}",
            f"sed -i '/{jobs[0]}/s/^/# /' crontab.txt",
            seen="Each line has minute, hour, day, month, weekday, command.",
        )
        yield from a.attempt(
            "add the new job",
            right=[f"echo '{line}' >> crontab.txt"],
            wrong=f"echo '{wrong}' >> crontab.txt",
            mend=f"sed -i '$s#.*#{line}#' crontab.txt",
            clue="minute and hour are exchanged.",
            show="cat crontab.txt",
            why="The minute comes first.",
        )
        yield from a.finish(f"{jobs[0]} is switched off and {jobs[2]} is scheduled.")

    return family.Task(
        instruction=f"In /app/crontab.txt switch off {jobs[0]} by putting `# ` before its line, "
        f"and add a line at the "
        f"end that runs /opt/{jobs[2]} every {days[day - 1]} at {hour:02d}:{minute:02d}. Write "
        f"the numbers "
        "without leading zeros.",
        brief="a changed schedule",
        files={"crontab.txt": draw.text(table)},
        check=checks.lines("crontab.txt", [f"# {table[0]}", table[1], line]),
        solve=solve,
    )


@family.register("system_administration")
def merge_environment(rng: random.Random) -> family.Task:
    """Overlay one settings file on another: the later value wins."""
    keys = sorted(w.upper() for w in draw.words(rng, 6))
    base = {k: rng.randint(1, 99) for k in keys[:4]}
    local = {k: rng.randint(100, 199) for k in rng.sample(keys[:4], 2) + keys[4:]}
    merged = sorted((base | local).items())

    def way(files: str) -> str:
        program = '{v[$1]=$2} END {for (k in v) print k "=" v[k]}'
        return f"awk -F= '{program}' {files} | sort > merged.env"

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("read both files", "cat base.env", "cat local.env")
        yield from a.attempt(
            "merge them with the local values on top",
            right=[
                way("base.env local.env"),
                "cat local.env base.env | sort -t= -u -s -k1,1 > merged.env",
            ],
            wrong=way("local.env base.env"),
            clue="the base values won, the local ones should.",
            show="cat merged.env",
            why="What is read last wins, so the local file comes second.",
        )
        yield from a.finish("/app/merged.env has every key once.")

    return family.Task(
        instruction="Merge /app/base.env and /app/local.env (lines KEY=VALUE) into "
        "/app/merged.env: every key "
        "once, the value from local.env where both have it, sorted by key.",
        brief="the merged settings",
        files={
            "base.env": draw.rows(base.items(), sep="="),
            "local.env": draw.rows(local.items(), sep="="),
        },
        check=checks.lines("merged.env", [f"{k}={v}" for k, v in merged]),
        solve=solve,
    )
