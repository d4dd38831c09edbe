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
    """A PNG, and what it shows in words for whoever cannot see it."""

    png: bytes = field(repr=False)
    alt: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """It as an address that holds all of it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Table:
    """Rows of text; without a header, names and values."""

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading and what is under it, in this order.

    ``page``: begins a page of its own in print.
    """

    title: str
    paragraphs: Sequence[str] = ()
    picture: Picture | None = None
    table: Table | None = None
    bullets: Sequence[str] = ()
    page: bool = False


@dataclass(frozen=True)
class Document:
    """All that is to be read.

    Attributes
    ----------
    title, subtitle
        The first lines.
    notice
        What stands at the top and the foot of every page.
    cautions
        What a reader must know before all else, one sentence each.
    without_cautions
        What is said where there are none.
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
    """One file without scripts and without anything to load; what users wrote is text in it and never markup."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resource_path("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(document=document)


def write_pdf(document: Document, path: Path) -> None:
    """Pages of A4."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prompt may have letters that the font lacks
        flow = _Flow(document.notice)
        flow.text(document.title, 18, weight="bold", gap=0.06)
        flow.text(document.subtitle, 10, colour=FAINT, gap=0.12)
        flow.text(document.notice, 10, weight="bold", gap=0.14)
        flow.box("Before you read the map", document.cautions or [document.without_cautions], bool(document.cautions))
        for section in document.sections:
            if section.page:
                flow.new_page()
            flow.section(section)
        flow.write(path, document.title)


class _Flow:
    """Pages that are filled from top to bottom; lengths are inches."""

    def __init__(self, notice: str) -> None:
        self.notice = notice
        self.figures: list[Figure] = []
        self.new_page()

    def new_page(self) -> None:
        """Begin a page."""
        self.figure = Figure((WIDTH, HEIGHT), facecolor="white")
        self.figures.append(self.figure)
        self.y = MARGIN

    def need(self, height: float) -> None:
        """Begin a page where this one has no such room left."""
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
        """Write sentences, each behind a dot."""
        for sentence in sentences:
            self.need(size * LINE / 72)
            self.put(MARGIN + 0.1, self.y, "•", size, colour)
            self.text(sentence, size, colour=colour, indent=0.28, gap=0.05)

    def box(self, title: str, sentences: Sequence[str], warn: bool) -> None:
        """Write sentences on a shade, with a title; on as many pages as they take."""
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
        """Write a section; its heading stays with what follows."""
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
        """Write rows; the columns are as wide as their texts ask for."""
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
        # No date: of two reports of one explanation, none differs from the other.
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
        own = _width(word, size, weight)
        if line and taken + space + own > width:
            lines.append(line)
            line, taken = word, own
        else:
            line, taken = (f"{line} {word}", taken + space + own) if line else (word, own)
    return [*lines, line]


def _words(text: str, size: float, width: float, weight: str) -> Iterator[str]:
    for word in text.split():
        while _width(word, size, weight) > width:
            fits = bisect_right(range(1, len(word)), width, key=lambda n: _width(word[:n], size, weight)) or 1
            yield word[:fits]
            word = word[fits:]
        yield word


def _columns(rows: Sequence[Sequence[str]], size: float) -> list[float]:
    """Widths of columns: what each asks for, and where that is too much, the widest share what is left."""
    wanted = [max(_width(cell, size, "bold") + 0.15 for cell in column) for column in zip(*rows, strict=True)]
    left, open_ = ROOM, sorted(range(len(wanted)), key=lambda n: wanted[n])
    widths = [0.0] * len(wanted)
    while open_:
        narrow = open_.pop(0)
        widths[narrow] = min(wanted[narrow], left / (len(open_) + 1))
        left -= widths[narrow]
    widths[-1] += left
    return widths


@lru_cache(maxsize=20_000)
def _width(text: str, size: float, weight: str) -> float:
    """Of a line, in inches; a little more than it takes, for print is measured without hinting."""
    font = FontProperties(family=FAMILY, size=size, weight=weight)
    width, _, _ = _renderer().get_text_width_height_descent(text, font, ismath=False)
    return 1.02 * float(width) / 100


@lru_cache(maxsize=1)
def _renderer():  # type: ignore[no-untyped-def]
    return FigureCanvasAgg(Figure(dpi=100)).get_renderer()
