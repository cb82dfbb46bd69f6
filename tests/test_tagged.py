"""Replies of teachers: what is forgiven, what is refused, and exact contents of files."""

import base64
import json

import pytest
from tagged_replies import PROMPT, SECTIONS, TESTS, reply

from data_pipeline.taskgen import tagged


def refused(text, **options):
    with pytest.raises(ValueError) as caught:
        tagged.parse(text, **options)
    return str(caught.value)


GOOD = tagged.Draft(
    instruction=PROMPT + "\n",
    tests=TESTS,
    weights={"test_sum": 3.0, "test_there": 0.5},
    info={"title": "Sum", "traps": '["a", 1]', "hard": "true"},
    files={"in.csv": b"x\n3\n4\n"},
    test_requirements=(),
    solution=SECTIONS["solution"] + "\n",
)


def test_a_plain_reply():
    assert tagged.parse(reply(), takes_solution=True) == GOOD
    assert tagged.parse(reply()).solution == ""  # was not asked for
    assert tagged.parse(reply(leave_out=["solution"])).weights == GOOD.weights


def wrap_each(before, after):
    wrapped = {name: f"{before}\n{text}\n{after}" for name, text in SECTIONS.items()}
    wrapped["files"] = SECTIONS["files"]
    return reply(**wrapped)


def indented():
    lines = {n: "\n".join(f"    {x}" for x in t.split("\n")) for n, t in SECTIONS.items()}
    return reply(**(lines | {"files": SECTIONS["files"]}))


@pytest.mark.parametrize(
    "text",
    [
        f"Certainly! Here is <b>one</b> task:\n\n{reply()}\n\nI hope that `<prompt>` is good.",
        f"```xml\n{reply()}\n```",
        f"<response>\n{reply()}\n</response>",
        f"<think>\nSay <prompt>\nfoo\n</prompt>\n</think>\n\n{reply()}",
        f"\n\n<thinking>hm </thinking>{reply()}",
        f"I may write\n<prompt>\nfoo\n</prompt>\n</think>\n{reply()}",
        reply().replace("\n", "\r\n").replace("x\r\n3\r\n4\r\n", "x\n3\n4\n"),
        wrap_each("<![CDATA[", "]]>"),
        wrap_each("```", "```"),
        indented(),
        reply().replace("<tests>", '  <tests lang="python">').replace("</tests>", "</tests>  "),
        "".join(f"<{name}>{text}</{name}>" for name, text in SECTIONS.items()),
        "\n".join(f"<{name}>{text}</{name}>" for name, text in reversed(SECTIONS.items())),
        reply(test_requirements="\n"),
        reply(test_requirements="none"),
        reply(test_requirements="# nothing"),
        reply().replace("<test_requirements>\n\n</test_requirements>", "<test_requirements/>"),
    ],
)
def test_what_is_forgiven(text):
    assert tagged.parse(text, takes_solution=True) == GOOD


def test_fences_with_their_languages():
    names = {"prompt": "markdown", "tests": "python", "weights": "json", "solution": "bash"}
    fenced = {name: f"```{lang}\n{SECTIONS[name]}\n```" for name, lang in names.items()}
    assert tagged.parse(reply(**fenced), takes_solution=True) == GOOD


@pytest.mark.parametrize(
    "prompt",
    [
        "```\nx,y\n```\nis the input; the output is\n```\nz\n```",
        "```csv\nx,y\n```",
        "Do it\n```\nx\n```",
        "~~~\na\n```\nb\n~~~ c",
    ],
)
def test_an_instruction_may_hold_fences_of_its_own(prompt):
    assert tagged.parse(reply(prompt=prompt)).instruction == prompt + "\n"


def test_an_instruction_in_a_fence_with_fences_inside():
    inner = "Read\n```\nx\n```\nand go."
    assert tagged.parse(reply(prompt=f"```markdown\n{inner}\n```")).instruction == inner + "\n"


def test_sections_hold_tags_of_others():
    """Between its tags a section may speak of any tag."""
    tests = TESTS + 'TEXT = """\n<prompt>\n<files>\n</prompt> in </tests> a line\n<think>\n"""\n'
    files = '<file path="a.xml">\n<tests>\n<weights>\n</weights>\n</think>\n<![CDATA[x]]>\n</file>'
    draft = tagged.parse(reply(tests=tests, files=files))
    assert draft.tests == tests
    assert draft.files == {"a.xml": b"<tests>\n<weights>\n</weights>\n</think>\n<![CDATA[x]]>\n"}


def test_nothing_is_unescaped():
    tests = TESTS.replace('"7\\n"', r'"&lt;\t\\"')
    files = '<file path="a">\n&amp;\\n</file>'
    draft = tagged.parse(reply(tests=tests, files=files))
    assert draft.tests == tests and draft.files == {"a": b"&amp;\\n"}


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ("", b""),
        ("\n", b""),
        ("x", b"x"),
        ("\nx", b"x"),
        ("\nx\n", b"x\n"),
        ("\n\nx\n\n", b"\nx\n\n"),
        ("  x  ", b"  x  "),
        ("\r\nx\r\ny\r\n", b"x\r\ny\r\n"),
        ("\n\tå\n", "\tå\n".encode()),
        ("\nof </file> it\n", b"of </file> it\n"),
        ("\n<![CDATA[a</b>]]>\n", b"a</b>"),
        ("<![CDATA[\na\n]]>", b"a\n"),
        ("<![CDATA[a]]]]><![CDATA[>b]]>", b"a]]>b"),
        ("\n<![CDATA[a ]]> b\n", b"<![CDATA[a ]]> b\n"),
        ("\n```json\n{}\n```\n", b"{}\n"),
        ("\n```\nnot\n```\nall\n", b"```\nnot\n```\nall\n"),
    ],
)
def test_contents_of_files_are_exact(body, content):
    files = f'<file path="d/a.dat">{body}</file>\n<file path="b">\nlast\n</file>'
    assert tagged.parse(reply(files=files)).files == {"d/a.dat": content, "b": b"last\n"}


def test_a_markdown_file_keeps_its_fences():
    draft = tagged.parse(reply(files='<file path="a.md">\n```\nx\n```\n</file>'))
    assert draft.files == {"a.md": b"```\nx\n```\n"}


def test_binary_files():
    data = bytes(range(256)) * 5
    lines = base64.encodebytes(data).decode()
    files = f'<file path="a.bin" encoding="base64">\n{lines}</file><file path=\'b\'/>'
    assert tagged.parse(reply(files=files)).files == {"a.bin": data, "b": b""}
    for bad in ("@@@@", "QQ", "QUJD=A", "é"):
        told = refused(reply(files=f'<file path="a" encoding="base64">{bad}</file>'))
        assert "<file path='a'> is not base64" in told


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "is not a relative path"),
        ("/etc/passwd", "is not a relative path"),
        ("/app/a.csv", "paths are relative to /app"),
        ("../a", "`..`"),
        ("a/../../b", "`..`"),
        ("./a", "`.`"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("a\\b", "backslash"),
        ("C:\\a", "backslash"),
        ("a\x07b", "control character"),
        ("a\tb", "control character"),
        ("a\u202eb", "invisible character"),
        ("a\u00a0/b", "invisible character"),
        ("a /b", "a space at the end"),
        ("a" * 300, "longer than"),
        ("a/" * 17 + "a", "more than 16 parts"),
        ("r/.git/config", "repository's own folder"),
        ("r/.GIT/hooks/post-checkout", "repository's own folder"),
        ("test_outputs.py", "reserved"),
        ("x/Solve.sh", "reserved"),
        ("task.toml", "reserved"),
    ],
)
def test_paths_that_are_refused(path, told):
    found = refused(reply(files=f'<file path="{path}">\nx\n</file>'))
    assert told in found and "<file path=" in found


@pytest.mark.parametrize("path", ["a", "-rf", "a b.csv", "~/x", ".env", "données/東京.csv", "a..b"])
def test_paths_that_are_taken(path):
    assert tagged.parse(reply(files=f'<file path="{path}">x</file>')).files == {path: b"x"}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ('<file path="a">x</file><file path="a">y</file>', "'a'> is there twice"),
        ('<file path="a">x</file><file path="a/b">y</file>', "is a file and the folder of 'a/b'"),
        ('<file path="a/b/c">x</file>\n<file path="a/b">y</file>', "the folder of 'a/b/c'"),
        ('some words\n<file path="a">x</file>', 'expected <file path="...">, found'),
        ('<file path="a">x</file> and <file path="b">y</file>', "not closed"),
        ('<file path="a">x</file>\nand more', "found 'and more'"),
        ('<file path="a">\nx\n<file path="b">\ny\n</file>', "'a'> is not closed"),
        ('<file path="a">\nx', "'a'> is not closed"),
        ('<file name="a">x</file>', "its attributes are path"),
        ('<file path="a" mode="755">x</file>', "its attributes are path"),
        ('<file path="a" encoding="gzip">x</file>', 'encoding="base64"'),
        ('<file path="a">x\x00y</file>', "control character '\\x00'"),
        ('<file path="a">\x1b[31m</file>', "control character '\\x1b'"),
        ("<file>x</file>", "is not a relative path"),
    ],
)
def test_files_that_are_refused(files, told):
    assert told in refused(reply(files=files))


@pytest.mark.parametrize("name", list(SECTIONS))
def test_each_tag_is_there_once(name):
    assert f"<{name}> absent" in refused(reply(leave_out=[name]), takes_solution=True)
    twice = reply() + f"\n<{name}>\n{SECTIONS[name]}\n</{name}>\n"
    assert f"<{name}> is there twice" in refused(twice, takes_solution=True)
    open_ = reply().replace(f"</{name}>", "")
    assert f"<{name}> is not closed" in refused(open_, takes_solution=True)


@pytest.mark.parametrize("text", ["", "I cannot help with that.", "<prompt", "<think>and on", "</"])
def test_replies_without_a_task(text):
    assert "absent" in refused(text) or "ends before </think>" in refused(text)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "  \n "}, "<prompt> is empty"),
        ({"prompt": "Do \x1b[8mthis\x1b[0m."}, "<prompt> holds the unprintable character '\\x1b'"),
        ({"prompt": "a \u202e b"}, "<prompt> holds the unprintable"),
        ({"tests": "def test_a(:\n"}, "<tests> is not Python: line 1"),
        ({"tests": "def check(): pass"}, "<tests> defines no function test_"),
        ({"tests": "x = 1\nif x:\n    y = 'def test_a(): pass'"}, "<tests> defines no function"),
        ({"tests": "Here are the tests:\n" + TESTS}, "<tests> is not Python"),
        ({"tests": "(" * 5000}, "<tests> is not Python"),
        ({"tests": "def test_a():\n    return " + "-" * 60_000 + "1"}, "<tests> is not Python"),
        ({"tests": "def test_a():\n    x" + ".x" * 50_000}, "<tests> is not Python"),
        ({"weights": "test_sum: 1"}, "<weights> is not JSON"),
        ({"weights": "[1]"}, "<weights> must be a JSON object"),
        ({"weights": '{"test_sum": 1, "test_sum": 2}'}, "<weights> has the key 'test_sum' twice"),
        ({"weights": '{"test_other": 1}'}, "<weights> has 'test_other', which no test is called"),
        ({"weights": '{"test_sum": 0}'}, "<weights> gives 'test_sum' the weight 0;"),
        ({"weights": '{"test_sum": -1}'}, "the weight -1;"),
        ({"weights": '{"test_sum": "1"}'}, "a weight is a number above 0"),
        ({"weights": '{"test_sum": true}'}, "a weight is a number above 0"),
        ({"weights": '{"test_sum": null}'}, "a weight is a number above 0"),
        ({"weights": '{"test_sum": NaN}'}, "a weight is a number above 0"),
        ({"weights": '{"test_sum": 1e999}'}, "a weight is a number above 0"),
        ({"weights": f'{{"test_sum": 1{"0" * 4000}}}'}, "a weight is a number above 0"),
        ({"weights": f'{{"test_sum": 1{"0" * 9000}}}'}, "<weights> "),
        ({"weights": "[" * 9000}, "<weights> is nested too deeply"),
        ({"info": "{"}, "<info> is not JSON"),
        ({"info": '{"A Key": 1}'}, "<info> has the key 'A Key'"),
        ({"test_requirements": "numpy"}, "<test_requirements> has the line 'numpy'"),
        ({"test_requirements": "numpy>=1"}, "each is name==version"),
        ({"test_requirements": "a==1 --index-url x"}, "each is name==version"),
        ({"test_requirements": "a==1; rm -rf /"}, "each is name==version"),
        ({"test_requirements": "a==$(id)"}, "each is name==version"),
        ({"test_requirements": "-r a.txt"}, "each is name==version"),
        ({"test_requirements": "a @ file:///x"}, "each is name==version"),
        ({"test_requirements": "\n".join(f"a{i}==1" for i in range(11))}, "at most 10"),
        ({"solution": " \n "}, "<solution> is empty"),
    ],
)
def test_sections_that_are_refused(changes, told):
    assert told in refused(reply(**changes), takes_solution=True)


def test_requirements_and_a_script_without_its_first_line():
    text = reply(test_requirements="numpy==1.24.2\n\nPy_Yaml.x==6.0rc1+local", solution="true")
    draft = tagged.parse(text, takes_solution=True)
    assert draft.test_requirements == ("numpy==1.24.2", "Py_Yaml.x==6.0rc1+local")
    assert draft.solution == "#!/bin/bash\ntrue\n"


def test_weights_of_methods():
    tests = "class TestSum:\n    def test_a(self): assert 0\n\n\ndef test_b(): assert 0\n"
    for name in ("TestSum::test_a", "test_a"):
        draft = tagged.parse(reply(tests=tests, weights=json.dumps({name: 2})))
        assert draft.weights == {name: 2.0}
    assert tagged.parse(reply(tests=tests, weights="{}")).weights == {}


def test_all_faults_are_told_at_once():
    told = refused(
        reply(prompt="", weights='{"test_x": 0}', info="", files='<file path="/x">x</file>')
    )
    for part in ("<prompt>", "'test_x', which", "the weight 0", "<info>", "path='/x'"):
        assert part in told
    many = "".join(f'<file path="/{i}">x</file>' for i in range(60))
    assert len(refused(reply(files=many))) < 3100


LIMITS = tagged.SizeLimits(
    reply=4000, prompt=100, tests=400, solution=120, weights=90, info=90, test_requirements=30,
    file=10, all_files=25, num_files=3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "é" * 50 + "x"}, "<prompt> is larger than 100 bytes"),
        ({"tests": TESTS + "#" * 400}, "<tests> is larger than 400 bytes"),
        ({"solution": "#" * 200}, "<solution> is larger than 120 bytes"),
        ({"weights": " " * 100}, "<weights> is larger than 90"),
        ({"info": " " * 100}, "<info> is larger than 90"),
        ({"test_requirements": "#" * 40}, "<test_requirements> is larger than 30"),
        ({"files": '<file path="a">12345678901</file>'}, "'a'> is larger than 10 bytes"),
        ({"files": f'<file path="a">{"1" * 21}</file>'}, "'a'> is larger than 10 bytes"),
        (
            {"files": f'<file path="a" encoding="base64">{"QUFB" * 4}</file>'},
            "'a'> is larger than 10 bytes",
        ),
        (
            {"files": "".join(f'<file path="{c}">123456789</file>' for c in "abc")},
            "<files> is larger than 25 bytes in all",
        ),
        (
            {"files": "".join(f'<file path="{c}">1</file>' for c in "abcd")},
            "<files> holds more than 3 files",
        ),
        ({"files": " " * 4000}, "the reply is larger than 4,000 bytes"),
    ],
)
def test_sizes_over_the_limit(changes, told):
    small = {"solution": "true", "info": "{}"}
    assert told in refused(reply(**(small | changes)), takes_solution=True, limits=LIMITS)


def test_sizes_at_the_limit():
    files = '<file path="a">1234567890</file><file path="b">1234567890</file>'
    text = reply(prompt="é" * 49, info="{}", solution="true", files=files)
    assert len(tagged.parse(text, limits=LIMITS).files) == 2


def test_half_of_a_surrogate_pair():
    assert "surrogate" in refused(reply(prompt="a \ud800 b"))
