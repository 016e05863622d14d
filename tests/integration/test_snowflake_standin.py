"""The stand-in for Snowflake takes what other programs send to the real one."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def test_put_and_copy_with_quotes_and_commas(snowflake_server: Any, tmp_path: Path) -> None:
    """A stage in quotes, the way of matching in quotes and commas between options load a file; so dlt writes them."""
    import snowflake.connector  # here: 5.x starts threads, which a fork of another test would lack

    path = tmp_path / "a, b.parquet"
    pq.write_table(pa.table({"n": [1, 2], "word": ["PUT 'x' '@y'", "a, b"]}), path)
    given = {"autocommit": True, "enable_server_session_keep_alive_auto_detection": False}
    with closing(snowflake.connector.connect(**snowflake_server.options(), **given)) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE COPIED (N NUMBER, WORD VARCHAR)")
        stage = '@"PUBLIC"."%COPIED"/"one, two"'
        cursor.execute(f"PUT 'file://{path}' '{stage}' OVERWRITE = TRUE, AUTO_COMPRESS = FALSE")
        cursor.execute(
            f"COPY INTO COPIED FROM '{stage}/{path.name}' "
            "FILE_FORMAT = (TYPE = 'PARQUET', BINARY_AS_TEXT = FALSE) MATCH_BY_COLUMN_NAME='CASE_INSENSITIVE'"
        )
        found = cursor.execute("SELECT N, WORD FROM COPIED ORDER BY N").fetchall()
        cursor.execute("DROP TABLE COPIED")
    assert [tuple(row) for row in found] == [(1, "PUT 'x' '@y'"), (2, "a, b")]
