"""What an error of obstore means for the run: can it heal, or does a person have to act. The one place that judges it.

obstore tells a few kinds of errors apart by their class; status, code and cause stand in their text alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import BaseError

from pipeline_core.errors import PipelineError, SideError, TransientError
from pipeline_core.secrets import redact

_DEBUG = "\n\nDebug source:"
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([\w.]+)</Code>|\(code: ([\w.]+)\)")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>", re.IGNORECASE)
_CAUSE = re.compile(r'"([^"]+)"')
#: Where a cloud hands out the credentials of the machine itself.
_MACHINE = re.compile(r"/latest/(api/token|meta-data)|/metadata/identity|/computeMetadata/|169\.254\.")
_UNTRUSTED = re.compile(r"certificate|InvalidContentType|UnknownIssuer|HandshakeFailure", re.IGNORECASE)
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
#: S3 says 400 also of a body that came too slowly, in part or damaged:
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_ON_THE_WAY = {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"}
#: Of a request to delete many, each refusal has its code alone.
_STATUS_OF = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503, "ServiceUnavailable": 503}
_REMEDIES = {
    "NoSuchBucket": "create the bucket, or correct stage.url",
    "ContainerNotFound": "create the container, or correct stage.url",
    "InvalidBucketName": "correct stage.url",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": "correct stage.region",
}
_CREDENTIALS = "give stage.credentials that may list, read, write and delete there, or correct the ones in use"
_SETTINGS = "correct the settings of [stage]"


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Errors of obstore, as those of the project; `place` names the bucket, and the file where there is one."""
    try:
        yield
    except BaseError as error:
        raise meaning(error, place) from None
    except OSError as error:
        # obstore's own have no number; one of the operating system is not about the bucket.
        if error.errno is not None:
            raise
        raise meaning(error, place) from None


def is_absent(error: FileNotFoundError) -> bool:
    """Whether the file is not there. Otherwise its bucket is not."""
    return _found(_CODE, str(error)) not in _NO_BUCKET


def meaning(error: BaseException, place: str) -> PipelineError:
    """The error that stands for it."""
    text, _, debug = str(error).partition(_DEBUG)
    code = _found(_CODE, text)
    status = int(_found(_STATUS, text) or _STATUS_OF.get(code, 0))
    if _MACHINE.search(text) and status < 500:
        return SideError(f"stage {place}: found no credentials, and this machine has none of its own; {_CREDENTIALS}")
    if not status:
        return _of_the_way(text, debug, place)
    said = redact(": ".join(part for part in (f"status {status} {code}".rstrip(), _found(_MESSAGE, text)) if part))
    return _refused(status, code, f"stage {place}: {said}")


def _refused(status: int, code: str, found: str) -> PipelineError:
    if code in _REMEDIES:
        return SideError(f"{found}; {_REMEDIES[code]}")
    if status in {401, 403} or code == "ExpiredToken":
        return SideError(f"{found}; {_CREDENTIALS}")
    if status in {408, 429} or code in _ON_THE_WAY or (status >= 500 and status != 501):
        return TransientError(f"{found}; see why the service cannot keep up, if this stays", side_down=True)
    if status in {404, 409}:
        return TransientError(f"{found}; somebody changed it meanwhile; the window will be extracted again")
    return SideError(f"{found}; {_SETTINGS}")


def _of_the_way(text: str, debug: str, place: str) -> PipelineError:
    """No answer came: the way there is closed, not allowed, or not trusted; or nothing was asked at all."""
    causes = _CAUSE.findall(debug)
    cause = redact(causes[-1] if causes else text.rpartition(" - ")[2].strip())
    if "configured region" in text:
        return SideError(f"stage {place}: the bucket is elsewhere; correct stage.region")
    if "HTTP error" not in text:
        return SideError(f"stage {place}: {redact(text)}; {_SETTINGS}")
    if "BadScheme" in debug:
        return SideError(f"stage {place}: found an endpoint without TLS; set allow_http = true if that is meant")
    if _UNTRUSTED.search(debug):
        return SideError(
            f"stage {place}: no trusted connection: {cause}; correct stage.endpoint, or give stage.ca_certs"
        )
    return TransientError(f"stage {place}: cannot be reached: {cause}; see whether it runs", side_down=True)


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return str(match[match.lastindex or 0]) if match else ""
