"""What people and programs see: tables and colours on a terminal, plain lines or JSON elsewhere.

Text that comes from tasks is stripped of control characters before it is
printed: a title must not be able to move the cursor, change colours, reorder
the line or fake another one.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

# C0 and C1 controls, DEL, marks that reorder text or hide, line and paragraph separators, lone surrogates, tags.
_UNSAFE_CHARS: Final = (
    "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff"
    "\\ufff9-\\ufffb\\ud800-\\udfff\\U000e0000-\\U000e007f"
)
_UNSAFE: Final = re.compile(f"[{_UNSAFE_CHARS}]")
_UNSAFE_IN_LINE: Final = re.compile(f"[\\t\\n{_UNSAFE_CHARS}]+")
# Colours and moves; texts for the terminal (titles, links, the clipboard), which end with their line at the latest so
# that they hide no other; everything else that an escape character begins.
_ESCAPE_SEQUENCE: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-Z\\^-~])"
)
_OVERWRITTEN: Final = re.compile(r"[^\n]*\r(?=[^\r\n])")

COLUMN_MIN: Final = 8
"""No column is made narrower than this for the sake of others."""
FIRST_MAX: Final = 60
"""Only a first column that is wider than this is cut."""
STYLES: Final = {
    "pending": "yellow",
    "in_progress": "cyan",
    "in_review": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "dim",
    "rejected": "dim",
    "blocked": "yellow",
    "backlog": "dim",
    "ok": "green",
    "warning": "yellow",
    "error": "red",
}


def clean_line(value: Any) -> str:
    """Return a value as one line without control characters."""
    text = "" if value is None else str(value)
    return _UNSAFE_IN_LINE.sub(" ", _ESCAPE_SEQUENCE.sub("", text)).strip()


def clean_text(value: Any) -> str:
    """Return a value without control characters other than line ends and tabs."""
    text = "" if value is None else str(value)
    return _UNSAFE.sub("", _ESCAPE_SEQUENCE.sub("", text).replace("\r\n", "\n"))


def settled_text(value: Any) -> str:
    """Return what a program wrote as ``clean_text`` does, and of a line that it wrote over only the last state."""
    text = "" if value is None else str(value)
    return clean_text(_OVERWRITTEN.sub("", _ESCAPE_SEQUENCE.sub("", text)))


def fitted(widths: Sequence[int], room: int) -> list[int]:
    """Return the widths of columns that share ``room``: where it is too little, the widest give way first.

    The first column, which names what stands in the row, is never cut. Returns [] when there is no room for the rest.
    """
    first, rest = min(widths[0], FIRST_MAX), list(widths[1:])
    while rest and first + sum(rest) > room and max(rest) > COLUMN_MIN:
        rest[rest.index(max(rest))] -= 1
    return [first, *rest] if first + sum(rest) <= room else []


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Write JSON that is safe to show: unsafe characters only occur inside strings, where they become escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def duration(seconds: float) -> str:
    """Return a duration as people say it: "3 s", "5 min", "2 h", "4 d"."""
    seconds = abs(seconds)
    for limit, size, unit in ((60, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds / 86_400)} d"


def ago(at: datetime | None, now: datetime | None = None) -> str:
    """Return a time as people say it: "5 min ago", "in 30 s", or ""."""
    if at is None:
        return ""
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{duration(seconds)} ago" if seconds > 0 else f"in {duration(seconds)}"


def _wrapped(text: str) -> str:
    """Return a sentence in lines of the terminal's width, indented as it is."""
    indent = text[: len(text) - len(text.lstrip(" "))]
    return textwrap.fill(
        clean_line(text),
        shutil.get_terminal_size().columns,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


class Output:
    """Prints results to stdout in the form that the reader can use."""

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        self.is_terminal = sys.stdout.isatty()
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The terminal, or a plain stream."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=not self.is_terminal)
        return self._console

    def json(self, value: Any) -> None:
        """Print one JSON document: indented for people, on one line for programs."""
        click.echo(dumps(value, indent=2 if self.is_terminal else None))

    def json_line(self, value: Any) -> None:
        """Print one line of JSON at once."""
        click.echo(dumps(value))
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Print a line that holds nothing unsafe."""
        click.echo(clean_line(text))
        sys.stdout.flush()

    def prose(self, text: str) -> None:
        """Print a sentence; on a terminal no word of it is cut in two."""
        click.echo(_wrapped(text) if self.is_terminal else clean_line(text))

    def text(self, text: Any) -> None:
        """Print a text of several lines."""
        click.echo(clean_text(text))

    def note(self, text: str) -> None:
        """Tell a person something beside the result, on stderr; says nothing when JSON was asked for."""
        if not self.is_json:
            click.echo(_wrapped(text) if sys.stderr.isatty() else clean_line(text), err=True)

    def advice(self, text: str) -> None:
        """Tell a person what to do about the line before, set in, on stderr."""
        if not self.is_json:
            click.echo(_wrapped(f"  {text}") if sys.stderr.isatty() else f"  {clean_line(text)}", err=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, styled: int | None = None) -> None:
        """Print rows: a table with headings on a terminal, tab-separated lines without elsewhere.

        On a terminal that is too narrow for the table each row is a block of lines. ``styled`` is the column whose
        words have colours.
        """
        if not self.is_terminal:
            for row in rows:
                click.echo("\t".join(clean_line(cell) for cell in row))
            return
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        columns = [column.upper() for column in columns]
        shown = [[clean_line(cell) for cell in row] for row in rows]
        natural = [max(map(cell_len, column)) for column in zip(columns, *shown, strict=True)]
        widths = fitted(natural, self.console.width - 2 * (len(columns) - 1))
        if not widths:
            self._blocks(columns, shown, styled)
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column, width in zip(columns, widths, strict=True):
            table.add_column(column, overflow="ellipsis", no_wrap=True, width=width)
        for cells in shown:
            table.add_row(*(Text(c, STYLES.get(c, "") if i == styled else "") for i, c in enumerate(cells)))
        self.console.print(table)

    def _blocks(self, columns: Sequence[str], rows: list[list[str]], styled: int | None) -> None:
        """Print each row as lines of a name and a value, and a blank line after it."""
        from rich.text import Text

        width = max(map(len, columns))
        for cells in rows:
            for i, (column, cell) in enumerate(zip(columns, cells, strict=True)):
                if cell:
                    style = STYLES.get(cell, "") if i == styled else ""
                    self.console.print(Text.assemble((f"{column:>{width}}  ", "bold"), (cell, style)), soft_wrap=True)
            self.console.print()

    def fields(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Print named values, one a line; empty ones are left out."""
        shown = [(name, clean_line(value)) for name, value in pairs if value not in (None, "")]
        if not self.is_terminal:
            for name, value in shown:
                click.echo(f"{name}\t{value}")
            return
        from rich.text import Text

        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            word = value.split(" ", 1)[0].rstrip(",:")
            style = STYLES.get(word, "") if name in ("status", "service", "redis") else ""
            self.console.print(Text.assemble((f"{name:>{width}}  ", "bold"), (value, style)), soft_wrap=True)

    def heading(self, text: str) -> None:
        """Print a heading, on a terminal only."""
        if self.is_terminal:
            from rich.text import Text

            self.console.print(Text(f"\n{clean_line(text)}", "bold"))
