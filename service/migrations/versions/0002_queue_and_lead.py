"""Priorities, the beginning of a registration, who leads, and indexes for what is asked many times a second."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("registering", sa.Boolean(), server_default=sa.text("0"), nullable=False))
    op.create_index("jobs_in_turn", "jobs", ["status", sa.text("priority DESC"), "number"])
    op.create_index(
        "jobs_untold",
        "jobs",
        ["number"],
        sqlite_where=sa.text("run_ended IS 0 AND started_at IS NOT NULL"),
        postgresql_where=sa.text("run_ended IS false AND started_at IS NOT NULL"),
    )
    op.create_table(
        "leads",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def downgrade() -> None:
    op.drop_table("leads")
    op.drop_index("jobs_untold", "jobs")
    op.drop_index("jobs_in_turn", "jobs")
    op.drop_column("jobs", "registering")
    op.drop_column("jobs", "priority")
