"""The page as a browser's parser sees it: well-formed, self-contained, hostile names only text."""

import base64
import html.parser
import io

import pytest
from matplotlib import figure

from data_pipeline.showing import report_page

HOSTILE = '"><script>alert(1)</script><img src=http://x.example/a onerror=alert(1)>\u202e\x1b[31m'
VOID = {"meta", "img", "br", "link", "input"}


def numbers(name, **changes):
    none = {"split": 0, "truncated": 0, "dropped": 0, "remainder": 0, "total": 0}
    return {
        "name": name, "first_step": 0, "rows": 1234, "padding_rows": 6, "steps": 155,
        "segments": 4321, "fill": 0.9987, "tokens_total": 9_876_543, "tokens_trained": 9_876_543,
        "tokens_carried": 11, "loss_tokens_total": 5_432_109, "loss_tokens": 5_432_109,
        "tokens_lost": none, "loss_tokens_lost": none, "attention_work": 123_456_789_012,
        "imbalance_max": 1.031, "imbalance_mean": 1.004, "imbalance_random_max": 1.777,
        "overlong": {"examples": 0, "turns_cut": 0, **none},
        "sources": {"a": {"tokens": 9_876_543, "epochs": 2.0}},
    } | changes  # fmt: skip


def report(*stages, **changes):
    top = {"plan_hash": "ab" * 32, "row_length": 2048, "global_batch_size": 8, "examples": 360}
    top["never_drawn"] = {"examples": 0, "tokens": 0, "loss_tokens": 0, "sources": []}
    return top | numbers("", **changes) | {"stages": list(stages or (numbers("mixed"),))}


@pytest.fixture(scope="module")
def png():
    file = io.BytesIO()
    figure.Figure(figsize=(8, 2)).savefig(file, format="png")
    return file.getvalue()


class Page(html.parser.HTMLParser):
    """Collects the elements and the text, and sees that every tag is closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(pictures, made, folder):
    report_page.write(pictures, made, folder)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return Page((folder / "report.html").read_text("utf-8"))


def test_every_picture_is_inside_with_a_text_in_its_place(png, tmp_path):
    names = ["fill", "balance", "curriculum", "funnel", "overlong"]
    page = page_of(dict.fromkeys(names, png), report(), tmp_path)
    images = page.all("img")
    assert len(images) == len(page.all("figcaption")) == len(names)
    for image in images:
        assert image["alt"] and (image["width"], image["height"]) == ("800", "200")
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data) == png


def test_nothing_is_loaded_and_nothing_runs(png, tmp_path):
    hostile = numbers(HOSTILE)
    options = {"first_sources": [HOSTILE], HOSTILE: "x"}
    made = report(hostile, hostile) | {"options": options, "specs": [{"name": HOSTILE}]}
    page = page_of({"fill": png}, made, tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert {tag for tag, _ in page.elements} <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "p", "code",
        "div", "b", "span", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "bdi",
        "details", "summary", "dl", "dt", "dd", "figure", "img", "figcaption",
    }  # fmt: skip
    for _, attributes in page.elements:
        assert not {"onerror", "onload", "href", "srcset"} & set(attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert "default-src 'none'" in page.all("meta")[2]["content"]
    assert "url(" not in text and "@import" not in text
    assert "\x1b" not in text and "\u202e" not in text
    shown = HOSTILE.replace("\x1b", "␛").replace("\u202e", "\\u202e")
    assert sum(shown in data for data in page.texts) >= 4


def test_the_figures_of_each_stage_and_of_all(png, tmp_path):
    first, second = numbers("first", rows=111, steps=3), numbers("second", rows=222, steps=7)
    page = page_of({}, report(first, second, rows=333, steps=10), tmp_path)
    cells = [text.strip() for text in page.texts if text.strip()]
    at = cells.index("all passes counted")
    assert cells[at + 1 : at + 4] == ["first", "second", "all"]
    for name, *expected in (["steps", "3", "7", "10"], ["rows", "111", "222", "333"]):
        at = cells.index(name, cells.index("all passes counted"))
        assert cells[at + 1 : at + 4] == expected
    assert {"9,876,543", "5,432,109", "99.87%", "1.031", "1.777", "ab" * 32} <= set(cells)


def test_one_stage_is_not_told_twice(png, tmp_path):
    page = page_of({}, report(), tmp_path)
    assert "mixed" not in page.texts


LOST = {"split": 0, "truncated": 40, "dropped": 0, "remainder": 1, "total": 41}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        (
            {"tokens_lost": LOST},
            ["Tokens lost: 40 (<0.001%), cut off", "Tokens lost: 1 (<0.001%), in"],
        ),
        (
            {"loss_tokens_lost": LOST | {"truncated": 54_321}},
            ["Loss tokens lost: 54,321 (1.000%)", "lost: 1 ("],
        ),
        (
            {"never_drawn": {"examples": 3, "tokens": 1234, "sources": ["b", "c\x1b"]}},
            ["Never drawn by any stage: 3 examples, 1,234 tokens; of these sources nothing is tra"],
        ),
        ({"fill": 0.98999}, ["Rows are filled to 99.00% only"]),
        ({"imbalance_max": 1.0501}, ["the busiest shard has 1.05 times"]),
        (
            {"overlong": {"examples": 3, "turns_cut": 2}},
            ["Cuts inside a turn that is longer than a row: 2;"],
        ),
    ],
)
def test_warnings_are_given_when_there_is_cause(changes, told):
    found = report_page.warnings(report(**changes))
    assert len(found) == len(told)
    assert all(part in warning for part, warning in zip(told, found, strict=True))


@pytest.mark.parametrize(
    ("fill", "shown"), [(1.0, "100%"), (0.999999, ">99.99%"), (0.9987, "99.87%"), (1e-9, "<0.01%")]
)
def test_only_what_is_whole_is_100_percent(tmp_path, fill, shown):
    assert shown in page_of({}, report(fill=fill), tmp_path).texts
