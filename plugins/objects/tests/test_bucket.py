"""The stage in a bucket of a real S3 server: who may do what, what it leaves behind, and a server that dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import timedelta
from time import sleep
from typing import Any
from urllib.request import Request, urlopen

import obstore
import pyarrow as pa
import pytest

from pipeline_core.contracts import Batch, Batches, StageRequest
from pipeline_core.errors import ClaimLostError, PipelineError, SideError, TransientError
from pipeline_core.retry import call
from pipeline_core.secrets import redact
from pipeline_core.window import Window
from pipeline_objects.stage import ObjectStage

WINDOW = Window.from_us(1_362_891_600_000_000, 1_362_898_800_000_000)
SPAN = "flights/1362891600000000_1362898800000000"
KEY = f"{SPAN}/17"
MIB = 2**20


def request(key: str = KEY, fence: int = 17) -> StageRequest:
    return StageRequest(key, "flights", WINDOW, fence, {"technology": "sql", "table": "flights"})


def given(batches: Iterable[Batch]) -> Batches:
    yield from batches


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(numbers, pa.int64())], names=["n"])


def wide(number: int) -> pa.RecordBatch:
    """17 MiB that no compression makes smaller: four of them are a row group, which is uploaded at once, in parts."""
    noise = b"".join(os.urandom(MIB) for _ in range(17))
    return pa.record_batch([pa.array([number]), pa.array([noise])], names=["n", "noise"])


def numbers(batches: Batches) -> list[int]:
    return [n for found in batches for n in pa.record_batch(found).column("n").to_pylist()]


def small_files(stage: Any) -> ObjectStage:
    """The same place, a new file for each row group."""
    return ObjectStage(stage._place, file_bytes=1)


def objects(bucket: Any) -> list[str]:
    return sorted(each["path"] for each in obstore.list(bucket.store).collect())


# --- what lies there -------------------------------------------------------------------------------------------------


def test_files_lie_below_the_prefix_under_their_urls(bucket: Any) -> None:
    """A prefix may hold blanks and any script; a file's URL is the object's name, quoted."""
    with bucket.stage(url=f"s3://{bucket.name}/the%20stage%20%231/ü/") as stage:
        staged = stage.write(request(), given([batch(1, 2)]))
        assert list(stage.find(SPAN)) == [staged]
        assert numbers(stage.read(staged)) == [1, 2]
    place = f"the stage #1/ü/{KEY}"
    assert objects(bucket) == [f"{place}/manifest.json", f"{place}/part-00000.parquet"]
    (file,) = staged.files
    assert file.url == f"s3://{bucket.name}/the%20stage%20%231/%C3%BC/{KEY}/part-00000.parquet"


def test_a_stage_may_be_a_whole_bucket(bucket: Any) -> None:
    """Without a prefix; objects beside the keys are left alone."""
    obstore.put(bucket.store, "readme", b"mine")
    with bucket.stage(url=f"s3://{bucket.name}") as stage:
        staged = stage.write(request(), given([batch(1)]))
        assert (stage.keys(""), staged.files[0].url) == ([KEY], f"s3://{bucket.name}/{KEY}/part-00000.parquet")
        stage.remove(KEY)
        assert stage.keys("") == []
    assert objects(bucket) == ["readme"]


def test_neighbours_of_the_prefix_are_not_seen(bucket: Any) -> None:
    """`stage` is no beginning of `stage2`."""
    with bucket.stage() as stage, bucket.stage(url=f"s3://{bucket.name}/stage2") as other:
        other.write(request(), given([batch(1)]))
        assert (stage.keys(""), stage.find("")) == ([], [])


def test_large_files_come_back_whole(bucket: Any) -> None:
    """Far above the size of a part: several files, each uploaded in parts, and nothing left of the uploads."""
    with bucket.stage() as stage:
        staged = small_files(stage).write(request(), given(wide(number) for number in range(6)))
        assert [file.rows for file in staged.files] == [4, 2]
        assert min(file.bytes for file in staged.files) > 30 * MIB
        assert numbers(stage.read(staged)) == list(range(6))
    assert bucket.unfinished() == []


def test_what_is_kept_is_encrypted_on_demand(bucket: Any) -> None:
    """The service is asked for it with every file, those in parts and the manifest too."""
    with bucket.stage(encryption="AES256") as stage:
        staged = stage.write(request(), given([wide(1), batch_like_wide(2)]))
        assert numbers(stage.read(staged)) == [1, 2]
    assert len(objects(bucket)) == 2
    for path in objects(bucket):
        address = obstore.sign(bucket.store, "HEAD", path, timedelta(minutes=1))
        with urlopen(Request(address, method="HEAD")) as answer:
            assert answer.headers["x-amz-server-side-encryption"] == "AES256"


def batch_like_wide(number: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array([number]), pa.array([b""])], names=["n", "noise"])


def test_memory_does_not_grow_with_the_window(bucket: Any) -> None:
    """A window of 480 MiB that no compression makes smaller is written and read in less than that."""
    settings = bucket.server.settings(bucket.name)
    child = subprocess.run(
        [sys.executable, "-c", LARGE, settings["url"], settings["endpoint"], bucket.server.secrets["owner"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    before, after, staged = map(int, child.stdout.split())
    assert staged > 480 * MIB
    assert after - before < 400 * MIB, f"{before // MIB} MiB before, {after // MIB} MiB after"


LARGE = """
import os, resource, sys
import pyarrow as pa
from pipeline_core import Secret
from pipeline_core.contracts import Context, StageRequest
from pipeline_core.window import Window
from pipeline_objects import ObjectStageSettings

url, endpoint, secret = sys.argv[1:]
credentials = {"access_key_id": Secret("owner"), "secret_access_key": Secret(secret)}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def batches():
    for number in range(122):
        yield pa.record_batch([pa.array([os.urandom(2**22)])], names=["noise"])

with ObjectStageSettings(url, endpoint=endpoint, allow_http=True, credentials=credentials).open(Context("p")) as stage:
    before = peak()
    staged = stage.write(StageRequest("p/0_1/1", "p", Window.from_us(0, 1), 1, {}), batches())
    assert sum(len(batch) for batch in stage.read(staged)) == 122
    print(before, peak(), sum(file.bytes for file in staged.files))
"""


# --- one writer of a key ---------------------------------------------------------------------------------------------


def test_two_writers_of_one_key_cannot_both_win(bucket: Any) -> None:
    """The second to finish is told so, and what the first has completed stays the only one."""
    with bucket.stage() as stage, bucket.stage() as other:

        def overtaken() -> Batches:
            yield batch(1)
            completed.append(other.write(request(), given([batch(2)])))

        completed: list[Any] = []
        with pytest.raises(ClaimLostError, match="another writer"):
            stage.write(request(), overtaken())
        assert list(stage.find("")) == completed
        assert objects(bucket)[-1].endswith("part-00000.parquet")
        # The loser wrote over a file of the same name: the checksum tells, and none of its rows is handed out.
        with pytest.raises(TransientError, match=r"part-00000.*extracted again"):
            numbers(stage.read(completed[0]))


def test_a_lost_answer_is_no_other_writer(bucket: Any) -> None:
    """A manifest that is there already, byte for byte, is our own: the request was sent again."""
    with bucket.stage() as stage:
        place = stage._place
        place.put(f"{KEY}/manifest.json", b"{}")
        place.put(f"{KEY}/manifest.json", b"{}")
        with pytest.raises(ClaimLostError):
            place.put(f"{KEY}/manifest.json", b"[]")


# --- what is left behind ---------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_nothing(bucket: Any) -> None:
    """After some files, in the midst of the next: neither objects nor parts stay, which would cost money unseen."""

    def failing() -> Batches:
        for number in range(6):
            yield wide(number)
        assert objects(bucket) == [f"stage/{KEY}/part-00000.parquet"]
        raise KeyboardInterrupt

    with bucket.stage() as stage, pytest.raises(KeyboardInterrupt):
        small_files(stage).write(request(), failing())
    assert (objects(bucket), bucket.unfinished()) == ([], [])


def test_a_file_that_cannot_be_read_aborts_its_upload(bucket: Any) -> None:
    """In the midst of its parts."""

    def break_off() -> None:
        begun.extend(bucket.unfinished())
        # A part that is on its way as its upload is aborted may arrive later and stay: see decision 18.
        for _ in range(600):
            if len(bucket.server.listed(begun[0])) == 3:
                break
            sleep(0.05)
        raise OSError(5, "the disk is broken")

    begun: list[str] = []
    with bucket.stage() as stage, pytest.raises(PipelineError):
        stage._place.upload(f"{KEY}/part-00000.parquet", Noise(break_off))
    assert (len(begun), objects(bucket), bucket.unfinished()) == (1, [], [])


def test_a_damaged_file_is_named_and_not_found_again(bucket: Any) -> None:
    """One byte: an error that can heal, with the file in it, and the window counts as not staged."""
    with bucket.stage() as stage:
        staged = stage.write(request(), given([batch(*range(1000))]))
        path = f"stage/{KEY}/part-00000.parquet"
        data = bytearray(obstore.get(bucket.store, path).bytes())
        data[len(data) // 2] ^= 1
        obstore.put(bucket.store, path, bytes(data))
        with pytest.raises(TransientError, match=rf"s3://{bucket.name}/{path}: found sha256 .* extracted again"):
            numbers(stage.read(staged))
        assert (stage.find(""), stage.keys("")) == ([], [KEY])


@pytest.mark.skipif(sys.platform != "linux", reason="a full disk is Linux's /dev/full")
def test_a_full_disk_of_this_machine_can_heal(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file passes through a temporary one; without room for it the side is down, and the error says where."""
    with bucket.stage() as stage:
        staged = stage.write(request(), given([wide(1)]))
        monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "r+b"))  # noqa: SIM115 - as its like
        acts = [lambda: numbers(stage.read(staged)), lambda: stage.write(request(f"{SPAN}/18"), given([batch(1)]))]
        for act in acts:
            with pytest.raises(TransientError, match=r"ENOSPC.*free space.*TMPDIR") as raised:
                act()
            assert raised.value.side_down
        assert list(stage.find("")) == [staged]


FORKED = """
import os, signal, sys
from pipeline_core import Secret, SideError
from pipeline_core.contracts import Context
from pipeline_objects import ObjectStageSettings

url, endpoint, secret = sys.argv[1:]
credentials = {"access_key_id": Secret("owner"), "secret_access_key": Secret(secret)}
settings = ObjectStageSettings(url, endpoint=endpoint, allow_http=True, credentials=credentials)
with settings.open(Context("p")) as stage:
    if "before" in url:
        stage.keys("")
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
signal.alarm(60)  # ends it if it hangs after all
with settings.open(Context("p")) as stage:
    try:
        print(stage.keys(""))
    except SideError as error:
        print(error)
"""


@pytest.mark.parametrize(("when", "said"), [("before", "spawn or forkserver"), ("after", "[]")])
def test_a_forked_process_is_told_instead_of_hanging(bucket: Any, when: str, said: str) -> None:
    """The client's threads do not follow a fork. One that comes before the first use does no harm."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, f"s3://{bucket.name}/{when}"]
    command += [bucket.server.endpoint, bucket.server.secrets["owner"]]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert said in child.stdout


# --- who may do what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credentials", "code"),
    [
        ({"access_key_id": "owner", "secret_access_key": "wrong-secret-99"}, "SignatureDoesNotMatch"),
        ({"access_key_id": "nobody-99", "secret_access_key": "wrong-secret-99"}, "InvalidAccessKeyId"),
    ],
)
def test_a_wrong_key_needs_a_person(bucket: Any, credentials: dict[str, str], code: str) -> None:
    """Every verb says so, names the bucket and the remedy, and shows no secret."""
    with bucket.stage(credentials=credentials) as stage:
        acts = [
            lambda: stage.write(request(), given([batch(1)])),
            lambda: stage.keys(""),
            lambda: stage.find(""),
            lambda: stage.remove(KEY),
        ]
        for act in acts:
            with pytest.raises(SideError, match=rf"s3://{bucket.name}/stage.*403 {code}.*stage\.credentials") as raised:
                act()
            assert "99" not in str(raised.value)
        (problem,) = stage.problems()
    assert (code in problem.what, "stage.credentials" in problem.remedy) == (True, True)


def test_who_may_only_read_reads(bucket: Any) -> None:
    """Reading takes no right to write; writing without it is refused before the manifest, and `doctor` tells."""
    with bucket.stage() as stage, bucket.stage("reader") as reader:
        staged = stage.write(request(), given([batch(1)]))
        assert numbers(reader.read(staged)) == [1]
        for row in (batch(1), wide(1)):
            with pytest.raises(SideError, match="403 AccessDenied"):
                reader.write(request(f"{SPAN}/18", 18), given([row]))
        assert list(reader.find("")) == [staged]
        (problem,) = reader.problems()
    assert "AccessDenied" in problem.what


def test_a_missing_bucket_needs_a_person(bucket: Any) -> None:
    """It is neither made nor taken for an empty one."""
    with bucket.stage(url="s3://no-such-bucket/stage") as stage:
        acts = [
            lambda: stage.write(request(), given([batch(1)])),
            lambda: stage.keys(""),
            lambda: stage.remove(KEY),
            lambda: stage._place.get(f"{KEY}/manifest.json"),
        ]
        for act in acts:
            with pytest.raises(SideError, match=r"no-such-bucket.*404 NoSuchBucket.*create the bucket"):
                act()


def test_a_sound_bucket_has_no_problem(bucket: Any) -> None:
    """And looking leaves nothing."""
    with bucket.stage() as stage:
        assert list(stage.problems()) == []
    assert objects(bucket) == []


def test_credentials_come_from_the_environment(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that every tool of S3 knows; what the settings say comes first."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "owner")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket.server.secrets["owner"])
    with bucket.stage(credentials={}) as stage:
        stage.write(request(), given([batch(1)]))
        assert stage.keys("") == [KEY]
    with bucket.stage("reader") as stage, pytest.raises(SideError):
        stage.remove(KEY)


def test_a_machine_has_credentials_of_its_own(bucket: Any, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its role, from where clouds hand them out; no setting and no variable names a key."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    role = {
        "AccessKeyId": "owner",
        "SecretAccessKey": bucket.server.secrets["owner"],
        "Token": "",
        "Expiration": "2099-01-01T00:00:00Z",
        "Code": "Success",
        "LastUpdated": "2013-03-10T00:00:00Z",
        "Type": "AWS-HMAC",
    }

    def answer(method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        if path.endswith("/security-credentials/"):
            return 200, b"stage-role", {}
        return 200, json.dumps(role).encode() if path.endswith("/stage-role") else b"token", {}

    service.answer = answer
    with bucket.stage(credentials={}, options={"metadata_endpoint": service.endpoint}) as stage:
        staged = stage.write(request(), given([batch(1)]))
        assert numbers(stage.read(staged)) == [1]
    assert service.asked[0] == "PUT /latest/api/token"


@pytest.mark.parametrize("answers", [True, False])
def test_without_any_credentials_a_person_is_asked(
    bucket: Any, service: Any, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """Neither settings, nor environment, nor a machine with a role; nor one that hands out any."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    service.answer = lambda method, path: (200, b"token", {}) if method == "PUT" else (404, b"none", {})
    machine = {"metadata_endpoint": service.endpoint if answers else "http://127.0.0.1:1"}
    with (
        bucket.stage(credentials={}, options=machine) as stage,
        pytest.raises(SideError, match=r"no credentials.*stage\.credentials"),
    ):
        stage.keys("")


def test_no_secret_is_shown(bucket: Any) -> None:
    """Not by a repr, not by an error; from the first use on every text is cleaned of it."""
    secret = "never-show-me-77"
    settings = bucket.settings(credentials={"access_key_id": "owner", "secret_access_key": secret})
    with settings.open(None) as stage, pytest.raises(SideError) as raised:  # type: ignore[arg-type]
        stage.keys("")
    shown = [repr(settings), str(settings), repr(stage._place), str(raised.value), redact(f"seen: {secret}")]
    assert [text for text in shown if secret in text] == []


# --- a server that dies ----------------------------------------------------------------------------------------------


class Noise:
    """A file of 128 MiB, of which the fourth part is not read before something has happened."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self._happens = happens
        self._parts = 0

    def read(self, size: int) -> bytes:
        self._parts += 1
        if self._parts == 4:
            self._happens()
        return os.urandom(size) if self._parts <= 16 else b""

    def seek(self, *_: int) -> int:
        return 2**27


def test_a_server_that_dies_in_an_upload_is_waited_for(bucket: Any) -> None:
    """In the midst of the parts of a file: the side is down, and no half file is there when it comes back."""
    with bucket.stage() as stage:
        try:
            with pytest.raises(TransientError, match="cannot be reached") as raised:
                stage._place.upload(f"{KEY}/part-00000.parquet", Noise(bucket.server.stop))
        finally:
            bucket.server.start()
        assert raised.value.side_down
        assert (objects(bucket), stage.find("")) == ([], [])
        staged = stage.write(request(), given([batch(1)]))
        assert numbers(stage.read(staged)) == [1]


def test_a_server_that_dies_while_rows_come_is_waited_for(bucket: Any) -> None:
    """Between two files: nothing counts; once it is back the same key is written again, whole."""

    def dying() -> Batches:
        yield batch(*range(100_000))
        bucket.server.stop()
        yield batch(*range(100_000))

    with bucket.stage() as stage:
        try:
            with pytest.raises(TransientError, match="cannot be reached") as raised:
                small_files(stage).write(request(), dying())
        finally:
            bucket.server.start()
        assert raised.value.side_down
        assert (stage.keys(""), stage.find("")) == ([KEY], [])
        staged = stage.write(request(), given([batch(1)]))
        assert numbers(stage.read(staged)) == [1]
        stage.remove(KEY)
    assert objects(bucket) == []


def test_a_server_that_dies_between_two_files_is_waited_for(bucket: Any) -> None:
    """The rows of a file that was begun are whole; the next one says that the side is down, and comes back with it."""
    with bucket.stage() as stage:
        staged = small_files(stage).write(request(), given([batch(*range(100_000)), batch(*range(100_000))]))
        with closing(stage.read(staged)) as batches:
            seen = [len(next(batches))]
            bucket.server.stop()
            try:
                with pytest.raises(TransientError, match="cannot be reached") as raised:
                    seen.extend(len(found) for found in batches)
            finally:
                bucket.server.start()
        assert (sum(seen), raised.value.side_down) == (100_000, True)
        # The server that has just come back may answer 500 for a moment.
        assert call(lambda: list(stage.find("")), wait_s=0.5) == [staged]
        assert len(call(lambda: numbers(stage.read(staged)), wait_s=0.5)) == 200_000
