"""Write tests/goldens/terminus_replies.jsonl: replies, and what Harbor's own parsers say of them.

    uv venv /tmp/harbor && uv pip install --python /tmp/harbor/bin/python harbor
    /tmp/harbor/bin/python tests/make_terminus_goldens.py

Harbor is an oracle, not a dependency: it is run here alone, from an environment of its own.
"""

import importlib.metadata
import itertools
import json
import pathlib

from harbor.agents.terminus_2 import terminus_json_plain_parser, terminus_xml_plain_parser

GOOD = {
    "analysis": "A fresh shell.",
    "plan": "Look around.",
    "commands": [{"keystrokes": "ls -la\n", "duration": 0.1}],
    "task_complete": False,
}


def with_fields(**fields) -> str:
    return json.dumps({k: v for k, v in (GOOD | fields).items() if v is not ...})


def with_commands(*commands, **fields) -> str:
    return with_fields(commands=list(commands), **fields)


def json_replies() -> list[str]:
    good, pretty = json.dumps(GOOD), json.dumps(GOOD, indent=2)
    replies = [good, pretty, f"\n\n{pretty}\n", f"Sure:\n{good}", f"{good}\nDone.", f"a {good} b"]
    replies += [
        f"```json\n{pretty}\n```",
        good + good,
        f"{good} {{",
        "",
        "  \n",
        "null",
        "[]",
        "{}",
    ]
    replies += ["42", '"text"', "I am done.", "[1, 2]", "{", "}", "{}}", "{{}}", f"[{good}]"]
    # Cut short, as an output limit does it.
    replies += [good[:cut] for cut in range(4, len(good), 9)]
    replies += [pretty[:-1], pretty[:-2] + "]", good.replace('"plan"', "plan"), good + "}}"]
    replies += [good.replace("}]", "},]"), good.replace('"', "'"), good.replace("false", "False")]
    replies += [f"}} {good}", f'say "{{" {good}', f'"{good}', f"\\{good}", f"{{x}} {good}"]
    replies += [f"{{{{{good}", good[:-1], f"<b>{good}</b>", f"{{'a': {good}}}", f'{{"a": {good}}}']
    for name in GOOD:
        replies += [with_fields(**{name: value}) for value in (..., None, 7, "", [], {}, True)]
    for order in itertools.permutations(GOOD):
        replies.append(json.dumps({name: GOOD[name] for name in order}))
    for value in ("true", "TRUE", "1", "yes", "Yes", "no", "false", "0", 1, 0, 1.5, ["true"]):
        replies.append(with_fields(task_complete=value))
        replies.append(with_commands({"duration": 1}, task_complete=value))
    for value in (0, 1, 60, 61, 1e9, -1, True, None, "1", "soon", [], float("inf")):
        replies.append(with_commands({"keystrokes": "make\n", "duration": value}))
    for keys in (
        "",
        "ls",
        "ls\n",
        "C-c",
        "C-d",
        "C-c\n",
        "echo C-c\n",
        "{}\n",
        '"{"\n',
        "\\",
        None,
    ):
        replies.append(with_commands({"keystrokes": keys, "duration": 1}))
        replies.append(with_commands({"keystrokes": keys}, {"keystrokes": "pwd\n", "duration": 1}))
    replies += [with_commands(*commands) for commands in (
        [], ["ls"], [None], [{}], [{"keystrokes": ["ls"]}], [GOOD], [{"keystrokes": "a\n"}, 3],
        [{"keystrokes": "a\n", "duration": 1, "why": "x"}],
        [{"keystrokes": "a\n", "duration": 1, "why": "x", "is_blocking": True, "timeout": 3}],
        [{"keystrokes": "awk '{print $1}' f | tr { [\n", "duration": 1}],
        [{"keystrokes": "cat <<'E' > a.json\n{\"a\": {\"b\": \"}\"}}\nE\n", "duration": 1}],
    )]  # fmt: skip
    return replies


def xml(*commands: str, analysis="A.", plan="P.", tail="", head="") -> str:
    return (
        f"{head}<response>\n<analysis>{analysis}</analysis>\n<plan>{plan}</plan>\n<commands>\n"
        + "\n".join(commands)
        + f"\n</commands>\n{tail}</response>"
    )


LS = '<keystrokes duration="0.1">ls -la\n</keystrokes>'
DONE = "<task_complete>true</task_complete>\n"


def xml_replies() -> list[str]:
    good = xml(LS)
    replies = [good, xml(LS, LS), xml(LS, tail=DONE), xml(), xml(tail=DONE), f"Sure. {good}"]
    replies += [f"{good} Done.", good + good, f"a{good}b{good}", good.replace("</response>", "")]
    replies += ["", "text", "<response></response>", "<response> </response>", "<response>", "{}"]
    replies += [xml(LS, tail=f"<task_complete>{value}</task_complete>") for value in (
        "TRUE", "True", " true ", "false", "", "yes", "1")]  # fmt: skip
    replies += [xml(LS, tail="<task_complete/>"), xml(LS, tail=DONE + DONE)]
    for name in ("analysis", "plan", "commands"):
        whole = good[good.index(f"<{name}>") : good.index(f"</{name}>") + len(name) + 3]
        for tail in ("", DONE):
            for other in ("", f"<{name}/>", f"<{name} />", f"<{name}></{name}>", whole + whole):
                replies.append(good.replace(whole, other + tail))
    parts = ["<analysis>A</analysis>", "<plan>P</plan>", f"<commands>{LS}</commands>"]
    replies += [f"<response>{''.join(p)}</response>" for p in itertools.permutations(parts)]
    replies += [f"<response>{''.join(p)}</response>" for p in itertools.combinations(parts, 2)]
    for attributes in ("", ' duration="5"', " duration='5'", " duration=5", ' duration="x"',
                       ' duration="61"', ' duration="-1"', ' duration="1" wait="2"', ' delay="2"',
                       " a=b", ' duration = "2"', ' duration=""', ' duration="1e3"'):  # fmt: skip
        replies.append(xml(f"<keystrokes{attributes}>make\n</keystrokes>"))
    for keys in ("ls", "", "C-c", "C-d\n", "echo C-c\n", "a &lt; b\n", "a && b\n", "a &amp;&amp; b",
                 "echo '&gt;&quot;&apos;'\n", "dir\\r\\n", "cat < in > out\n"):  # fmt: skip
        replies.append(xml(f'<keystrokes duration="1">{keys}</keystrokes>'))
        replies.append(xml(f'<keystrokes duration="1">{keys}</keystrokes>', LS))
    replies += [xml(LS, tail="<note>n</note>\n"), xml("ls -la"), xml("<command>ls</command>")]
    replies += [
        xml(LS, tail="<thought><deep>x</deep></thought>"),
        xml('<keystrokes duration="1"/>'),
    ]
    replies += [xml(LS).replace("</commands>", ""), xml(LS[:-13]), xml(LS, tail="<a/><b>1</b>")]
    return replies


def main() -> None:
    parsers = {
        "json": terminus_json_plain_parser.TerminusJSONPlainParser(),
        "xml": terminus_xml_plain_parser.TerminusXMLPlainParser(),
    }
    path = pathlib.Path(__file__).parent / "goldens" / "terminus_replies.jsonl"
    version = importlib.metadata.version("harbor")
    lines = []
    for variant, replies in (("json", json_replies()), ("xml", xml_replies())):
        for reply in dict.fromkeys(replies):
            found = parsers[variant].parse_response(reply)
            said = {
                "variant": variant,
                "reply": reply,
                "commands": [[c.keystrokes, c.duration] for c in found.commands],
                "is_complete": bool(found.is_task_complete),
                "error": found.error,
                "warnings": [w.removeprefix("- ") for w in found.warning.split("\n") if w],
                "harbor": version,
            }
            # "Unknown fields" come from a set, in another order each time.
            said["warnings"] = [_sorted_fields(warning) for warning in said["warnings"]]
            said["warnings"].sort(key=lambda w: (w.startswith(("Missing <", "Unknown tag")), w))
            lines.append(json.dumps(said, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), "utf-8")


def _sorted_fields(warning: str) -> str:
    before, mark, fields = warning.partition("Unknown fields: ")
    return before + mark + ", ".join(sorted(fields.split(", "))) if mark else warning


if __name__ == "__main__":
    main()
