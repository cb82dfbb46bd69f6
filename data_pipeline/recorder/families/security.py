"""Security: permissions, log-in attempts, secrets, checksums, weak passwords, encodings."""

import base64
import collections
import random

from data_pipeline.recorder import checks, draw, family, screen, solver


@family.register("security")
def failed_logins(rng: random.Random) -> family.Task:
    """Addresses with at least n failed log-ins."""
    limit = rng.randint(3, 4)
    hosts = [draw.ip(rng) for _ in range(4)]
    counts = dict(zip(hosts, (limit, limit + 2, limit - 1, 1), strict=True))
    rows = [f"sshd: Failed password for {u} from {h} port 22" for h, u in _tries(rng, counts)]
    rows += [f"sshd: Accepted password for ada from {h} port 22" for h in hosts[2:] * 3]
    rng.shuffle(rows)
    expected = sorted(h for h, n in counts.items() if n >= limit)

    def way(pattern: str, sign: str) -> str:
        return (
            f"grep '{pattern}' auth.log | grep -oE '[0-9]+(\\.[0-9]+){{3}}' | sort | uniq -c | "
            f"awk '$1{sign}{limit} {{print $2}}' | sort > blocked.txt"
        )

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the log", "head -n 3 auth.log", "grep -c Failed auth.log")
        num = (screen.output_of(obs, "grep -c") or ["several"])[-1]
        yield from a.attempt(
            "count the failures of each address",
            right=[way("Failed password", ">=")],
            wrong=way("Failed password", ">"),
            clue=f"an address with exactly {limit} failures is missing.",
            show="cat blocked.txt; grep Failed auth.log | grep -oE 'from [0-9.]+' | sort | uniq -c",
            seen=f"There are {num} failed attempts.",
            why=f"At least {limit} includes {limit}.",
        )
        yield from a.finish("/app/blocked.txt lists the addresses to block.")

    return family.Task(
        instruction=f"Find the addresses with at least {limit} failed log-ins in /app/auth.log "
        f"and write "
        "them to /app/blocked.txt, one a line, sorted as text.",
        brief="the addresses that guess passwords",
        files={"auth.log": draw.text(rows)},
        check=checks.lines("blocked.txt", expected),
        solve=solve,
    )


def _tries(rng: random.Random, counts: dict[str, int]) -> list[tuple[str, str]]:
    """(address, user) of each failed attempt."""
    users = ["root", "admin", "test"]
    return [(host, rng.choice(users)) for host, num in counts.items() for _ in range(num)]


@family.register("security")
def open_permissions(rng: random.Random) -> family.Task:
    """Take group and world rights from private keys."""
    folder = rng.choice(["keys", "ssh", "secrets"])
    words = draw.words(rng, 5)
    keys = {f"{folder}/{w}.key": f"KEY {draw.hexes(rng, 12)}\n" for w in words[:3]}
    others = {f"{folder}/{w}.pub": f"PUB {draw.hexes(rng, 12)}\n" for w in words[3:]}

    def modes(world) -> float:
        found = {p.name: p.stat().st_mode & 0o777 for p in (world.folder / folder).iterdir()}
        wanted = {n.rpartition("/")[2]: 0o600 for n in keys}
        wanted |= {n.rpartition("/")[2]: 0o644 for n in others}
        same = [found.get(name) == mode for name, mode in wanted.items()]
        return sum(same) / len(same) if all(n in found for n in wanted) else 0.0

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("list the modes", f"stat -c '%a %n' {folder}/*")
        num = sum(x.endswith(".key") for x in screen.output_lines(obs))
        yield from a.attempt(
            "restrict the private keys to their owner",
            right=[f"chmod 600 {folder}/*.key", f"chmod u=rw,go= {folder}/*.key"],
            wrong=f"chmod 640 {folder}/*.key",
            clue="the group can still read the keys.",
            show=f"stat -c '%a %n' {folder}/*",
            seen=f"{num} private keys can be read by everybody (644)." if num else "",
            why="Only the owner may read and write a private key: 600.",
        )
        yield from a.finish("The private keys have mode 600, the public ones are as before.")

    return family.Task(
        instruction=f"The private keys /app/{folder}/*.key can be read by other users. Change "
        f"their mode "
        "so that only the owner can read and write them. Leave all other files as they are.",
        brief="private keys that only the owner can read",
        files=keys | others,
        check=modes,
        solve=solve,
    )


@family.register("security", difficulty="medium")
def redact_secrets(rng: random.Random) -> family.Task:
    """Replace tokens in all files of a tree, and report the files."""
    prefix = rng.choice(["tok_", "key-", "sk-"])
    words = draw.words(rng, 4)
    tokens = [prefix + draw.hexes(rng, 16) for _ in range(4)]
    texts = {
        f"conf/{words[0]}.env": f"NAME=a\nTOKEN={tokens[0]}\n",
        f"conf/{words[1]}.yml": f"user: b\ntoken: {tokens[1]}\nport: 80\n",
        f"src/{words[2]}.py": f"A = '{tokens[2]}'; B = '{tokens[3]}'\n",
        f"src/{words[3]}.py": "C = 'nothing here'\n",
    }
    pattern = f"{prefix}[0-9a-f]{{16}}"
    clean = {k: _redacted(v, prefix) for k, v in texts.items()}

    def solve(a: solver.Agent) -> family.Play:
        find = f"grep -rlE '{pattern}' conf src"
        obs = yield from a.run("search for tokens", f"grep -rnE '{pattern}' conf src | sort")
        num = len(screen.output_of(obs, "grep -rnE"))
        yield from a.attempt(
            "list the files and replace the tokens",
            right=[
                (
                    f"{find} | sort > leaked.txt",
                    f"sed -i -E 's/{pattern}/REDACTED/g' $(cat leaked.txt)",
                ),
            ],
            wrong=(
                f"{find} | sort > leaked.txt",
                f"sed -i -E 's/{pattern}/REDACTED/' $(cat leaked.txt)",
            ),
            mend=f"sed -i -E 's/{pattern}/REDACTED/g' $(cat leaked.txt)",
            clue="one line held two tokens and only the first was replaced; `g` is missing.",
            show=f"cat leaked.txt; grep -rhE '{prefix}|REDACTED' conf src | sort",
            seen=f"{num} lines hold tokens." if num else "",
        )
        yield from a.finish("No token is left and /app/leaked.txt names the files.")

    leaked = sorted(k for k, v in texts.items() if prefix in v)
    return family.Task(
        instruction=f"Files below /app/conf and /app/src contain tokens: {prefix} and 16 "
        f"hexadecimal digits. "
        "Write the paths of these files (as conf/... or src/..., sorted) to /app/leaked.txt and "
        "replace every token by REDACTED.",
        brief="files without tokens",
        files=texts,
        check=checks.every(checks.lines("leaked.txt", leaked), checks.files(clean)),
        solve=solve,
    )


def _redacted(text: str, prefix: str) -> str:
    """The text with each token (prefix and 16 characters) replaced."""
    head, *tails = text.split(prefix)
    return head + "".join(f"REDACTED{tail[16:]}" for tail in tails)


@family.register("security")
def tampered_files(rng: random.Random) -> family.Task:
    """Files that do not match a list of checksums."""
    words = sorted(draw.words(rng, 5))
    texts = {f"bin/{w}.bin": f"{w} {draw.hexes(rng, 20)}\n" for w in words}
    sums = [f"{checks.sha256(v)}  {k}" for k, v in texts.items()]
    changed = sorted(rng.sample(sorted(texts), 2))
    files = {k: v + "#" if k in changed else v for k, v in texts.items()}
    rng.shuffle(sums)

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("look at the list", "ls . bin", "cut -c1-16,65- SHA256SUMS")
        num = sum(".bin" in x for x in screen.output_of(obs, "cut"))
        test = "sha256sum -c SHA256SUMS 2>/dev/null"
        yield from a.attempt(
            "verify the checksums and keep the failures",
            right=[
                f"{test} | grep 'FAILED$' | cut -d: -f1 | sort > tampered.txt",
                f"{test} | awk -F': ' '$2==\"FAILED\" {{print $1}}' | sort > tampered.txt",
            ],
            wrong=f"{test} | grep -v FAILED | cut -d: -f1 | sort > tampered.txt",
            clue="these are the files that are OK.",
            show=f"cat tampered.txt; {test} | sort",
            seen=f"The list has {num} checksums." if num else "",
        )
        yield from a.finish("/app/tampered.txt names the changed files.")

    return family.Task(
        instruction="Check the files of /app/bin against /app/SHA256SUMS. Write the paths of "
        "those that "
        "do not match, as in the list and sorted, to /app/tampered.txt.",
        brief="the files that were changed",
        files=files | {"SHA256SUMS": draw.text(sums)},
        check=checks.lines("tampered.txt", changed),
        solve=solve,
    )


@family.register("security", difficulty="medium")
def dictionary_attack(rng: random.Random) -> family.Task:
    """Recover a weak password from its SHA-256 and a word list."""
    words = draw.words(rng, rng.randint(12, 20))
    secret = rng.choice(words[3:])
    digest = checks.sha256(secret)
    user = draw.names(rng, 1)[0]

    def way(echo: str) -> str:
        return (
            f"while read w; do h=$({echo} \"$w\" | sha256sum | cut -d' ' -f1); "
            "grep -q $h shadow.txt && echo $w; done < words.txt | tee password.txt"
        )

    hashed = "import hashlib; h = open('shadow.txt').read().split(':')[1].strip(); "

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("see the hash and the list", "cat shadow.txt", "wc -l words.txt")
        line = next((x for x in screen.output_of(obs, "shadow.txt") if ":" in x), ":")
        length = len(line.partition(":")[2])
        yield from a.attempt(
            "hash every word and compare",
            right=[
                way("printf %s"),
                f"python3 -c \"{hashed}print(*(w for w in open('words.txt').read().split() "
                'if hashlib.sha256(w.encode()).hexdigest() == h))" | tee password.txt',
            ],
            wrong=way("echo"),
            clue="nothing matches, because `echo` adds a newline that is hashed too.",
            seen=f"The hash has {length} hexadecimal digits: SHA-256." if length == 64 else "",
            why="The hash is of the word alone, without a newline.",
        )
        yield from a.finish(f"/app/password.txt has the password of {user}.")

    return family.Task(
        instruction=f"For an audit: /app/shadow.txt has the unsalted SHA-256 of the password of "
        f"{user}. The "
        "password is a word of /app/words.txt. Write it to /app/password.txt.",
        brief=f"the weak password of {user}",
        files={"shadow.txt": f"{user}:{digest}\n", "words.txt": draw.text(words)},
        check=checks.text("password.txt", secret),
        solve=solve,
    )


@family.register("security")
def decode_message(rng: random.Random) -> family.Task:
    """Undo two layers of encoding."""
    message = f"meet at {draw.word(rng)} {draw.word(rng)} {rng.randint(10, 99)}"
    inner = "hex" if rng.random() < 0.5 else "rot13"
    rot = str.maketrans("abcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyzabcdefghijklm")
    layer = message.encode().hex() if inner == "hex" else message.translate(rot)
    decode = {
        "hex": "python3 -c 'import sys; print(bytes.fromhex(sys.stdin.read()).decode())'",
        "rot13": "tr 'a-z' 'n-za-m'",
    }

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at the file", "cat message.b64")
        obs = yield from a.run("undo the base64", "base64 -d message.b64; echo")
        text = (screen.output_of(obs, "base64 -d") or [""])[-1]
        is_hex = all(c in "0123456789abcdef" for c in text)
        kind = "hex" if is_hex else "rot13"
        what = "hexadecimal digits" if is_hex else "letters shifted by 13"
        yield from a.attempt(
            f"undo the {kind} layer too",
            right=[f"base64 -d message.b64 | {decode[kind]} > plain.txt"],
            wrong="base64 -d message.b64 > plain.txt",
            clue=f"this is still {what}.",
            show="cat plain.txt; echo",
            seen=f"Under the base64 there are {what}.",
        )
        yield from a.finish("/app/plain.txt has the plain message.")

    return family.Task(
        instruction="/app/message.b64 is base64 around a second simple encoding (hex or ROT13). "
        "Write "
        "the plain English message to /app/plain.txt.",
        brief="the decoded message",
        files={"message.b64": base64.b64encode(layer.encode()).decode() + "\n"},
        check=checks.text("plain.txt", message),
        solve=solve,
    )


@family.register("security")
def weak_passwords(rng: random.Random) -> family.Task:
    """Users whose password breaks a policy of length and digits."""
    length = rng.choice([8, 10])
    users = draw.names(rng, 6)
    kinds = ["good", "short", "no digit", "good", "short", "no digit"]
    rng.shuffle(kinds)
    made = {
        "good": lambda: draw.hexes(rng, length) + "7x",
        "short": lambda: draw.hexes(rng, length - 4) + "9",
        "no digit": lambda: (draw.word(rng) + draw.word(rng) + "abcdef")[: length + 1],
    }
    rows = [(u, made[k]()) for u, k in zip(users, kinds, strict=True)]
    counts = collections.Counter(kinds)
    expected = sorted(u for u, k in zip(users, kinds, strict=True) if k != "good")
    assert counts["good"] == 2

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("look at the list", "cat accounts.csv")
        rule = f"length($2)<{length}"
        end = "{print $1}' accounts.csv | sort > weak.txt"
        yield from a.attempt(
            "select the accounts that break the policy",
            right=[f"awk -F, '{rule} || $2 !~ /[0-9]/ {end}"],
            wrong=f"awk -F, '{rule} && $2 !~ /[0-9]/ {end}",
            clue="breaking one rule is enough, so the two conditions need an or.",
            show="cat weak.txt",
            why="An account is weak when it breaks either rule.",
        )
        yield from a.finish("/app/weak.txt names the accounts that break the policy.")

    return family.Task(
        instruction=f"The policy asks for passwords of at least {length} characters with at least "
        f"one digit. "
        "Write the users of /app/accounts.csv (lines `user,password`) that break it to "
        "/app/weak.txt, sorted, one a line.",
        brief="the users with weak passwords",
        files={"accounts.csv": draw.rows(rows)},
        check=checks.lines("weak.txt", expected),
        solve=solve,
    )
