"""The `[stage]` section of `type = "objects"`: where the files go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from attrs import field, frozen, validators

from pipeline_core.contracts import Context, Stage
from pipeline_core.errors import ConfigError
from pipeline_core.secrets import Secret, redact

if TYPE_CHECKING:
    from obstore.store import ClientConfig

    from pipeline_objects.bucket import Bucket

_BUCKETS = ("s3", "gs", "az")
_OF_BUCKETS = ("credentials", "options", "allow_http", "ca_certs")
_OF_S3 = ("region", "endpoint", "encryption", "kms_key_id")
_CONNECT_S = 10
_SUPPORTED = (
    "expected a folder of this machine by its absolute path, as in url = 'file:///var/lib/stage', "
    "or a bucket, as in url = 's3://bucket/stage'"
)


@frozen
class ObjectStageSettings:
    """Parquet files in a local folder, or in a bucket of S3, GCS or Azure.

    `url` is `file:///absolute/folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`. A folder
    is made when the first file is written; a bucket has to be there.

    `region`, `endpoint`, `encryption` and `kms_key_id` are of S3 and what speaks its protocol: `endpoint` names another
    service than Amazon's (`https://host:port`), `encryption` asks the service to encrypt what it keeps. `allow_http`
    does without TLS, `ca_certs` is a PEM file of certificates to trust beside the usual ones.

    `credentials` are secrets by obstore's names (`access_key_id`, `secret_access_key`, `session_token`); without them
    the environment and the machine's own role are asked. `options` are all other settings of obstore's store, by its
    names. `timeout_s` limits, in seconds, what one request may take.
    """

    url: str = field()
    region: str | None = None
    endpoint: str | None = field(default=None)
    allow_http: bool = False
    ca_certs: str | None = None
    credentials: Mapping[str, Secret] = field(factory=dict)
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    options: Mapping[str, str] = field(factory=dict)
    timeout_s: float = field(default=300.0, validator=validators.gt(0))

    @url.validator
    def _names_a_place(self, _: Any, value: str) -> None:
        if _scheme(value) in _BUCKETS:
            bucket_of(value)
        else:
            folder_of(value)

    @endpoint.validator
    def _names_a_service(self, _: Any, value: str | None) -> None:
        if value is None:
            return
        scheme, _, rest = value.partition("://")
        if scheme not in {"http", "https"} or not rest or "@" in rest:
            raise ConfigError("stage.endpoint: expected https://host or https://host:port, without a user name")

    def __attrs_post_init__(self) -> None:
        """Raises ConfigError for settings that contradict each other."""
        scheme = _scheme(self.url)
        meaningless = () if scheme == "s3" else _OF_S3 if scheme in _BUCKETS else _OF_S3 + _OF_BUCKETS
        for name in [name for name in meaningless if getattr(self, name)]:
            raise ConfigError(f"stage.{name}: means nothing for {scheme}://; leave it out, or correct stage.url")
        if self.endpoint and self.endpoint.startswith("http:") and not self.allow_http:
            raise ConfigError(
                "stage.endpoint: found http://, which sends the rows as they are; expected https://, or "
                "allow_http = true if that is meant"
            )
        if self.kms_key_id and self.encryption in {None, "AES256"}:
            raise ConfigError("stage.kms_key_id: expected encryption = 'aws:kms' or 'aws:kms:dsse' with it")

    @contextmanager
    def open(self, context: Context, /) -> Iterator[Stage]:
        """The stage. Holds nothing between two calls. `context` is not needed: every key names its pipeline.

        Raises ConfigError for a file of certificates that cannot be read, and for options that obstore refuses.
        """
        from pipeline_objects.stage import ObjectStage  # noqa: PLC0415 - the Arrow library loads here

        if _scheme(self.url) in _BUCKETS:
            yield ObjectStage(_bucket(self))
        else:
            from pipeline_objects.folder import Folder  # noqa: PLC0415 - with the stage, when it is needed

            yield ObjectStage(Folder(folder_of(self.url)))


def folder_of(url: str) -> Path:
    """The folder that a `file:///` URL names; `%20` and the like are decoded. Raises ConfigError for any other form.

    A URL that is no file's is not shown in the error, because it may hold a password.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme.lower() != "file" and rest.startswith("//"):
        raise ConfigError(f"stage.url: {scheme}:// is not supported; {_SUPPORTED}")
    if scheme.lower() != "file" or not rest.startswith("///"):
        raise ConfigError(f"stage.url: found {_shown(url)}; {_SUPPORTED}")
    parts = urlsplit(url)
    path = Path(url2pathname(parts.path))
    if parts.query or parts.fragment or "\0" in str(path):
        raise ConfigError(f"stage.url: found {_shown(url)}; write ? as %3F and # as %23, and no %00; {_SUPPORTED}")
    if path == Path(path.anchor):
        raise ConfigError(f"stage.url: found {_shown(url)}, which names no folder below the root; {_SUPPORTED}")
    return path


def bucket_of(url: str) -> tuple[str, str]:
    """The bucket that a URL names, and the prefix in it without `/` at its ends; `%20` and the like are decoded.

    Raises ConfigError for a URL that names none, or more than that.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ConfigError("stage.url: found something before an @; expected stage.credentials to hold it")
    if parts.query or parts.fragment:
        # Not what follows it: somebody may have put credentials there.
        raise ConfigError(f"stage.url: found a ? or # after {parts.path!r}; write ? as %3F and # as %23")
    prefix = unquote(parts.path).strip("/")
    if not parts.netloc or any(part in {"", ".", ".."} for part in prefix.split("/") if prefix):
        raise ConfigError(f"stage.url: found {url!r}, expected a bucket and perhaps a prefix: s3://bucket/stage")
    return parts.netloc, prefix


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _shown(url: str) -> str:
    return "a URL with a user name in it" if "@" in url and not url.startswith("file:///") else repr(url)


def _bucket(settings: ObjectStageSettings) -> Bucket:
    from obstore.exceptions import BaseError  # noqa: PLC0415 - who stages in a folder does without obstore
    from obstore.store import AzureStore, GCSStore, S3Store  # noqa: PLC0415

    from pipeline_objects.bucket import RETRIES, Bucket  # noqa: PLC0415

    name, prefix = bucket_of(settings.url)
    scheme = _scheme(settings.url)
    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    named = {
        "region": settings.region,
        "endpoint": settings.endpoint,
        "server_side_encryption": settings.encryption,
        "sse_kms_key_id": settings.kms_key_id,
    }
    config = {option: value for option, value in named.items() if value is not None}
    config |= settings.options
    config |= {option: secret.reveal() for option, secret in settings.credentials.items()}
    requests = _client(settings)
    try:
        store = kinds[scheme](
            name,
            prefix=prefix or None,
            config=config,
            client_options=requests,
            retry_config=RETRIES,
        )
    except (BaseError, ValueError) as error:
        text = redact(str(error).partition("\n")[0].rstrip("."))
        raise ConfigError(f"stage: {text}; correct stage.credentials, stage.options or stage.ca_certs") from None
    return Bucket(store, "/".join(part for part in (f"{scheme}://{name}", quote(prefix)) if part))


def _client(settings: ObjectStageSettings) -> ClientConfig:
    """How requests are made."""
    options: ClientConfig = {
        "allow_http": settings.allow_http,
        "timeout": timedelta(seconds=settings.timeout_s),
        "connect_timeout": timedelta(seconds=min(settings.timeout_s, _CONNECT_S)),
    }
    if settings.ca_certs is not None:
        try:
            options["root_certificate"] = Path(settings.ca_certs).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"stage.ca_certs: found {settings.ca_certs!r}: {error.strerror}; expected a PEM file that can be read"
            ) from None
    return options
