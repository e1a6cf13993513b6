"""Why the service itself has a job pause: a disk that is nearly full."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("waits_for_disk", sa.String()))


def downgrade() -> None:
    op.drop_column("jobs", "waits_for_disk")
