"""Reading a piece of the page as a browser would, to see that nothing from outside became markup."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "img", "line", "circle", "polyline"}
OWN_TAGS = {
    *("div", "span", "b", "i", "br", "img", "code", "small", "ul", "li", "figure", "figcaption", "button", "a"),
    *("table", "thead", "tbody", "tr", "th", "td", "svg", "line", "circle", "polyline", "text"),
}
OWN_ATTRIBUTES = {
    *("scope", "colspan", "data-replace", "data-negative", "data-field"),
    *("data-settings", "data-run", "data-loras", "data-newest"),
    *("class", "role", "title", "alt", "src", "style", "data-prompt", "aria-valuenow", "aria-valuemin", "aria-label"),
    *("href", "download", "data-view", "data-revision", "data-number", "data-then"),
    *("aria-valuemax", "viewbox", "x", "x1", "x2", "y", "y1", "y2", "cx", "cy", "r", "points", "text-anchor"),
}

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "</b></div></figure></svg><b>",
    "{} {0} {name} %s",
    "&lt;b&gt; &amp; <",
    "<!-- ",
    "汉服 \u202e\U0001f600",
]


@dataclass
class Element:
    """An element with its attributes and its text, children's text included."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """What a piece of HTML holds; fails when its elements are not properly closed."""

    markup: str
    elements: list[Element] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[Element] = []
        self.feed(str(self.markup))  # what comes out of markup would be markup, too
        self.close()
        assert not self._open, f"not closed: {[e.tag for e in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in OWN_TAGS, f"<{tag}> is none of ours"
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        assert set(names) <= OWN_ATTRIBUTES, names
        element = Element(tag, {name: value or "" for name, value in attrs})
        assert element.attributes.get("src", "data:image/").startswith("data:image/")
        assert element.attributes.get("href", "file=").startswith("file=")
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        for element in self._open:
            element.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    handle_decl = handle_pi = unknown_decl = handle_comment  # type: ignore[assignment]

    def all(self, tag: str, style: str = "") -> list[Element]:
        """Elements by tag and CSS class."""
        return [e for e in self.elements if e.tag == tag and (not style or style in e.attributes.get("class", ""))]

    def one(self, tag: str, style: str = "") -> Element:
        """The only such element."""
        (found,) = self.all(tag, style)
        return found
