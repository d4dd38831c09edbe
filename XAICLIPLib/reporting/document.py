"""A document of sections for a reader: as one HTML file that needs nothing else, and as PDF pages."""

from __future__ import annotations

import base64
import io
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from XAICLIPLib.resources import resource_path

WIDTH, HEIGHT, MARGIN = 8.27, 11.69, 0.8
"""Of a page (A4), in inches."""

ROOM = WIDTH - 2 * MARGIN
FOOT = 0.9
LINE = 1.42
"""Height of a line, in sizes of its font."""

INK, FAINT, RULE, AMBER, SHADE = "#1b1f24", "#57606a", "#c9d1d9", "#8a4b00", "#fff4e0"
FAMILY = "DejaVu Sans"  # comes with matplotlib


@dataclass(frozen=True)
class Picture:
    """A PNG, and a description in words for readers who cannot see it."""

    png: bytes = field(repr=False)
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The picture as a data URI, which holds all of it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Table:
    """Rows of text. A table without a header has two columns: names and values."""

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading, and its content in the order of the fields.

    ``page``: the section begins a new page of the PDF.
    """

    title: str
    paragraphs: Sequence[str] = ()
    picture: Picture | None = None
    table: Table | None = None
    bullets: Sequence[str] = ()
    page: bool = False


@dataclass(frozen=True)
class Document:
    """The whole document.

    Attributes
    ----------
    title, subtitle
        The first lines.
    notice
        Written at the top, and at the foot of every page.
    cautions
        Warnings that a reader must know first, one sentence each.
    without_cautions
        The sentence that replaces them if there are none.
    sections
        The rest.
    """

    title: str
    subtitle: str
    notice: str
    cautions: Sequence[str]
    without_cautions: str
    sections: Sequence[Section]


def html(document: Document) -> str:
    """The document as one HTML file, without scripts or links to other files. Users' words are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resource_path("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(document=document)


def write_pdf(document: Document, path: Path) -> None:
    """Write the document as a PDF of A4 pages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prompt may have letters that the font lacks
        flow = _PageFlow(document.notice)
        flow.text(document.title, 18, weight="bold", gap=0.06)
        flow.text(document.subtitle, 10, colour=FAINT, gap=0.12)
        flow.text(document.notice, 10, weight="bold", gap=0.14)
        flow.box("Before you read the map", document.cautions or [document.without_cautions], bool(document.cautions))
        for section in document.sections:
            if section.page:
                flow.new_page()
            flow.section(section)
        flow.write(path, document.title)


class _PageFlow:
    """Fills pages from top to bottom; lengths are in inches."""

    def __init__(self, notice: str) -> None:
        self.notice = notice
        self.figures: list[Figure] = []
        self.new_page()

    def new_page(self) -> None:
        """Begin a new page."""
        self.figure = Figure((WIDTH, HEIGHT), facecolor="white")
        self.figures.append(self.figure)
        self.y = MARGIN

    def need(self, height: float) -> None:
        """Begin a new page if this one has less room left than that."""
        if self.y + height > HEIGHT - FOOT and self.y > MARGIN:
            self.new_page()

    def put(self, x: float, y: float, text: str, size: float, colour: str = INK, weight: str = "normal") -> None:
        """Write a line whose top is at ``y``."""
        self.figure.text(
            x / WIDTH,
            1 - (y + 0.8 * size * LINE / 72) / HEIGHT,
            text,
            size=size,
            color=colour,
            weight=weight,
            family=FAMILY,
            va="baseline",
            parse_math=False,
        )

    def text(
        self, text: str, size: float, *, colour: str = INK, weight: str = "normal", indent: float = 0, gap: float = 0.08
    ) -> None:
        """Write a paragraph, as many lines as it takes."""
        for line in wrapped(text, size, ROOM - indent, weight):
            self.need(size * LINE / 72)
            self.put(MARGIN + indent, self.y, line, size, colour, weight)
            self.y += size * LINE / 72
        self.y += gap

    def bullets(self, sentences: Sequence[str], size: float, colour: str = INK) -> None:
        """Write sentences as a bulleted list."""
        for sentence in sentences:
            self.need(size * LINE / 72)
            self.put(MARGIN + 0.1, self.y, "•", size, colour)
            self.text(sentence, size, colour=colour, indent=0.28, gap=0.05)

    def box(self, title: str, sentences: Sequence[str], warn: bool) -> None:
        """Write a title and sentences in a shaded box, on as many pages as needed."""
        size, pad = 10.0, 0.12
        colour = AMBER if warn else INK
        lines = [(number == 0, line) for s in sentences for number, line in enumerate(wrapped(s, size, ROOM - 0.5))]
        step = size * LINE / 72
        first = True
        while lines or first:
            head = 12 * LINE / 72 + 0.05 if first else 0
            self.need(head + 2 * pad + step)
            fits = max(1, int((HEIGHT - FOOT - self.y - 2 * pad - head) / step))
            now, lines = lines[:fits], lines[fits:]
            height = 2 * pad + head + step * len(now)
            self.figure.add_artist(
                Rectangle(
                    (MARGIN / WIDTH, 1 - (self.y + height) / HEIGHT),
                    ROOM / WIDTH,
                    height / HEIGHT,
                    facecolor=SHADE if warn else "#eef2f6",
                    edgecolor="#e0a030" if warn else RULE,
                    zorder=-1,
                )
            )
            y = self.y + pad
            if first:
                self.put(MARGIN + 0.15, y, title, 12, colour, "bold")
                y += head
            for begins, line in now:
                if begins:
                    self.put(MARGIN + 0.15, y, "•", size, colour)
                self.put(MARGIN + 0.33, y, line, size, colour)
                y += step
            self.y += height + 0.15
            first = False
            if lines:
                self.new_page()

    def section(self, section: Section) -> None:
        """Write a section; its heading stays on the page of the first content."""
        alone = section.picture is not None and not section.paragraphs
        self.need(0.5 + sum(_fitted(section.picture)[1:]) if alone and section.picture else 1.0)
        self.y += 0.1 if self.y > MARGIN else 0
        self.text(section.title, 13, weight="bold", gap=0.06)
        for paragraph in section.paragraphs:
            self.text(paragraph, 10)
        if section.picture is not None:
            self.picture(section.picture)
        if section.table is not None:
            self.table(section.table)
        self.bullets(section.bullets, 10)

    def picture(self, picture: Picture) -> None:
        """Show a picture as wide as the text, or as high as a page."""
        width, height, below = _fitted(picture)
        pixels = imread(io.BytesIO(picture.png))
        self.need(height + below)
        left = MARGIN + (ROOM - width) / 2
        axes = self.figure.add_axes((left / WIDTH, 1 - (self.y + height) / HEIGHT, width / WIDTH, height / HEIGHT))
        axes.imshow(pixels, aspect="auto", interpolation="lanczos")
        axes.set_axis_off()
        self.y += height + 0.06
        if picture.caption:
            self.text(picture.caption, 9, colour=FAINT)

    def table(self, table: Table) -> None:
        """Write the rows of a table; the widths of columns follow their texts."""
        size = 8.5
        step = size * LINE / 72
        widths = _columns([*([table.header] if table.header else []), *table.rows], size)
        rows = [(True, table.header)] if table.header else []
        for head, row in [*rows, *((False, row) for row in table.rows)]:
            weights = ["bold" if head or (number == 0 and not table.header) else "normal" for number in range(len(row))]
            cells = [
                wrapped(cell, size, width - 0.12, weight)
                for cell, width, weight in zip(row, widths, weights, strict=True)
            ]
            self.need(step * max(map(len, cells)) + 0.06)
            x = MARGIN
            for cell, width, weight in zip(cells, widths, weights, strict=True):
                for number, line in enumerate(cell):
                    self.put(x, self.y + number * step, line, size, INK, weight)
                x += width
            self.y += step * max(map(len, cells)) + 0.06
            y = 1 - (self.y - 0.035) / HEIGHT
            self.figure.add_artist(
                Rectangle((MARGIN / WIDTH, y), ROOM / WIDTH, 0.006 / HEIGHT, facecolor=RULE, edgecolor="none")
            )
        self.y += 0.1

    def write(self, path: Path, title: str) -> None:
        """Write the pages, numbered."""
        size = 8.0
        # No date, so that two reports of one explanation are equal.
        with PdfPages(path, metadata={"Title": title, "Creator": "XAI-CLIP", "CreationDate": None}) as pdf:
            for number, page in enumerate(self.figures, start=1):
                self.figure = page
                self.put(MARGIN, HEIGHT - 0.55, self.notice, size, FAINT)
                page.text(
                    1 - MARGIN / WIDTH,
                    1 - (HEIGHT - 0.55 + 0.8 * size * LINE / 72) / HEIGHT,
                    f"{number} / {len(self.figures)}",
                    size=size,
                    color=FAINT,
                    family=FAMILY,
                    ha="right",
                    va="baseline",
                )
                pdf.savefig(page)


def _fitted(picture: Picture) -> tuple[float, float, float]:
    """Width and height of a picture on the page, and the height of its caption."""
    rows, columns = imread(io.BytesIO(picture.png)).shape[:2]
    caption = wrapped(picture.caption, 9, ROOM) if picture.caption else []
    below = len(caption) * 9 * LINE / 72 + 0.2
    width, height = ROOM, ROOM * rows / columns
    tallest = HEIGHT - FOOT - MARGIN - below - 0.6
    return (width * tallest / height, tallest, below) if height > tallest else (width, height, below)


def wrapped(text: str, size: float, width: float, weight: str = "normal") -> list[str]:
    """Lines of a text that are no wider than ``width`` inches; a word that is wider is broken."""
    lines: list[str] = []
    line, taken, space = "", 0.0, _width("n n", size, weight) - _width("nn", size, weight)
    for word in _words(text, size, width, weight):
        word_width = _width(word, size, weight)
        if line and taken + space + word_width > width:
            lines.append(line)
            line, taken = word, word_width
        else:
            line, taken = (f"{line} {word}", taken + space + word_width) if line else (word, word_width)
    return [*lines, line]


def _words(text: str, size: float, width: float, weight: str) -> Iterator[str]:
    for word in text.split():
        while _width(word, size, weight) > width:
            fits = bisect_right(range(1, len(word)), width, key=lambda n: _width(word[:n], size, weight)) or 1
            yield word[:fits]
            word = word[fits:]
        yield word


def _columns(rows: Sequence[Sequence[str]], size: float) -> list[float]:
    """Widths of columns: those of their texts; if these are too wide, the widest columns share the remaining width."""
    text_widths = [max(_width(cell, size, "bold") + 0.15 for cell in column) for column in zip(*rows, strict=True)]
    remaining, open_columns = ROOM, sorted(range(len(text_widths)), key=lambda n: text_widths[n])
    widths = [0.0] * len(text_widths)
    while open_columns:
        narrowest = open_columns.pop(0)
        widths[narrowest] = min(text_widths[narrowest], remaining / (len(open_columns) + 1))
        remaining -= widths[narrowest]
    widths[-1] += remaining
    return widths


@lru_cache(maxsize=20_000)
def _width(text: str, size: float, weight: str) -> float:
    """Width of a line in inches, with 2% to spare: the PDF's text, without hinting, is wider than measured here."""
    font = FontProperties(family=FAMILY, size=size, weight=weight)
    width, _, _ = _renderer().get_text_width_height_descent(text, font, ismath=False)
    return 1.02 * float(width) / 100


@lru_cache(maxsize=1)
def _renderer():  # type: ignore[no-untyped-def]
    return FigureCanvasAgg(Figure(dpi=100)).get_renderer()
