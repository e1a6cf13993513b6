"""How many workers a job has been asked to go on with."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("workers_requested", sa.Integer()))


def downgrade() -> None:
    op.drop_column("jobs", "workers_requested")
