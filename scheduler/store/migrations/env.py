"""Run by Alembic on the connection that `scheduler.store.migrate` opened; never from a shell."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
