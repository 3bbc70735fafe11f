"""What pages show: each module gathers one view from the history into structs of plain values.

The structs are three things at once: the JSON (with `version` and `kind`), what the templates are given, and what a
report embeds. Nothing in them is HTML, and units stand in the names. Read-only. Next to read: `night`, the first page;
`shared`, what several views have in common.
"""
