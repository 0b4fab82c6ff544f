"""Fragments of a self-contained HTML page: tables, tiles, bars, pictures as data URIs, and the page around them.

Text in, text out; every word that comes from data is escaped. No script, no network. Knows nothing of runs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

from dto_pipeline.terminal import printable
from dto_pipeline.view.charts import Chart, draw_histogram

_JPEG_QUALITY = 84


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole document; control characters and direction marks in its texts are written out."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light"><title>{escape(title)}</title><style>{_style()}</style>'
    )
    top = f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>"
    body = "\n".join(sections)
    whole = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{top}\n<main>{body}</main></body></html>\n'
    return printable(whole)


def section(title: str, *parts: str, note: str = "") -> str:
    """A section with its heading; `note` is a sentence under it."""
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{told}{''.join(parts)}</section>"


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: (number, what it is, a small word below)."""
    items = (
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(name)}</span><small>{escape(more)}</small></div>'
        for number, name, more in values
    )
    return f'<div class="tiles">{"".join(items)}</div>'


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[int] = (),
    key: bool = False,
    style: str = "",
) -> str:
    """A table that becomes a list of cards on a narrow screen.

    Args:
        columns: names; rows: texts.
        numeric: columns that are aligned right.
        key: the first column is a long key in a fixed-width typeface.
        style: "words": a word, two numbers and a sentence, which a narrow screen shows on two lines.
    """
    head = "".join(f"<th{_class(i, numeric, False)}>{escape(name)}</th>" for i, name in enumerate(columns))
    lines = []
    for row in rows:
        cells = (
            f'<td data-name="{escape(columns[i], quote=True)}"{_class(i, numeric, key)}>{escape(text)}</td>'
            for i, text in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    kind = f' class="{style}"' if style else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def bars(items: Mapping[str, float], words: Mapping[str, str]) -> str:
    """Horizontal bars, the largest filling the width; `words` stand at their ends."""
    largest = max(items.values(), default=0.0) or 1.0
    lines = (
        f'<div class="bar"><span>{escape(name)}</span><i><u style="width:{100 * value / largest:.1f}%"></u></i>'
        f"<b>{escape(words[name])}</b></div>"
        for name, value in items.items()
    )
    return f'<div class="barlist">{"".join(lines)}</div>'


def chart_grid(charts: Sequence[tuple[Chart, str]]) -> str:
    """Charts side by side, as many as fit; each with a line of text below its title."""
    return f'<div class="grid">{"".join(_chart_card(chart, note) for chart, note in charts)}</div>'


def picture(image: Image.Image, caption: str) -> str:
    """A picture as JPEG inside the page."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    words = escape(caption, quote=True)
    size = f'width="{image.width}" height="{image.height}"'
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" {size} alt="{words}" loading="lazy">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def details(summary: str, content: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def legend(names: Sequence[tuple[str, str]]) -> str:
    """(class of the chart's stylesheet, word) with a swatch each."""
    items = "".join(f'<span><i class="{style}"></i>{escape(name)}</span>' for style, name in names)
    return f'<p class="legend">{items}</p>'


def _style() -> str:
    """The stylesheet that lies beside this module."""
    return (files("dto_pipeline.view") / "page.css").read_text()


def _chart_card(chart: Chart, note: str) -> str:
    return f'<div class="card"><h3>{escape(chart.title)}</h3><p>{escape(note)}</p>{draw_histogram(chart)}</div>'


def _class(column: int, numeric: Sequence[int], key: bool) -> str:
    if column in numeric:
        return ' class="num"'
    return ' class="key"' if key and column == 0 else ""
