"""A report as one HTML file: tables, pictures and texts inlined; nothing is loaded, and nothing runs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top;
         min-width: 5.5rem; font-weight: 400; }
thead th { font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; min-width: 9rem; position: sticky; left: 0; background: #fff; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; }
""".strip()
_NOTHING_ELSE: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page; it is told so, that a mistake here cannot load more."""


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page of the given parts, each of which one of the functions below has made."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_ELSE}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """Return a heading below the title."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls by itself where the screen is narrow; the first column names the rows."""
    lines = [_line(header, "th")] + ["</thead><tbody>"] + [_line(row, "td") for row in rows]
    return '<div class="wide"><table><thead>' + "\n".join(lines) + "</tbody></table></div>"


def picture(path: Path, alternative: str) -> str:
    """Return a PNG file as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{escape(alternative)}" src="data:image/png;base64,{data}"></p>'


def folded(label: str, text: str) -> str:
    """Return a long text that is shown when its label is touched."""
    return f"<details><summary>{escape(label)}</summary><pre>{escape(text)}</pre></details>"


def _line(cells: Sequence[str], kind: str) -> str:
    first, *rest = (escape(cell) for cell in cells)
    opening = '<th scope="col">' if kind == "th" else "<td>"
    named = f'<th scope="{"col" if kind == "th" else "row"}">{first}</th>'
    return f"<tr>{named}{''.join(f'{opening}{cell}</{kind}>' for cell in rest)}</tr>"
