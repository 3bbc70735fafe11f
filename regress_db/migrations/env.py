"""Alembic's entry: runs revisions on the connection that `regress_db.migrate` hands over, within its transaction."""

from alembic import context

from regress_db.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
