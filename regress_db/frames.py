"""An answer of the history: rows as they are, or a polars or pandas frame of them.

Frames have a column for each field, of its type even where there is no row, so that answers can be put together. Times
are aware, in UTC. polars and pandas are loaded only when a frame is asked for. Called by `regress_db.asking`.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from regress_db.errors import MissingLibraryError

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]
    import polars

Row = TypeVar("Row")


class Answer(Sequence[Row], Generic[Row]):
    """Rows in order, and what becomes of them. Rows are frozen dataclasses, or tuples of what `columns` names."""

    def __init__(self, rows: Sequence[Row], row_type: type[Row] | None = None, columns: Sequence[str] = ()) -> None:
        """row_type: the dataclass of the rows; without one, `columns` says what the tuples hold."""
        self._rows = rows
        self._hints = {} if row_type is None else _hints(row_type)
        self.columns: tuple[str, ...] = tuple(columns or self._hints)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {', '.join(self.columns)}>"

    def column(self, name: str) -> list[Any]:
        """One field of every row. `KeyError` where there is no such field."""
        if name not in self.columns:
            raise KeyError(name)
        if self._hints:
            return [getattr(row, name) for row in self._rows]
        place = self.columns.index(name)
        return [row[place] for row in self._rows]  # type: ignore[index]

    def to_polars(self) -> polars.DataFrame:
        """A polars frame. Raises `MissingLibraryError` where polars is not installed."""
        library: Any = _load("polars")
        of_kind = {
            "float": library.Float64,
            "int": library.Int64,
            "bool": library.Boolean,
            "text": library.String,
            "time": library.Datetime("us", "UTC"),
            "texts": library.List(library.String),
        }
        frame: polars.DataFrame = library.DataFrame(
            [
                library.Series(name, [_plain(value) for value in self.column(name)], of_kind.get(kind), strict=False)
                for name, kind in self._kinds().items()
            ]
        )
        return frame

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas frame. Raises `MissingLibraryError` where pandas is not installed."""
        library: Any = _load("pandas")
        of_kind = {
            "float": "float64",
            "int": "Int64",
            "bool": "boolean",
            "text": "string",
            "time": "datetime64[us, UTC]",
        }
        frame: pandas.DataFrame = library.DataFrame(
            {
                name: library.Series([_plain(value) for value in self.column(name)], dtype=of_kind.get(kind))
                for name, kind in self._kinds().items()
            },
            columns=list(self.columns),
        )
        return frame

    def _kinds(self) -> dict[str, str]:
        """What each column holds, "" where only its values can tell."""
        return {name: _kind(self._hints[name]) if self._hints else "" for name in self.columns}


_KINDS: dict[Any, str] = {float: "float", int: "int", bool: "bool", str: "text", datetime: "time"}


def _hints(row_type: type[Any]) -> dict[str, Any]:
    """Type by field. A name that is there only while types are checked is one of a few words, hence text."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(row_type, localns=unknown)
        except NameError as error:
            if error.name is None or error.name in unknown:
                raise
            unknown[error.name] = str


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = {_kind(one) for one in typing.get_args(hint) if one is not types.NoneType}
        return kinds.pop() if len(kinds) == 1 else ""
    if typing.get_origin(hint) is Literal:
        return "text"
    if hint == tuple[str, ...]:
        return "texts"
    return _KINDS.get(hint, "")


def _plain(value: Any) -> Any:
    """Tuples as lists and dataclasses as mappings, which frames understand."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingLibraryError(f"a {name} frame needs {name} ({error}): pip install 'epwatch[frames]'") from error
