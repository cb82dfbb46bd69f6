"""The taxonomy: large, organised as in the paper, without near-duplicates; its environments."""

import collections
import itertools
import re
import shutil
import subprocess

import pytest

from data_pipeline.taskgen import domains
from data_pipeline.taskgen.taxonomy import taxonomy

# arXiv 2602.21193, Table 10, typed from the paper. It prints no types for dependency management.
TABLE_10 = {
    "security": "Systems, Data Processing, Web Security, Algorithmic, Testing",
    "software_engineering": "Algorithmic, Systems, Data Processing, Web Security, Testing, "
    "Mathematical",
    "file_operations": "File I/O, Navigation, Data Parsing, Transformation, Archives, Resources, "
    "Network",
    "data_querying": "Query Construction, Data Comprehension, Graph Processing, Result Processing",
    "data_science": "Systems, Data Processing, Algorithmic, Mathematical, Testing, Web Security",
    "debugging": "Systems, Debugging, Testing, Algorithmic, Data Processing, Mathematical",
    "scientific_computing": "Data Processing, Algorithmic, Mathematical, Systems, Testing, "
    "Statistical, Web Security",
    "data_processing": "Data I/O, Manipulation, String/Text, Algorithmic, Mathematical, "
    "Time Series, Systems, Testing",
    "system_administration": "Filesystem, Process/Service, Network, Configuration, Deployment, "
    "Data Processing, Security, Shell Scripting, Testing, Algorithmic",
}
DOMAINS = {*TABLE_10, "dependency_management"}

# Two skills are near-duplicates from any of these on. The likest pair has 0.24, 0.13 and 0.32.
MAX_WORD_STEMS = 0.30  # Jaccard similarity of the words, less small words and endings
MAX_SHINGLES = 0.20  # Jaccard similarity of the pairs of neighbouring words
MAX_EDITS = 0.45  # 1 - word edits / words of the longer one
SMALL_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "a an the of and or by in on to with for that which from its it is are be at as their no "
        "not without under into one each every all so than where when what them they has have "
        "given between after before both through out up off only same write find",
    )
)


def words_of(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def stems(text):
    return {word[:5] for word in words_of(text) if word not in SMALL_WORDS}


def shingles(text):
    words = words_of(text)
    return set(itertools.pairwise(words))


def jaccard(one, other):
    return len(one & other) / len(one | other)


def edit_similarity(one, other, *, enough):
    """1 - edit distance over words / words of the longer; 0 where it cannot reach `enough`."""
    longest = max(len(one), len(other))
    shared = (collections.Counter(one) & collections.Counter(other)).total()
    if shared / longest < enough:  # edits are at least the words that are not shared
        return 0.0
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        last, row = row, [i]
        for j, against in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (word != against)))
    return 1 - row[-1] / longest


def near_duplicates(texts):
    """Pairs of ids that say nearly the same, with what says so."""
    known = {name: (words_of(t), stems(t), shingles(t)) for name, t in texts.items()}
    found = []
    for (a, one), (b, other) in itertools.combinations(known.items(), 2):
        edits = edit_similarity(one[0], other[0], enough=MAX_EDITS)
        likeness = (jaccard(one[1], other[1]), jaccard(one[2], other[2]), edits)
        limits = (MAX_WORD_STEMS, MAX_SHINGLES, MAX_EDITS)
        if any(like >= limit for like, limit in zip(likeness, limits, strict=True)):
            found.append((a, b, likeness))
    return found


@pytest.fixture(scope="module")
def texts():
    loaded = taxonomy.load()
    return {skill.id: skill.text for d in loaded.domains.values() for skill in d.skills}


def test_every_domain_has_the_papers_types_and_enough_skills():
    loaded = taxonomy.load()
    assert set(loaded.domains) == DOMAINS
    for name, domain in loaded.domains.items():
        if name in TABLE_10:
            assert ", ".join(domain.types.values()) == TABLE_10[name]
        counts = collections.Counter(skill.type for skill in domain.skills)
        assert counts.keys() == domain.types.keys() and min(counts.values()) >= 3, name
        assert len(domain.skills) >= 22, name
        # No type is more than a third of its domain.
        assert max(counts.values()) <= len(domain.skills) / 3 + 1, name


def test_ids_are_unique_and_name_their_skill(texts):
    loaded = taxonomy.load()
    assert len(texts) == sum(len(domain.skills) for domain in loaded.domains.values())
    ids = {skill_id: set(skill_id.split("-")) for skill_id in texts}
    alike = [
        (a, b) for (a, x), (b, y) in itertools.combinations(ids.items(), 2) if jaccard(x, y) > 0.5
    ]
    assert alike == []


def test_no_two_skills_are_near_duplicates(texts):
    assert near_duplicates(texts) == []


PARAPHRASES = {
    "null-safe-anti-join": "List all customers with no order in some period through an anti-join "
    "which stays right though keys on either side are NULL.",
    "repeating-key-xor-break": "Using letter frequencies and key-length statistics, break a text "
    "under repeating-key XOR to key and plaintext.",
    "lru-cache-with-lifetimes": "Implement an LRU cache with per-entry lifetimes, "
    "least-recently-used eviction and an injected clock.",
    "swap-safe-bulk-rename": "Rename lots of files by a mapping with swaps and cycles so that none "
    "is overwritten, with an undo log.",
}


def test_paraphrases_would_be_noticed(texts):
    new = {f"new-{skill_id}": text for skill_id, text in PARAPHRASES.items()}
    found = [pair[:2] for pair in near_duplicates(texts | new)]
    assert sorted(found) == sorted((skill_id, f"new-{skill_id}") for skill_id in PARAPHRASES)


def test_skills_need_neither_network_nor_a_person(texts):
    outside = re.compile(
        r"https?:|\b(internet|online|cloud|github|docker|kubernetes|aws|browser|screenshot|"
        r"slack|e-?mail an|ask the user|manually)\b",
        re.IGNORECASE,
    )
    assert [text for text in texts.values() if outside.search(text)] == []


def good_toml(**changes):
    parts = {
        "head": 'title = "T"\nrole = "R"\nchecking = "C"\nfocus = ["f"]\n',
        "types": "[types]\n" + "".join(f'kind_{c} = "K"\n' for c in "abcd"),
        "skills": "".join(
            f"[skills.kind_{c}]\n"
            + "".join(
                f'{c}-{w} = "Do the thing called {c} and {w} for each of two or three."\n'
                for w in ("one", "two", "three", "four", "five", "six")
            )
            for c in "abcd"
        ),
    }
    return "".join((parts | changes).values())


def test_a_folder_of_ones_own(tmp_path):
    (tmp_path / "gardening.toml").write_text(good_toml())
    domain = taxonomy.load(tmp_path).domain("gardening")
    assert len(domain.skills) == 24 and domain.skill("b-two").type == "kind_b"
    with pytest.raises(ValueError, match="'fishing' is none of gardening"):
        taxonomy.load(tmp_path).domain("fishing")
    with pytest.raises(ValueError, match="gardening has no skill 'x-y'"):
        domain.skill("x-y")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head": 'title = "T"\nrole = ""\nfocus = []\n'}, "checking is absent"),
        ({"head": 'title = 3\nrole = "r"\nchecking = "c"\nfocus = ["f"]\n'}, "title must be"),
        ({"head": 'title="T"\nrole="R"\nchecking="C"\nfocus=["f"]\nx=1\n'}, "x is unknown"),
        ({"types": '[types]\nkind_a = "K"\n'}, "type kind_b must be under"),
        ({"types": '[types]\n"Kind A" = "K"\n'}, "type Kind A must be a text"),
        ({"skills": '[skills]\nkind_a = "text"\n'}, "must be a table of id = sentence"),
        ({"skills": '[skills.kind_a]\na-b = "Too short."\n'}, "1 skills; a domain has at least 22"),
        ({"skills": '[skills.kind_a]\na-b = "Too short."\n'}, "has 2 words"),
        ({"skills": '[skills.kind_a]\nA_B = "Too short."\n'}, "its id must match"),
        ({"skills": '[skills.kind_a]\na-b = "no capital here."\n'}, "one sentence, with a capital"),
        ({"skills": '[skills.kind_a]\na-b = "Two.\\nLines."\n'}, "a text of one line"),
        ({"skills": "[skills.kind_a]\na-b = 7\n"}, "must be a text of one line"),
        ({"head": "title = \n"}, "is not TOML"),
    ],
)
def test_faults_name_the_file_and_the_rule(tmp_path, changes, told):
    (tmp_path / "gardening.toml").write_text(good_toml(**changes))
    with pytest.raises(ValueError, match=r"gardening\.toml") as caught:
        taxonomy.load(tmp_path)
    assert told in str(caught.value)


def test_an_id_in_two_domains_and_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.toml file"):
        taxonomy.load(tmp_path / "absent")
    for name in ("gardening", "fishing"):
        (tmp_path / f"{name}.toml").write_text(good_toml())
    with pytest.raises(ValueError, match="skill a-one is in fishing and in gardening"):
        taxonomy.load(tmp_path)


def test_digests_change_with_a_file(tmp_path):
    (tmp_path / "gardening.toml").write_text(good_toml())
    before = taxonomy.digests(tmp_path)
    (tmp_path / "gardening.toml").write_text(good_toml() + "# more\n")
    assert before.keys() == taxonomy.digests(tmp_path).keys() == {"taxonomy/gardening.toml"}
    assert before != taxonomy.digests(tmp_path)


def instructions_of(dockerfile):
    """The instructions of a Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in dockerfile.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [line.split(None, 1) for line in joined.splitlines() if line.strip()]


def apt_packages(dockerfile):
    run = next(rest for word, rest in instructions_of(dockerfile) if word == "RUN")
    return run.partition("--no-install-recommends ")[2].partition("&&")[0].split()


def test_every_domain_has_a_pinned_environment():
    assert set(domains.NAMES) == DOMAINS
    with pytest.raises(ValueError, match="'fishing' must be one of data_proc"):
        domains.dockerfile("fishing")
    for name in domains.NAMES:
        text = domains.dockerfile(name)
        found = instructions_of(text)
        assert re.match(rf"# {name.replace('_', ' ').capitalize()}: .+\.\n", text), name
        assert [word for word, _ in found][:2] == ["ARG", "FROM"] and found[1][1] == "${BASE_IMAGE}"
        # A dated tag and the digest that it had.
        assert re.fullmatch(
            r"BASE_IMAGE=docker\.io/library/debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}",
            found[0][1],
        )
        assert found[-1] == ["WORKDIR", "/app"]
        pip = [rest for word, rest in found if word == "RUN" and rest.startswith("pip install ")]
        for requirement in " ".join(pip).replace("pip install", "").split():
            assert requirement == "--no-deps" or re.fullmatch(r"[a-z]+==[0-9.]+", requirement)
        assert {"git", "tmux", "asciinema", "python3", "python3-pytest"} <= {*apt_packages(text)}


def test_environments_differ_in_their_packages_alone():
    shapes = set()
    for name in domains.NAMES:
        before, mark, after = domains.dockerfile(name).partition("--no-install-recommends")
        after = re.sub(r"\nRUN pip .*\n", "", after[after.index("&&") :])
        shapes.add((before.partition("\n")[2], mark, after))
    assert len(shapes) == 1


@pytest.mark.skipif(
    shutil.which("apt-cache") is None
    or not subprocess.run(["apt-cache", "show", "tmux"], capture_output=True, check=False).stdout
    or "bookworm"
    not in subprocess.run(
        ["apt-cache", "policy"], capture_output=True, text=True, check=False
    ).stdout,
    reason="needs the package lists of Debian 12",
)
@pytest.mark.parametrize("name", domains.NAMES)
def test_debian_12_has_every_package(name):
    packages = apt_packages(domains.dockerfile(name))
    told = subprocess.run(
        ["apt-cache", "policy", *packages], capture_output=True, text=True, check=True
    ).stdout
    have = set(re.findall(r"^(\S+):\n(?:.*\n)  Candidate: [^(\s]", told, re.MULTILINE))
    assert have >= set(packages)
