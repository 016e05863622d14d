"""Fences of PostgreSQL from a sequence, so that no claim waits for another one to commit."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# The lock makes one step of reading and setting. A sequence is never rolled back, a lock always is: so the inner block
# always fails, and lets go of the lock here instead of at the end of the claim's transaction.
TAKE_FENCES = """
CREATE FUNCTION pipeline_core_take_fences(now_us bigint, number bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    first bigint;
BEGIN
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('pipeline_core fences', 0));
        first := greatest(nextval('pipeline_core_fences'), now_us);
        PERFORM setval('pipeline_core_fences', first + number - 1);
        RAISE SQLSTATE 'PCFEN';
    EXCEPTION WHEN SQLSTATE 'PCFEN' THEN
        NULL;
    END;
    RETURN first;
END $$
"""


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    op.execute("CREATE SEQUENCE pipeline_core_fences")
    last = connection.execute(sa.text("SELECT last FROM pipeline_core_fence")).scalar_one()
    if last > 0:
        connection.execute(sa.text("SELECT setval('pipeline_core_fences', :last)"), {"last": last})
    # A worker with older code must not go on with a sequence of its own.
    op.drop_table("pipeline_core_fence")
    op.execute(TAKE_FENCES)
