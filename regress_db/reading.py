"""A query that a person wrote, on the history, for reading only. Called by `History.sql`."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Connection

from regress_db.errors import FilterError
from regress_db.history import History

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def select_only(history: History, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of one SELECT, which sees one state of the history.

    On SQLite anything else is denied by the database itself. On PostgreSQL the transaction is a read-only one and takes
    one statement, which guards against a slip; what a user may do at all is the server's to say. Raises `FilterError`
    for a query that is not understood, does not only read, or gives no rows.
    """
    with history.read() as connection, connection.begin():
        run = _on_sqlite if connection.dialect.name == "sqlite" else _on_postgresql
        columns, rows = run(connection, query)
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise FilterError(f"the query has several columns called {', '.join(repeated)}: name them apart with AS")
    return columns, rows


def _on_sqlite(connection: Connection, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    driver: Any = connection.connection.driver_connection

    def allow(action: int, *_: object) -> int:
        return sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY

    driver.set_authorizer(allow)
    try:
        cursor = driver.execute(query)
        return _columns(cursor), cursor.fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise _refusal(error, "not authorized" in str(error) or "one statement" in str(error)) from error
    finally:
        driver.set_authorizer(None)


def _on_postgresql(connection: Connection, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    import psycopg

    driver: Any = connection.connection.driver_connection
    try:
        # A prepared statement is one statement.
        cursor = driver.execute(query, prepare=True)
        return _columns(cursor), cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        raise _refusal(error, "read-only" in str(error) or "multiple commands" in str(error)) from error


def _columns(cursor: Any) -> list[str]:
    if cursor.description is None:
        raise FilterError("the query gives no rows: write one SELECT")
    return [column[0] for column in cursor.description]


def _refusal(error: BaseException, writes: bool) -> FilterError:
    if writes:
        return FilterError("only one SELECT can be asked here: the history is changed by `epwatch` commands alone")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return FilterError(f"the database does not take the query: {reason}")
