"""Pages and charts."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from pixelwright.html import (
    MOST_POINTS,
    escape_markdown,
    image_data,
    line_chart,
    markdown_table,
    number_text,
    render,
    templates,
    thin,
)

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """The text of a page by tag; fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, str]] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.found.append((self.open[-1], data))

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.found if name == tag]


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


PAGE = """
{% extends "base.html.j2" %}
{% from "parts.html.j2" import box, figures, table %}
{% block content %}
{{ table((text,), [(text,), (12345.6,)]) }}
{{ box("ok", text, [text]) }}{{ figures([("x.png", text)], "chart") }}
{% endblock %}
"""


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip))
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    reader = read(templates().from_string(PAGE).render(title=text, note=text, text=text))
    for tag in ("title", "h1", "th", "strong", "li", "figcaption", "p"):
        assert "".join(reader.texts(tag)) == text
    assert "".join(reader.texts("td")) == text + "12,346"
    assert reader.images == [{"class": "chart", "src": "x.png", "alt": text}]


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="differences"):
        render("sweep", title="t", note="n")


def svg(address: str) -> str:
    kind, data = address.split(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode()


def test_charts_are_pictures_and_always_the_same_ones() -> None:
    pytest.importorskip("matplotlib")
    lines = {"a": ([1, 2, 3], [1.0, 10.0, 100.0]), "b": ([1, 2], [2.0, 3.0])}
    for chart in (
        lambda: line_chart(lines, "step", "loss", log=True, faint=["a"], marks={"limit": 5.0}),
        lambda: line_chart(lines, "FID", "IS", labels={"a": ["1", "2", "3"]}),
    ):
        assert svg(chart()).rstrip().endswith("</svg>") and chart() == chart()
    assert svg(line_chart(lines, "x", "y", log=True)) != svg(line_chart(lines, "x", "y"))
    zero = {"a": ([1, 2], [0.0, 1.0])}
    assert svg(line_chart(zero, "x", "y", log=True)).count("<path") > 0  # and no warning


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4 * MOST_POINTS))
def test_thinning_keeps_the_ends_and_the_mean(values: list[float]) -> None:
    xs, ys = thin(range(len(values)), values)
    assert len(xs) == len(ys) <= MOST_POINTS
    assert min(values) - 1e-6 <= min(ys) and max(ys) <= max(values) + 1e-6
    if len(values) <= MOST_POINTS:
        assert ys == values


def test_numbers_and_markdown() -> None:
    assert [number_text(v) for v in (1234567, 12345.6, 1.23456, 0.000012345)] == [
        "1,234,567",
        "12,346",
        "1.235",
        "1.234e-05",
    ]
    assert markdown_table(("a", "b"), [("x|y", 1.5)]) == "| a | b |\n| --- | --- |\n| x\\|y | 1.5 |\n"
    assert number_text(True) == "True" and number_text("text") == "text"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b<script>", r"a\|b&lt;script&gt;"),
        ("[here](http://x.y) `code` **bold**", r"\[here\](http://x.y) \`code\` \*\*bold\*\*"),
        ("_x_ a_b", r"\_x\_ a_b"),
        ("&lt;", "&amp;lt;"),
        ("two\n\n# lines", "two # lines"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped
    assert markdown_table((text,), [(text,)]) == f"| {escaped} |\n| --- |\n| {escaped} |\n"


def test_a_picture_inside(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    assert image_data(tmp_path / "a.png") == "data:image/png;base64,YWJj"
