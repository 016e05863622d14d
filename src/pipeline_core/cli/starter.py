"""The configuration that `init` writes to start from."""

from __future__ import annotations

from pathlib import Path

from pipeline_core.config import local_url
from pipeline_core.errors import ConfigError

_TEXT = """\
# A pipeline: it moves rows from [source] to [target], one window of time at a time, and keeps the evidence.
# `pipeline-core config validate` checks this file, `pipeline-core doctor` tries what it names.

name = "events"              # the pipeline's name, under which its records are kept
timezone = "UTC"             # whose clock cuts the windows; any IANA zone, such as "America/New_York"
granularity = "1d"           # the length of a window: 15min, 2h, 1d, 1w, 1mo …
x_time_back = "1d"           # a window is left alone until it ended this long ago, because rows may arrive late
begin = "2024-01-01"         # the first window, local to the timezone; `end` is optional

[source]                     # where rows come from
type = "sql"                 # `pipeline-core plugins` lists the types
url = "sqlite:///source.db"  # here a file; a server's password belongs elsewhere: url = "${env:SOURCE_URL}"
table = "events"             # it must exist
timestamp_column = "at"      # which window a row belongs to; start <= at < end
timestamp_timezone = "UTC"   # the zone in which its values are meant, because SQLite's columns carry none

[target]                     # where rows go; the rows of a window are replaced in one transaction
type = "sql"
url = "sqlite:///target.db"
table = "events"
timestamp_column = "at"
timestamp_timezone = "UTC"
create = true                # make the table from the first rows, where it is missing

[stage]                      # where the rows of a window rest, as files, between the two
type = "objects"
url = "@STAGE@"

[store]                      # where the records of the windows are kept
type = "sql"
url = "@STORE@"              # by its whole path: it is the same one wherever a command is started

# [columns]                  # other names in the target; the rest keep theirs
# "at" = "happened_at"       # (name it in timestamp_column of [target] too)
# exclude = ["internal"]     # columns to leave out

# [run]
# workers = 1                # how many windows are worked on at once

# [profiles.prod.target]     # `pipeline-core run --profile prod` uses these values in place of the ones above
# url = "${env:TARGET_URL}"
"""


def write(path: Path, *, force: bool) -> None:
    """Writes the configuration. Raises ConfigError where the file exists (unless `force`) or cannot be made."""
    folder = path.resolve().parent
    stage, store = local_url("stage", folder), local_url("store", folder)
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(_TEXT.replace("@STAGE@", stage).replace("@STORE@", store))
    except FileExistsError:
        raise ConfigError(f"{path}: is there already; name another file, or overwrite it with --force") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
