"""What does not fit the fields of a TOML file, in the file's own words: the parser's are those of Python.

Pure. Called by `jobs.plan` and `jobs.waivers`, which name the file and the line (`jobs.toml_lines`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "date": "a date",
    "datetime": "a time",
    "time": "a time",
}
_LISTS = {"int": "a whole number or a list of them", "str": "text or a list of texts", "object": "a table or several"}


def misfit(error: msgspec.ValidationError, document: Mapping[str, Any], whole: type[msgspec.Struct]) -> tuple[str, str]:
    """The field that does not fit (a path; "" for the whole file) and what is wrong with it. Repeats no value but one
    that stands for a choice.

    document: as TOML gave it. whole: the struct that it was to become.
    """
    message, _, where = str(error).partition(" - at `$")
    field = where.removesuffix("`").lstrip(".")
    if found := re.search(r"unknown field `(.*)`", message, re.DOTALL):
        known = _struct_of(_type_of(whole, field))
        there = f"; there are {', '.join(known.__struct_fields__)}" if known else ""
        return f"{field}.{found[1]}".lstrip("."), f"there is no such field{there}"
    if found := re.search(r"missing required field `(.*)`", message):
        return (f"{field}.{found[1]}", "is missing") if field else ("", f"there is no [{found[1]}]")
    if field.endswith("[...]"):
        field = _entry_of_other_kind(document, field.removesuffix("[...]"))
    if found := re.fullmatch(r"Invalid enum value (.*)", message, re.DOTALL):
        return field, f"is {found[1]}, wanted {_either(_choices(_type_of(whole, field)))}"
    if found := re.fullmatch(r"Expected `(.*)`, got `(.*)`", message):
        wanted = [kind for kind in found[1].split(" | ") if kind != "null"]
        return field, _wrong_kind(field, wanted, found[2], _type_of(whole, field))
    return field, message


def _wrong_kind(field: str, wanted: Sequence[str], got: str, kind: object) -> str:
    """What stands there, and what should."""
    top = "." not in field and "[" not in field
    if top and wanted == ["array"]:
        return f"is {_KINDS.get(got, got)}, wanted a list of tables: write [[{field}]]"
    if top and "object" in wanted:
        several = f", or [[{field}]] for several" if "array" in wanted else ""
        return f"is {_KINDS.get(got, got)}, wanted a table: write [{field}]{several}"
    if wanted == ["array"] and got == "str" and _struct_of(kind) is None:
        return 'is one text, wanted a list, such as ["a", "b"]'
    choices = _choices(kind)
    if choices:
        words = _either(choices) + (", or a list of these" if "array" in wanted else "")
    elif "array" in wanted and len(wanted) == 2:
        words = _LISTS.get(wanted[0], "a list")
    else:
        words = _either([_KINDS.get(one, one) for one in wanted])
    return f"is {_KINDS.get(got, got)}, wanted {words}"


def _entry_of_other_kind(document: Mapping[str, Any], field: str) -> str:
    """The path of the first entry that is no text, of a table of texts."""
    place: Any = document
    for name, position in re.findall(r"([^.\[\]]+)|\[(\d+)\]", field):
        place = place[name or int(position)]
    return f"{field}.{next((key for key, value in place.items() if not isinstance(value, str)), '')}"


def _type_of(whole: type[msgspec.Struct], field: str) -> object:
    """The type of what stands at the path; None for what the structs do not have."""
    kind: object = whole
    for name in filter(None, re.sub(r"\[\d+\]", "", field).split(".")):
        struct = _struct_of(kind)
        fields = msgspec.structs.fields(struct) if struct else ()
        kind = next((one.type for one in fields if one.encode_name == name), None)
    return kind


def _struct_of(kind: object) -> type[msgspec.Struct] | None:
    """The struct in a type such as `A | list[A]`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next(filter(None, map(_struct_of, get_args(kind))), None)


def _choices(kind: object) -> list[str]:
    """The texts that a type such as `Literal["a", "b"] | None` allows, where it allows no others."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return list(dict.fromkeys(choice for part in get_args(kind) for choice in _choices(part)))


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
