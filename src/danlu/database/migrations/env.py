"""Run by Alembic: applies the steps on the connection that it is given."""

from alembic import context

from danlu.database.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=False)
context.run_migrations()
