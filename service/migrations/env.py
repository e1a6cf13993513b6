"""Alembic's entry: runs the migrations of `versions/` on the URL it was given."""

from alembic import context
from sqlalchemy import create_engine

from service.tables import metadata

engine = create_engine(context.config.get_main_option("sqlalchemy.url") or "")
with engine.connect() as connection:
    # SQLite cannot alter much: Alembic's batch mode makes new tables and copies.
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
