"""Documents of an index as the source of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from pipeline_core import Batches, ExtractRequest, PipelineError, Problem, Source, Window
from pipeline_elasticsearch.catalog import STRICT, Catalog
from pipeline_elasticsearch.client import Client, path
from pipeline_elasticsearch.columns import check_known, columns
from pipeline_elasticsearch.counting import Counting
from pipeline_elasticsearch.extraction import Extraction, check_inside
from pipeline_elasticsearch.pages import DocumentShape, FieldsShape, Shape

if TYPE_CHECKING:
    from pipeline_elasticsearch.settings import ElasticsearchSettings


class ElasticsearchConnector(Source):
    """One index, alias, data stream or pattern; counts and extracts. Opened by `ElasticsearchSettings.open`.

    Remembers nothing between two calls: what the index is, is asked anew each time, because a search answers 0 for a
    field that is not mapped, and passes over an index that was closed.
    """

    def __init__(self, settings: ElasticsearchSettings, client: Client) -> None:
        self._settings = settings
        self._client = client
        self._catalog = Catalog(client, settings.index, settings.timestamp_field)
        self._counting = Counting(client, settings.index, settings.timestamp_field, settings.query)

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
            "query": settings.query and msgspec.json.encode(settings.query, order="deterministic").decode(),
        }
        return {name: str(value) for name, value in given.items() if value}

    # --- counting -----------------------------------------------------------------------------------------------------

    def count(self, window: Window) -> int:
        self._refresh()
        return self._counting.one(self._counting.within(window, self._catalog.resolution()))

    def count_many(self, windows: Sequence[Window]) -> Sequence[int]:
        self._refresh()
        return self._counting.many(windows, self._catalog.resolution())

    def excluded(self) -> int:
        self._refresh()
        self._catalog.resolution()
        return self._counting.one(self._counting.without())

    def _refresh(self) -> None:
        if self._settings.refresh:
            self._client.ask("POST", path(self._settings.index, "_refresh"), STRICT)

    # --- extraction ---------------------------------------------------------------------------------------------------

    def extract(self, request: ExtractRequest) -> Batches:
        settings = self._settings
        query = self._counting.within(request.window, self._catalog.resolution())
        extraction = Extraction(
            self._client,
            settings.index,
            query,
            self._shape(request.exclude),
            settings.slices,
            min(settings.page_rows, request.batch_rows),
        )
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

    # --- doctor -------------------------------------------------------------------------------------------------------

    def problems(self) -> Iterable[Problem]:
        """Does what a run does, on a window of one microsecond, and says what it ran into."""
        if not self._settings.verify_certs:
            yield Problem(
                f"{self._client.place}: verify_certs = false, so whoever stands between reads and changes everything",
                "name the cluster's CA in ca_certs, and verify",
            )
        try:
            yield from self._findings()
        except PipelineError as error:
            what, _, remedy = str(error).rpartition("; ")
            yield Problem(what or remedy, remedy)

    def _findings(self) -> Iterator[Problem]:
        self.count(_INSTANT)
        missing = self.excluded()
        with closing(self.extract(ExtractRequest(_INSTANT))) as batches:
            for _ in batches:
                pass
        if missing:
            yield Problem(
                f"{self._client.place}: {missing} documents have no {self._settings.timestamp_field!r} and belong to "
                "no window",
                "fill the field where documents are made",
            )


_INSTANT = Window.from_us(0, 1_000)
