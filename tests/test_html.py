"""Pages and charts."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelwright.html import (
    MOST_POINTS,
    Page,
    bar_chart,
    image_data,
    line_chart,
    markdown_table,
    number_text,
    scatter_chart,
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


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip))
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    page = Page(text, note=text)
    page.heading(text)
    page.table((text,), [(text,)])
    page.box("ok", text, [text])
    page.figures([("x.png", text)])
    reader = read(page.html())
    for tag in ("title", "h1", "h2", "th", "td", "strong", "li", "figcaption", "p"):
        assert "".join(reader.texts(tag)) == text
    assert reader.images == [{"class": "", "src": "x.png", "alt": text}]


def svg(address: str) -> str:
    kind, data = address.split(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode()


def test_charts_are_pictures_and_always_the_same_ones() -> None:
    pytest.importorskip("matplotlib")
    lines = {"a": ([1, 2, 3], [1.0, 10.0, 100.0]), "b": ([1, 2], [2.0, 3.0])}
    for chart in (
        lambda: line_chart(lines, "step", "loss", log=True, faint=["a"], marks={"limit": 5.0}),
        lambda: scatter_chart(lines, "FID", "IS", {"a": ["1", "2", "3"]}),
        lambda: bar_chart(["x", "y", "z"], {"p": [1, 2, 3], "q": [3, 2, 1]}, "share"),
    ):
        assert svg(chart()).rstrip().endswith("</svg>")
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


def test_a_picture_inside_and_a_page_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    assert image_data(tmp_path / "a.png") == "data:image/png;base64,YWJj"
    page = Page("t")
    page.write(tmp_path / "p.html")
    assert (tmp_path / "p.html").read_text() == page.html()
