"""Alembic environment of the history. Run by `regress_db.migrate`, never by hand."""
