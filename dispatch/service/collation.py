"""Text that is found and ordered alike on every database.

What ``lower`` knows and how texts are ordered depends on the database and its
locale. Here both are the same everywhere: searches ignore case for the whole
of Unicode, and orders are by code point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect
    from sqlalchemy.sql.compiler import SQLCompiler

_FOLDING: Final = ("pg_unicode_fast", "pg_c_utf8", "und-x-icu", "C.utf8", "C.UTF-8", "en_US.utf8")
"""PostgreSQL's collations that know the letters of Unicode: built in since 17, ICU, the system's."""
_ATTRIBUTE: Final = "dispatch_folding_collation"


def fold(text: str | None) -> str | None:
    """Return ``text`` without its case.

    The two letters of which implementations make different lower case, depending
    on the place (final sigma) or as two characters (dotted I), are made equal.
    """
    return text.lower().replace("\u03c2", "\u03c3").replace("\u0307", "") if text else text


class folded(FunctionElement[str]):  # noqa: N801 - SQL functions are lower case
    """``fold`` of a column, by the database."""

    type = Text()
    inherit_cache = True
    name = "dispatch_fold"


class bytewise(FunctionElement[str]):  # noqa: N801 - SQL functions are lower case
    """A column as a sort key that orders by code point."""

    type = Text()
    inherit_cache = True
    name = "bytewise"


@compiles(bytewise)
def _plain(element: Any, compiler: SQLCompiler, **how: Any) -> str:
    return compiler.process(element.clauses, **how)


@compiles(bytewise, "postgresql")
def _by_code_point(element: Any, compiler: SQLCompiler, **how: Any) -> str:
    return f'{compiler.process(element.clauses, **how)} COLLATE "C"'


@compiles(folded)
def _registered(element: Any, compiler: SQLCompiler, **how: Any) -> str:
    return f"dispatch_fold({compiler.process(element.clauses, **how)})"


@compiles(folded, "postgresql")
def _fold(element: Any, compiler: SQLCompiler, **how: Any) -> str:
    name = getattr(compiler.dialect, _ATTRIBUTE, None)
    column = compiler.process(element.clauses, **how)
    lower = f'lower({column} COLLATE "{name}")' if name else f"lower({column})"
    return rf"replace(replace({lower}, E'\u03C2', E'\u03C3'), E'\u0307', '')"


def choose_folding(connection: Connection, dialect: Dialect) -> bool:
    """Find out how this PostgreSQL folds all of Unicode, for statements of ``dialect``; False if it cannot."""
    there = {
        row[0]
        for row in connection.exec_driver_sql(
            "SELECT collname FROM pg_collation WHERE collnamespace = 'pg_catalog'::regnamespace"
            " AND collencoding IN (-1, pg_char_to_encoding(getdatabaseencoding()))"
        )
    }
    name = next((name for name in _FOLDING if name in there), None)
    setattr(dialect, _ATTRIBUTE, name)
    return name is not None or connection.exec_driver_sql("SELECT lower('Ä') = 'ä'").scalar_one()
