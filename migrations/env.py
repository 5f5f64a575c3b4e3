"""Alembic's environment: it runs on the connection that the store hands over, in the store's transaction."""

from __future__ import annotations

from alembic import context

from llama_orch.core import schema


def run() -> None:
    """Run the pending migrations on ``config.attributes["connection"]``."""
    connection = context.config.attributes.get("connection")
    if connection is None:
        raise SystemExit("Migrations run through the program: use `llama-orch journal migrate`.")
    context.configure(
        connection=connection, target_metadata=schema.metadata, render_as_batch=connection.dialect.name == "sqlite"
    )
    with context.begin_transaction():
        context.run_migrations()


run()
