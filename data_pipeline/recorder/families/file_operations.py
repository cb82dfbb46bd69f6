"""File operations: renaming, sorting into folders, archives, checksums, splitting."""

import random

from data_pipeline.recorder import checks, draw, family, screen, solver


@family.register("file_operations")
def change_suffix(rng: random.Random) -> family.Task:
    """Rename all files of one suffix, in sub-folders too."""
    old, new = rng.choice([("txt", "md"), ("jpeg", "jpg"), ("htm", "html"), ("dat", "csv")])
    stems = draw.words(rng, 5)
    folders = ["", "", f"{draw.word(rng)}_x/", "deep/er/", "deep/er/"]
    names = [f + s for f, s in zip(folders, stems, strict=True)]
    content = {name: f"{name}\n" for name in names}
    keep = "keep.log"

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("list every file", "find . -type f | sort")
        yield from a.attempt(
            f"rename them from .{old} to .{new}",
            right=[
                f'find . -name \'*.{old}\' | while read f; do mv "$f" "${{f%.{old}}}.{new}"; done',
                f"find . -name '*.{old}' -exec sh -c 'mv \"$1\" \"${{1%.{old}}}.{new}\"' _ {{}} "
                f"\\;",
            ],
            wrong=f'for f in *.{old}; do mv "$f" "${{f%.{old}}}.{new}"; done',
            clue="the files in the sub-folders still have the old suffix.",
            show="find . -type f | sort",
            why="Files lie in sub-folders as well, so `find` has to look for them.",
        )
        yield from a.finish(f"No .{old} file is left, all are .{new} now.")

    expected: dict = {f"{k}.{new}": v for k, v in content.items()} | {keep: "log\n"}
    return family.Task(
        instruction=f"Rename every file below /app that ends in .{old} so that it ends in .{new}, "
        f"in "
        "all sub-folders as well. Do not touch other files.",
        brief=f".{old} files renamed to .{new}",
        files={f"{k}.{old}": v for k, v in content.items()} | {keep: "log\n"},
        check=checks.every(
            checks.files(expected | {f"{k}.{old}": None for k in content}),
            checks.files({f"{names[-1]}.{new}": content[names[-1]]}),
        ),
        solve=solve,
    )


@family.register("file_operations")
def sort_into_folders(rng: random.Random) -> family.Task:
    """Move files into one folder for each suffix."""
    suffixes = rng.sample(["txt", "csv", "png", "log", "json"], 3)
    files = {f"inbox/{w}.{suffixes[i % 3]}": f"{w}\n" for i, w in enumerate(draw.words(rng, 6))}
    moved = {
        f"sorted/{k.rpartition('.')[2]}/{k.removeprefix('inbox/')}": v for k, v in files.items()
    }

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("list the inbox", "ls inbox")
        num = len(" ".join(screen.output_lines(obs)).split())
        loop = 'for f in inbox/*; do s="${f##*.}"; %smv "$f" "sorted/$s/"; done'
        yield from a.attempt(
            "move each file into the folder of its suffix",
            right=[loop % 'mkdir -p "sorted/$s"; '],
            wrong=loop % "",
            clue="`mv` complains, because the folders do not exist yet.",
            show="ls -R sorted",
            seen=f"There are {num} files in the inbox." if num >= 6 else "",
            why="The target folders have to be made first.",
        )
        yield from a.finish("Every file lies in the folder of its suffix and inbox is empty.")

    return family.Task(
        instruction="Move the files of /app/inbox to /app/sorted/SUFFIX/, where SUFFIX is the "
        "file's "
        "suffix without the dot (a.txt goes to /app/sorted/txt/a.txt). Make the folders.",
        brief="the inbox sorted by suffix",
        files=files,
        check=checks.files(moved | dict.fromkeys(files)),
        solve=solve,
    )


@family.register("file_operations", difficulty="medium", tools=("tar", "gzip"))
def pack_logs(rng: random.Random) -> family.Task:
    """Pack some files into a compressed archive without their folder's name, and remove them."""
    words = draw.words(rng, 5)
    logs = {f"data/{w}.log": draw.text([w] * 3) for w in words[:3]}
    others = {f"data/{w}.conf": f"{w}=1\n" for w in words[3:]}
    name = rng.choice(["logs.tar.gz", "backup.tar.gz", "old.tgz"])
    listing = "\\n".join(f"{w}.log" for w in sorted(words[:3]))

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("see what is in data", "ls data")
        yield from a.attempt(
            "pack the logs from inside data",
            right=[
                f"(cd data && tar -czf ../{name} *.log)",
                f"cd data && tar -czf ../{name} *.log && cd ..",
            ],
            wrong=f"tar -czf {name} data/*.log",
            clue="the names in the archive begin with data/, they must not.",
            show=f"tar -tzf {name}",
            why="The names in the archive are to have no folder, so I pack inside data.",
        )
        yield from a.run("remove the packed logs", "rm data/*.log", "ls data")
        yield from a.finish(f"/app/{name} holds the logs and data has only the rest.")

    return family.Task(
        instruction=f"Pack the .log files of /app/data into /app/{name} (tar, gzip). The names in "
        f"the "
        "archive must not contain a folder. Then remove the .log files, and only these.",
        brief=f"the logs packed into {name}",
        files=logs | others,
        check=checks.every(
            checks.command(f'test "$(tar -tzf {name} | sort)" = "$(printf "{listing}")"'),
            checks.command(f'test "$(tar -xzOf {name} | wc -l)" = 9'),
            checks.files(others | dict.fromkeys(logs)),
        ),
        solve=solve,
    )


@family.register("file_operations", difficulty="medium")
def same_content(rng: random.Random) -> family.Task:
    """Find files whose content occurs more than once and delete all but the first by name."""
    words = sorted(draw.words(rng, 6))
    texts = [f"{draw.word(rng)} {i}\n" for i in range(4)]
    content = [texts[0], texts[1], texts[0], texts[2], texts[1], texts[3]]
    files = {f"pics/{w}.raw": c for w, c in zip(words, content, strict=True)}
    seen: set[str] = set()
    expected: dict = {}
    for name, text in sorted(files.items()):
        expected[name] = None if text in seen else text
        seen.add(text)

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("compute checksums", "cd pics", "sha256sum * | cut -c1-12,65-")
        sums = [x.split()[0] for x in screen.output_lines(obs) if ".raw" in x]
        num = len(sums) - len(set(sums))
        yield from a.attempt(
            "delete every file whose checksum came before",
            right=["sha256sum * | sort -k2 | awk 's[$1]++ {print $2}' | xargs rm"],
            wrong="sha256sum * | sort | uniq -d | awk '{print $2}' | xargs rm",
            clue="`uniq -d` compares whole lines, names included, so it finds nothing.",
            show="ls",
            seen=f"{num} of the checksums come again." if num else "",
        )
        yield from a.finish("Each content is there once.")

    return family.Task(
        instruction="Some files in /app/pics have the same content. Of each set of equal files "
        "keep "
        "the first by name and delete the others.",
        brief="no file twice",
        files=files,
        check=checks.every(
            checks.files(expected), checks.files({k: v for k, v in expected.items() if v is None})
        ),
        solve=solve,
    )


@family.register("file_operations")
def split_by_size(rng: random.Random) -> family.Task:
    """Split a list into numbered parts of n lines."""
    num, size = rng.randint(13, 22), rng.choice([4, 5, 6])
    names = [f"{draw.word(rng)}-{i}" for i in range(num)]
    parts = [names[i : i + size] for i in range(0, num, size)]

    def solve(a: solver.Agent) -> family.Play:
        obs = yield from a.run("count the lines", "wc -l list.txt", "head -n 2 list.txt")
        count = (screen.output_of(obs, "wc -l") or ["? list.txt"])[0].split()[0]
        options = "-d -a 2 --additional-suffix=.txt list.txt parts/part_"
        yield from a.attempt(
            f"split the list into parts of {size} lines",
            right=[("mkdir -p parts", f"split -l {size} {options}")],
            wrong=("mkdir -p parts", f"split -n l/{size} {options}"),
            mend=("rm parts/*", f"split -l {size} {options}"),
            clue=f"`-n` makes {size} parts, wanted are parts of {size} lines.",
            show="wc -l parts/*",
            seen=f"The list has {count} lines." if count.isdigit() else "",
        )
        yield from a.finish(f"/app/parts has the parts of {size} lines.")

    return family.Task(
        instruction=f"Split /app/list.txt into parts of {size} lines: /app/parts/part_00.txt, "
        "/app/parts/part_01.txt and so on. The last part may be shorter.",
        brief=f"the list in parts of {size} lines",
        files={"list.txt": draw.text(names)},
        check=checks.files(
            {f"parts/part_{i:02d}.txt": draw.text(p) for i, p in enumerate(parts)}
            | {f"parts/part_{len(parts):02d}.txt": None}
        ),
        solve=solve,
    )


@family.register("file_operations")
def largest_files(rng: random.Random) -> family.Task:
    """The names of the n largest files in a tree, largest first."""
    sizes = [
        rng.randint(900, 990),
        *rng.sample(range(1000, 2900), 3),
        *rng.sample(range(40, 800), 3),
    ]
    rng.shuffle(sizes)
    folders = ["", "a/", "a/b/", "c/", "", "c/", "a/"]
    names = [f + w + ".bin" for f, w in zip(folders, draw.words(rng, 7), strict=True)]
    num = rng.choice([2, 3])
    ranked = [n for _, n in sorted(zip(sizes, names, strict=True), reverse=True)][:num]

    def solve(a: solver.Agent) -> family.Play:
        yield from a.run("see the tree with sizes", "find tree -type f -size +0 -printf '%s %P\\n'")
        start = "find tree -type f -printf '%s %P\\n'"
        yield from a.attempt(
            f"take the {num} largest",
            right=[
                f"{start} | sort -nr | head -n {num} | cut -d' ' -f2 > largest.txt",
                f"{start} | sort -k1,1n | tail -n {num} | tac | awk '{{print $2}}' > largest.txt",
            ],
            wrong=f"{start} | sort -r | head -n {num} | cut -d' ' -f2 > largest.txt",
            clue="the sizes were sorted as text.",
            show=f"cat largest.txt; {start} | sort -n | tail -n {num}",
            why="Sizes need a numeric sort.",
        )
        yield from a.finish(f"/app/largest.txt has the {num} largest files.")

    return family.Task(
        instruction=f"Find the {num} largest files below /app/tree. Write their paths relative to "
        "/app/tree to /app/largest.txt, the largest first.",
        brief=f"the {num} largest files",
        files={f"tree/{n}": "x" * s for n, s in zip(names, sizes, strict=True)},
        check=checks.lines("largest.txt", ranked),
        solve=solve,
    )
