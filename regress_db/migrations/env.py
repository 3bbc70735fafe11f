"""Alembic's entry: runs revisions on the connection that `regress_db.migrate` hands over, within its transaction."""

from alembic import context

from regress_db.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
