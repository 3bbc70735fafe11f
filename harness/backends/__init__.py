"""Backends: one small module a library that can dispatch and combine; found by entry point `epwatch.backends`."""
