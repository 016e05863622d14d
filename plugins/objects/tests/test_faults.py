"""What a service may answer, and what that means for the run: by a service that answers what a test has in mind."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest

from pipeline_core import Secret
from pipeline_core.errors import ConfigError, SideError, TransientError
from pipeline_objects import ObjectStageSettings

NAME = "flights/0_1/17/manifest.json"


def error(code: str, message: str = "so it is") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def place(settings: ObjectStageSettings) -> Any:
    """The place below a stage; it holds nothing that would have to be closed."""
    with settings.open(None) as stage:  # type: ignore[arg-type]
        return stage._place  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (502, ""),
        (504, ""),
        (429, "TooManyRequests"),
        (408, "RequestTimeout"),
        (400, "RequestTimeout"),
        (400, "IncompleteBody"),
        (400, "BadDigest"),
    ],
)
def test_a_service_that_cannot_keep_up_is_waited_for(service: Any, status: int, code: str) -> None:
    """Throttled, broken on its side, or on the way there: no other window would fare better."""
    service.answer = lambda method, path: (status, error(code) if code else b"<html>proxy</html>", {})
    with pytest.raises(TransientError, match=rf"s3://a-bucket/stage.*status {status} ?{code}") as raised:
        place(service.settings()).get(NAME)
    assert raised.value.side_down


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (403, "AccessDenied", r"stage\.credentials"),
        (401, "Unauthorized", r"stage\.credentials"),
        (400, "ExpiredToken", r"stage\.credentials"),
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "AuthorizationHeaderMalformed", r"stage\.region"),
        (400, "KMS.NotFoundException", r"settings of \[stage\]"),
        (501, "NotImplemented", r"settings of \[stage\]"),
        (404, "NoSuchBucket", "create the bucket"),
    ],
)
def test_a_service_that_refuses_needs_a_person(service: Any, status: int, code: str, remedy: str) -> None:
    """With the code that it gave, and what to do."""
    service.answer = lambda method, path: (status, error(code), {})
    with pytest.raises(SideError, match=rf"status {status} {code}: so it is; .*{remedy}"):
        place(service.settings()).put(NAME, b"{}")


@pytest.mark.parametrize(
    ("code", "kind"), [("AccessDenied", SideError), ("SlowDown", TransientError), ("Strange", SideError)]
)
def test_a_refusal_to_delete_one_of_many_is_told(service: Any, code: str, kind: type[Exception]) -> None:
    """Such an answer is a success, with the failures inside it."""
    refusal = f"<Error><Key>stage/{NAME}</Key><Code>{code}</Code><Message>so it is</Message></Error>"
    service.answer = lambda method, path: (200, f"<DeleteResult>{refusal}</DeleteResult>".encode(), {})
    with pytest.raises(kind, match=code):
        place(service.settings()).discard(NAME)


def test_a_bucket_in_another_region_needs_a_person(service: Any) -> None:
    """The service sends the request elsewhere, and does not say where."""
    service.answer = lambda method, path: (301, error("PermanentRedirect"), {})
    with pytest.raises(SideError, match=r"elsewhere; correct stage\.region"):
        place(service.settings()).put(NAME, b"{}")


def test_a_secret_that_comes_back_is_not_shown(service: Any) -> None:
    """A service, or what stands before it, may repeat what it was sent."""
    service.answer = lambda method, path: (403, error("AccessDenied", "who is hush-hush?"), {})
    with pytest.raises(SideError, match=r"who is \*\*\*\?"):
        place(service.settings()).get(NAME)


def test_a_conflict_heals_with_the_next_attempt(service: Any) -> None:
    """Somebody else was at work on the same file; no other window is concerned."""
    service.answer = lambda method, path: (409, error("OperationAborted"), {})
    with pytest.raises(TransientError, match="extracted again") as raised:
        place(service.settings()).get(NAME)
    assert not raised.value.side_down


def test_a_request_is_sent_again_before_a_step_is_given_up(service: Any) -> None:
    """A single refusal among thousands of requests costs no extraction."""
    service.answer = lambda method, path: (503, error("SlowDown"), {}) if len(service.asked) < 3 else (200, b"{}", {})
    assert place(service.settings()).get(NAME) == b"{}"
    assert len(service.asked) == 3


def test_a_wrong_key_is_not_tried_twice(service: Any) -> None:
    """What waiting does not heal is asked once."""
    service.answer = lambda method, path: (403, error("AccessDenied"), {})
    with pytest.raises(SideError):
        place(service.settings()).get(NAME)
    assert len(service.asked) == 1


def test_an_answer_that_breaks_off_is_no_file(service: Any) -> None:
    """Half a file is never taken for the whole."""
    service.answer = lambda method, path: (200, b"half", {"Content-Length": "1000", "Connection": "close"})
    with pytest.raises(TransientError) as raised, place(service.settings()).reading(NAME):
        pass
    assert raised.value.side_down


def test_a_manifest_is_removed_first(service: Any) -> None:
    """A removal that dies half-way leaves an incomplete window, never a complete one that lacks a file."""
    listed = b"".join(
        f"<Contents><Key>stage/flights/0_1/17/{name}</Key><Size>1</Size>"
        "<LastModified>2013-03-10T00:00:00Z</LastModified></Contents>".encode()
        for name in ("a-file.parquet", "manifest.json")
    )
    service.answer = lambda method, path: (200, b"<ListBucketResult>" + listed + b"</ListBucketResult>", {})
    place(service.settings(options={"disable_bulk_delete": "true"})).remove("flights/0_1/17", first="manifest.json")
    begins, *others = service.asked
    assert begins == "DELETE /a-bucket/stage/flights/0_1/17/manifest.json"
    assert "DELETE /a-bucket/stage/flights/0_1/17/a-file.parquet" in others


def test_nobody_at_the_address_is_waited_for(service: Any) -> None:
    """A refused connection: the side is down."""
    with pytest.raises(TransientError, match=r"cannot be reached: .*refused.*; see whether it runs") as raised:
        place(service.settings(endpoint="http://127.0.0.1:1")).get(NAME)
    assert raised.value.side_down


def test_a_service_without_tls_needs_a_person(service: Any) -> None:
    """https:// to a port that speaks http."""
    with pytest.raises(SideError, match="no trusted connection"):
        place(service.settings(endpoint=service.endpoint.replace("http", "https"))).get(NAME)


def test_a_service_with_a_ca_of_its_own_is_trusted_by_name(secure_service: tuple[Any, str]) -> None:
    """Where `ca_certs` names who signed its certificate; a person is asked where nothing does."""
    service, ca = secure_service
    service.answer = lambda method, path: (200, b"{}", {})
    assert place(service.settings(allow_http=False, ca_certs=ca)).get(NAME) == b"{}"
    with pytest.raises(SideError, match=r"no trusted connection: .*stage\.ca_certs"):
        place(service.settings(allow_http=False)).get(NAME)
    with pytest.raises(ConfigError, match=r"^stage\.ca_certs: found 'no-such-file"):
        place(service.settings(ca_certs="no-such-file.pem"))
    with pytest.raises(ConfigError, match=r"stage\.ca_certs"):
        place(service.settings(ca_certs=ca.replace("ca.crt", "ca.key")))


PARTS = b"<Answer><UploadId>7</UploadId><ETag>1</ETag></Answer>"  # to whatever is asked of an upload in parts


def test_an_upload_that_fails_at_its_end_is_waited_for(service: Any) -> None:
    """S3 may accept the last request of an upload in parts, and say in the body of its answer that it failed."""

    def answer(method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        completes = method == "POST" and "uploadId" in path
        return 200, error("InternalError") if completes else PARTS, {"ETag": '"1"'}

    service.answer = answer
    with pytest.raises(TransientError, match="InternalError") as raised:
        place(service.settings()).upload("flights/0_1/17/part-00000.parquet", BytesIO(bytes(20 * 2**20)))
    assert raised.value.side_down
    assert service.asked[-1].startswith("DELETE")


@pytest.mark.parametrize("size", [2, 20 * 2**20])
def test_every_file_asks_for_its_encryption(service: Any, size: int) -> None:
    """By a key of its own, whether it goes as one or in parts. What the service does with it is its own affair."""
    service.answer = lambda method, path: (200, PARTS, {"ETag": '"1"'})
    settings = service.settings(encryption="aws:kms", kms_key_id="alias/stage")
    place(settings).upload("flights/0_1/17/part-00000.parquet", BytesIO(bytes(size)))
    first = service.headers[0]
    assert first["x-amz-server-side-encryption"] == "aws:kms"
    assert first["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/stage"


def test_doctor_tells_of_a_service_that_knows_no_conditional_write(service: Any) -> None:
    """It takes a second manifest as if there were none."""
    service.answer = lambda method, path: (200, b"<ListBucketResult></ListBucketResult>", {"ETag": '"1"'})
    with service.settings(options={"disable_bulk_delete": "true"}).open(None) as stage:
        (problem,) = stage.problems()
    assert "if-none-match" in problem.what


@pytest.mark.parametrize(
    ("url", "credentials", "options", "seen"),
    [
        ("gs://a-bucket/stage", {}, {"skip_signature": "true"}, "gs://a-bucket/stage/flights/0_1/17/manifest.json"),
        (
            "az://container/stage",
            {"account_name": "account", "account_key": "aHVzaC1odXNo"},
            {},
            "az://container/stage/flights/0_1/17/manifest.json",
        ),
    ],
)
def test_other_clouds_are_opened_by_their_url(
    url: str, credentials: dict[str, str], options: dict[str, str], seen: str
) -> None:
    """Google's and Azure's, as far as obstore goes: no server of theirs takes part in the tests."""
    secrets = {name: Secret(value) for name, value in credentials.items()}
    settings = ObjectStageSettings(url, credentials=secrets, options=options)
    assert place(settings).url(NAME) == seen


def test_azure_answers_as_s3_does(service: Any) -> None:
    """Its codes are told, and a missing container needs a person."""
    service.answer = lambda method, path: (404, error("ContainerNotFound"), {})
    azure = service.settings(
        url="az://container/stage",
        endpoint=None,
        credentials={"account_name": "account", "account_key": "aHVzaC1odXNo"},
        options={"azure_storage_endpoint": service.endpoint},
    )
    with pytest.raises(SideError, match="create the container"):
        place(azure).get(NAME)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"nonsense": "1"}}, "nonsense"),
        ({"credentials": {"access_key_id": "owner"}}, "Missing SecretAccessKey"),
        ({"credentials": {"password": "hush-hush-5"}}, "password"),
        ({"url": "az://container", "endpoint": None, "credentials": {}}, "Account"),
    ],
)
def test_settings_that_obstore_refuses_are_told_as_such(service: Any, changes: dict[str, Any], words: str) -> None:
    """When the stage is opened, before anything is asked; the values are not shown."""
    with pytest.raises(ConfigError, match=rf"{words}.*stage\.credentials, stage\.options") as raised:
        place(service.settings(**changes))
    assert "hush" not in str(raised.value)
    assert service.asked == []
