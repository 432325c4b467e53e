"""How alembic runs the scripts: on the connection that ``Database.migrate`` opened."""

from alembic import context

from antibody_llm.server.database.tables import Table

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Table.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
