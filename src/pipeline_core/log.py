"""Events and durations as structured log records, through the standard `logging`.

The loggers are `pipeline_core` and its children. The library sets no handler and no level: a program does, with one of
the two formatters here or its own. A record carries `pipeline`, `window` (ISO 8601, `start/end`), `step` and `fields`.
"""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from attrs import define, field, frozen

from pipeline_core.contracts import Observer
from pipeline_core.errors import ConfigError
from pipeline_core.record import Event
from pipeline_core.secrets import redact
from pipeline_core.window import Window, iso

LOGGER = logging.getLogger("pipeline_core")
LOGGER.addHandler(logging.NullHandler())

_OWN_KEYS = ("time", "level", "logger", "message", "pipeline", "window_start", "window_end", "step", "exception")


@define(eq=False)
class Reporter:
    """Tells each event of one pipeline once to the log, and to every observer.

    `clock` gives microseconds UTC and never fails. Threads may share a reporter: an observer is then told by
    several of them at once.
    """

    pipeline: str
    clock: Callable[[], int]
    observers: Sequence[Observer] = ()
    _complained: set[tuple[int, str]] = field(factory=set, init=False)

    def tell(self, step: str, window: Window | None = None, *, level: int = logging.INFO, **fields: Any) -> Event:
        """Logs and hands on what happened; every text in `fields` is cleaned of secrets, every value JSON-safe.

        An exception in an observer is logged, once a step, and goes no further; a KeyboardInterrupt or SystemExit does.
        """
        texts = {name: cleaned(value) for name, value in fields.items()}
        event = Event(self.clock(), self.pipeline, window, redact(step), texts)
        _log(LOGGER, level, event.step, event.fields, pipeline=self.pipeline, window=window)
        for number, observer in enumerate(self.observers):
            try:
                observer.notify(event)
            except Exception as error:  # noqa: BLE001 - a stranger's code, which must harm neither window nor others
                self._complain(number, observer, event.step, error)
        return event

    def _complain(self, number: int, observer: Observer, step: str, error: Exception) -> None:
        if (number, step) in self._complained:
            return
        self._complained.add((number, step))
        name, trace = _name(observer), _trace(error)
        LOGGER.warning("observer %s failed at step %s; it is told of later steps\n%s", name, step, trace)


@contextmanager
def opened(name: str, opening: AbstractContextManager[Observer]) -> Iterator[Observer | None]:
    """The observer, None where it could not be opened; closed on the way out, in which it may fail too.

    Either is logged, and goes no further, unless what it needs is not configured: raises ConfigError.
    """
    stack = ExitStack()
    observer = None
    try:
        observer = stack.enter_context(opening)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - a stranger's code, as above
        LOGGER.warning("%s could not be opened; it is told of nothing\n%s", name, _trace(error))
    try:
        yield observer
    finally:
        try:
            stack.close()
        except Exception as error:  # noqa: BLE001 - as above
            LOGGER.warning("%s failed when it was closed\n%s", name, _trace(error))


@frozen
class Stopwatch:
    """`seconds` since the start, by a clock that never jumps; after the end it stands still."""

    _started: float = field(factory=time.monotonic, init=False)
    _ended: list[float] = field(factory=list, init=False)

    @property
    def seconds(self) -> float:
        return (self._ended[0] if self._ended else time.monotonic()) - self._started

    def stop(self) -> None:
        self._ended.append(time.monotonic())


@contextmanager
def timed(
    step: str | None = None, *, logger: logging.Logger = LOGGER, level: int = logging.DEBUG, **fields: Any
) -> Iterator[Stopwatch]:
    """Measures a block, or as a decorator each call of a function; where `step` is given, logs it with `seconds`.

    A failure is logged too, with its type as the field `error`, and goes on::

        with timed() as watch:
            rows = target.count(window)
        report.tell("counted", window, rows=rows, seconds=watch.seconds)

        @timed("plan")
        def plan(): ...

    A generator function is not for the decorator: only making the generator would be measured.
    """
    watch = Stopwatch()
    error: dict[str, str] = {}
    try:
        yield watch
    except BaseException as raised:
        error = {"error": type(raised).__name__}
        raise
    finally:
        watch.stop()
        if step is not None:
            found = {**fields, "seconds": watch.seconds, **error}
            _log(logger, level, redact(step), {name: cleaned(value) for name, value in found.items()})


class TextFormatter(logging.Formatter):
    """One line for people: time (UTC), level, the logger's name where it is not ours, message; with tracebacks, and
    cleaned of secrets.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging gave it
        origin = "" if record.name.partition(".")[0] == LOGGER.name else f"{record.name}: "
        return f"{record.asctime} {record.levelname} {origin}{record.message}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the event's fields beside `time` (ISO 8601, UTC), `level`, `logger` and `message`.

    A field whose name is already taken gets an underscore behind it. Cleaned of secrets, tracebacks included.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": iso(int(record.created * 1_000_000)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("pipeline", "step"):
            if (value := getattr(record, key, None)) is not None:
                line[key] = value
        if isinstance(window := getattr(record, "window", None), str) and "/" in window:
            line["window_start"], line["window_end"] = window.split("/", 1)
        if isinstance(fields := getattr(record, "fields", None), Mapping):
            given = {name: value for name, value in fields.items() if value is not None}
            line |= {f"{name}_" if name in _OWN_KEYS else name: value for name, value in given.items()}
        if exception := _exception(self, record):
            line["exception"] = exception
        return json.dumps(cleaned(line))


def _log(
    logger: logging.Logger,
    level: int,
    step: str,
    fields: Mapping[str, Any],
    *,
    pipeline: str | None = None,
    window: Window | None = None,
) -> None:
    if not logger.isEnabledFor(level):
        return
    words = [pipeline, window and str(window), step, *(f"{k}={_word(v)}" for k, v in fields.items() if v is not None)]
    extra = {"pipeline": pipeline, "window": window and str(window), "step": step, "fields": fields}
    logger.log(level, "%s", " ".join(word for word in words if word), extra=extra, stacklevel=3)


def _word(value: Any) -> str:
    """A field's value in one word, or in quotes."""
    if isinstance(value, float):
        return str(round(value, 3))
    if isinstance(value, str) and value and not any(c.isspace() or c in '"=' for c in value):
        return value
    return json.dumps(value, ensure_ascii=False)


def cleaned(value: Any) -> Any:
    """`value` as JSON can hold it, every text in it without secrets. What JSON does not know becomes its text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple | AbstractSet):
        return [cleaned(item) for item in value]
    return redact(str(value))


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    return formatter.formatException(record.exc_info) if record.exc_info else record.exc_text


def _trace(error: Exception) -> str:
    """As text, because a formatter of the program's own would print a traceback with its secrets."""
    return redact("".join(traceback.format_exception(error))).rstrip()


def _name(observer: Observer) -> str:
    return f"{type(observer).__module__}.{type(observer).__qualname__}"
