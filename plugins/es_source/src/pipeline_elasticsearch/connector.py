"""Documents of an index as the source or target of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from pipeline_core import (
    Batch,
    Batches,
    Claim,
    ExtractRequest,
    Load,
    PermanentError,
    PipelineError,
    Problem,
    Publication,
    SideError,
    Source,
    Target,
    Window,
)
from pipeline_core.ledger import Adoption, Entry, scope_of, scope_text
from pipeline_elasticsearch.bulk import check_writable
from pipeline_elasticsearch.catalog import STRICT, Catalog
from pipeline_elasticsearch.client import Client, path
from pipeline_elasticsearch.columns import check_known, columns
from pipeline_elasticsearch.counting import Counting, Query
from pipeline_elasticsearch.documents import Documents, properties, staged
from pipeline_elasticsearch.extraction import Extraction, check_inside
from pipeline_elasticsearch.pages import DocumentShape, FieldsShape, Shape
from pipeline_elasticsearch.publication import ElasticsearchPublication, Scratch
from pipeline_elasticsearch.target_ledger import INDEX, TargetLedger

if TYPE_CHECKING:
    from pipeline_elasticsearch.settings import ElasticsearchSettings


class ElasticsearchConnector(Source, Target):
    """One index, alias, data stream or pattern: counts, extracts, loads. Opened by `ElasticsearchSettings.open`.

    Remembers nothing between two calls: what the index is, is asked anew each time, because a search answers 0 for a
    field that is not mapped, and passes over an index that was closed.
    """

    def __init__(self, settings: ElasticsearchSettings, client: Client) -> None:
        self._settings = settings
        self._client = client
        self._catalog = Catalog(client, settings.index, settings.timestamp_field, settings.scope)
        self._counting = Counting(client, settings.index, settings.timestamp_field, _conditions(settings))
        self._scratch: dict[tuple[str, Window], Scratch] = {}

    @property
    def identity(self) -> Mapping[str, str]:
        settings = self._settings
        given = {
            "technology": "elasticsearch",
            "host": self._client.host,
            "index": settings.index,
            "timestamp_field": settings.timestamp_field,
            "shape": settings.shape,
            "lists": ",".join(sorted(settings.lists)),
            "scope": settings.scope and scope_text(scope_of(settings.scope)),
            "query": settings.query and msgspec.json.encode(settings.query, order="deterministic").decode(),
        }
        return {name: str(value) for name, value in given.items() if value}

    # --- counting -----------------------------------------------------------------------------------------------------

    def count(self, window: Window) -> int:
        if self._to_be_made():
            return 0
        self._refresh()
        return self._counting.one(self._within(window))

    def count_many(self, windows: Sequence[Window]) -> Sequence[int]:
        if self._to_be_made():
            return [0] * len(windows)
        self._refresh()
        return self._counting.many(windows, self._catalog.resolution())

    def excluded(self) -> int:
        if self._to_be_made():
            return 0
        self._refresh()
        self._catalog.resolution()
        return self._counting.one(self._counting.without())

    def _within(self, window: Window) -> Query:
        return self._counting.within(window, self._catalog.resolution())

    def _to_be_made(self) -> bool:
        return self._settings.create and not self._catalog.exists()

    def _refresh(self) -> None:
        if self._settings.refresh:
            self._client.ask("POST", path(self._settings.index, "_refresh"), STRICT)

    # --- extraction ---------------------------------------------------------------------------------------------------

    def extract(self, request: ExtractRequest) -> Batches:
        settings = self._settings
        query = self._within(request.window)
        page_rows = min(settings.page_rows, request.batch_rows)
        shape = self._shape(request.exclude)
        extraction = Extraction(self._client, settings.index, query, shape, settings.slices, page_rows)
        with closing(extraction.pages()) as pages:
            for rows in pages:
                check_inside(rows, settings.timestamp_field, request.window, self._client.place)
                yield rows

    def _shape(self, exclude: frozenset[str]) -> Shape:
        settings, place = self._settings, self._client.place
        if settings.shape == "document":
            shape = DocumentShape(settings.timestamp_field, exclude, place)
            check_known(exclude, shape.columns, settings.timestamp_field, place)
            return shape
        mapped = columns(
            self._catalog.mappings(), settings.timestamp_field, lists=settings.lists, exclude=exclude, place=place
        )
        return FieldsShape(mapped, place)

    # --- loading ------------------------------------------------------------------------------------------------------

    def upload(self, load: Load) -> None:
        """Reads the staged rows through, so that none is written where one does not fit; with `create` makes the index.

        Raises PermanentError for a row that cannot become a document, SideError for an index that takes none.
        """
        self.discard(load.claim)
        self._check_unlimited()
        documents: Documents | None = None
        with closing(staged(load)) as batches:
            for batch in batches:
                if documents is None:
                    self._prepare(load, batch.schema)
                    documents = self._documents(load.columns, load.window, self._catalog.mappings)
                for _ in documents.made(batch):
                    pass
        scratch = Scratch(
            load.claim.fence,
            load.staged.key,
            partial(self._documents, load.columns, load.window, self._catalog.mappings),
        )
        self._scratch[load.claim.record.pipeline, load.window] = scratch

    def _prepare(self, load: Load, schema: pa.Schema) -> None:
        if self._to_be_made():
            made = {"mappings": self._mapping(schema, load.columns)}
            self._client.ask("PUT", path(self._settings.index), None, made)
        self._check_timestamp()
        self._ledger.prepare()

    def _mapping(self, schema: pa.Schema, renames: Mapping[str, str]) -> dict[str, Any]:
        """That of an index to be made for staged columns."""
        if self._settings.shape == "document":
            return {"properties": {self._settings.timestamp_field: {"type": "date_nanos"}}}
        names = [renames.get(name, name) for name in schema.names]
        return {"properties": properties(schema, names, self._settings.timestamp_field, self._client.place)}

    def ddl(self, rows: Batch, columns: Mapping[str, str]) -> Sequence[str]:
        """None, since an index is made by a request. Raises PermanentError for a column that has no field, SideError
        for an index that takes no document of such rows, or none from this user.
        """
        self._check_unlimited()
        schema = pa.RecordBatchReader.from_stream(rows).schema
        if self._to_be_made():
            mapped = {self._settings.index: self._mapping(schema, columns)}
        else:
            self._one_index()
            self._check_timestamp()
            check_writable(self._client, self._settings.index)
            mapped = self._catalog.mappings()
        check_writable(self._client, INDEX)
        self._documents(columns, _INSTANT, lambda: mapped).names(schema)
        return ()

    def _check_timestamp(self) -> None:
        """Raises SideError where the index lacks the field, or does not read times as documents made here hold them."""
        self._catalog.resolution()
        name = self._settings.timestamp_field
        if self._settings.shape == "document":
            return
        try:
            # Not by a range: the bounds of one are not read where the index is empty.
            self._counting.one({"terms": {name: list(_WRITTEN)}})
        except SideError as error:
            if "parse" not in str(error):
                raise
            raise SideError(
                f"{self._client.place}, timestamp_field {name!r}: the format of its mapping does not read "
                f"{' and '.join(_WRITTEN)}, the forms in which times are written; map it with "
                "'strict_date_optional_time' among its formats, or as date_nanos"
            ) from None

    def _check_unlimited(self) -> None:
        if self._settings.query is not None:
            raise SideError(f"{self._client.place}: query limits a source only; limit a target by scope")

    def _documents(
        self, renames: Mapping[str, str], window: Window, mappings: Callable[[], Mapping[str, dict[str, Any]]]
    ) -> Documents:
        settings, place = self._settings, self._client.place
        as_json, known = frozenset[str](), None
        if settings.shape == "fields":
            found = columns(
                mappings(),
                settings.timestamp_field,
                lists=settings.lists,
                exclude=frozenset(),
                place=place,
            )
            known = frozenset(column.name for column in found)
            as_json = frozenset(column.name for column in found if column.as_json)
        return Documents(
            place,
            settings.timestamp_field,
            renames,
            known,
            as_json,
            settings.key,
            settings.scope,
            window,
        )

    @contextmanager
    def transaction(self) -> Iterator[Publication]:
        """Not one: it converges (see `pipeline_elasticsearch.publication`)."""
        publication = ElasticsearchPublication(self._counting, self._within, self._ledger, self._scratch_of)
        yield publication
        publication.finish()

    def published(self, load: Load) -> bool:
        return self._ledger.holds(load.claim)

    def adopt(self, adoption: Adoption) -> Sequence[Entry]:
        return [] if self._to_be_made() else self._ledger.adopt(adoption)

    def discard(self, claim: Claim) -> None:
        key = (claim.record.pipeline, claim.window)
        scratch = self._scratch.get(key)
        if scratch is not None and scratch.fence <= claim.fence:
            del self._scratch[key]

    @cached_property
    def _ledger(self) -> TargetLedger:
        return TargetLedger(self._client, self._one_index(), scope_of(self._settings.scope), self._client.place)

    def _one_index(self) -> str:
        """Raises SideError unless the target is one index: the ledger knows it by its own name, not by an alias."""
        names = sorted(self._catalog.mappings())
        if len(names) != 1:
            raise SideError(f"{self._client.place}: a target is one index, found {names}; name the one to write to")
        return names[0]

    def _scratch_of(self, load: Load) -> Scratch:
        scratch = self._scratch.get((load.claim.record.pipeline, load.window))
        if scratch is None or scratch.staged_key != load.staged.key:
            raise PermanentError(f"{self._client.place}: {load.staged.key!r} is not uploaded; upload it first")
        return scratch

    # --- doctor -------------------------------------------------------------------------------------------------------

    def problems(self) -> Iterable[Problem]:
        """Does what a run does, on a window of one microsecond, and says what it ran into."""
        if not self._settings.verify_certs:
            yield Problem(
                f"{self._client.place}: verify_certs = false, so whoever stands between reads and changes everything",
                "name the cluster's CA in ca_certs, and verify",
                advice=True,
            )
        try:
            yield from self._findings()
        except PipelineError as error:
            what, _, remedy = str(error).rpartition("; ")
            yield Problem(what or remedy, remedy)

    def _findings(self) -> Iterator[Problem]:
        self.count(_INSTANT)
        missing = self.excluded()
        if not self._to_be_made():
            with closing(self.extract(ExtractRequest(_INSTANT))) as batches:
                for _ in batches:
                    pass
        if missing:
            yield Problem(
                f"{self._client.place}: {missing} documents have no {self._settings.timestamp_field!r} and belong to "
                "no window",
                "fill the field where documents are made",
            )


#: The forms in which documents made here hold instants.
_WRITTEN = ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000001Z")
_INSTANT = Window.from_us(0, 1_000)


def _conditions(settings: ElasticsearchSettings) -> list[Mapping[str, Any]]:
    """What limits the side, beside the window."""
    given = [] if settings.query is None else [settings.query]
    return [*given, *({"term": {name: value}} for name, value in settings.scope.items())]
