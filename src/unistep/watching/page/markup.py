"""HTML from texts of any origin: everything that is not markup of our own is escaped."""

import html
from collections.abc import Iterable, Sequence

from unistep.text import shown

_LONGEST = 400  # characters of a value from a file


def escaped(text: object) -> str:
    """A text, or anything as text, without markup, on one line and of bounded length."""
    line = shown(text)
    return html.escape(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ...")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", caption: str = "") -> str:
    """A table whose first cell of each row names it, in a box that scrolls where it is too wide.

    Args:
        head: names of the columns, as markup.
        rows: cells of each row, as markup.
        kind: class of the table.
        caption: caption, as markup; empty for none.
    """
    titles = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    top = f"<caption>{caption}</caption>" if caption else ""
    own = f' class="{kind}"' if kind else ""
    # The box can be reached by the keyboard, which scrolls it.
    return (
        f'<div class="wide" tabindex="0"><table{own}>{top}<thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, content: str) -> str:
    """Content that a click unfolds.

    Args:
        summary: line that is always visible, as markup.
        content: rest, as markup.
    """
    return f"<details><summary>{summary}</summary>{content}</details>"


def number(value: float | None) -> str:
    """A number in four digits; empty where there is none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def short(value: float) -> str:
    """A number as short as an axis needs it: 1.5M, 20k, 0.05, 7.5e-4."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    if 0 < abs(value) < 1e-3:
        digits, power = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"
