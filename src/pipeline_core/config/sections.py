"""A section of the configuration, and how it becomes an opened object: references are resolved at that moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Generic, TypeVar, cast

from attrs import field, frozen

from pipeline_core.config.findings import Refused
from pipeline_core.config.references import Name, Place, marked, names_in, resolved, shown_path
from pipeline_core.contracts import Context, Provider, SecretResolver, Settings
from pipeline_core.errors import ConfigError, PluginError

T = TypeVar("T")


def aliases_of(provider: Provider[Any], section: str) -> dict[str, str]:
    """The provider's aliases that may fill a section, and the setting of each."""
    other = {"source": "target_", "target": "source_"}.get(section)
    # `source_index` is never the target's, even where one technology takes both sides.
    return {alias: to for alias, to in provider.aliases.items() if not (other and alias.startswith(other))}


@frozen(eq=False)
class Part(Generic[T]):
    """One section: which provider it selects, and its settings as written. `open` may be called any number of times."""

    place: Place = field(repr=shown_path)
    type: str
    provider: Provider[Settings[T]] = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    resolvers: Mapping[str, Part[SecretResolver]] = field(factory=dict, repr=False)

    @property
    def path(self) -> str:
        """Where the section stands, as TOML writes it."""
        return shown_path(self.place)

    def findings(self) -> list[tuple[Place, str]]:
        """What is wrong with the settings as they stand, and where; a reference stands for any single value."""
        return self._structured(marked(self.options))[1]

    def open(self, context: Context) -> AbstractContextManager[T]:
        """Resolves the references and opens the settings; the context manager closes what they opened.

        Raises ConfigError for a reference without a value, and for one whose value does not fit: it names the section,
        the setting and the reference, never the value. So does, of the context manager, one that the opening raises.
        """
        settings, findings = self._structured(resolved(self.options, self._answers(context)))
        if settings is None:
            raise ConfigError([f"{shown_path(place)}: {text}" for place, text in findings])
        return self._opened(settings, context)

    @contextmanager
    def _opened(self, settings: Settings[T], context: Context) -> Iterator[T]:
        with ExitStack() as stack:
            try:
                opened = stack.enter_context(settings.open(context))
            except ConfigError as error:
                raise ConfigError([self._placed(problem) for problem in error.problems]) from None
            yield opened

    def _placed(self, problem: str) -> str:
        """What a plugin says of its settings, with the section, which it does not know."""
        if problem.startswith(self.path):
            return problem
        return f"{self.path}{'.' if problem.partition(':')[0] in self.options else ': '}{problem}"

    def _structured(self, options: Mapping[str, Any]) -> tuple[Settings[T] | None, list[tuple[Place, str]]]:
        from pipeline_core.config.structuring import structured  # noqa: PLC0415 - cattrs takes a while to import

        try:
            return structured(cast(type[Settings[T]], self.provider.settings), options), []
        except Refused as refused:
            return None, [
                ((*self.place, *path), text + self._or_variable(path, text)) for path, text in refused.findings
            ]

    def _or_variable(self, path: Place, text: str) -> str:
        """For a setting that is missing, the variable of the environment that gives it too, if there is one."""
        if len(path) != 1 or not text.startswith("missing"):
            return ""
        known = aliases_of(self.provider, str(self.place[0]))
        return next(
            (f"; or set the environment variable {alias.upper()}" for alias in known if known[alias] == path[0]), ""
        )

    def _answers(self, context: Context) -> dict[Name, str]:
        wanted: dict[str, dict[Name, Place]] = defaultdict(dict)
        for place, name in names_in(self.options):
            wanted[name.prefix].setdefault(name, place)
        answers: dict[Name, str] = {}
        missing: list[str] = []
        for prefix, names in wanted.items():
            with self.resolvers[prefix].open(context) as resolver:
                for name, place in names.items():
                    try:
                        answers[name] = _answer(resolver, name)
                    except KeyError:
                        missing.append(f"{shown_path((*self.place, *place))}: {name} has no value; {_remedy(name)}")
        if missing:
            raise ConfigError(missing)
        return answers


def _answer(resolver: SecretResolver, name: Name) -> str:
    answer: object = resolver.resolve(name.name)
    if not isinstance(answer, str):
        raise PluginError(
            f"secret resolver {name.prefix!r}: found a {type(answer).__name__} for {name}, expected a string"
        )
    return answer


def _remedy(name: Name) -> str:
    if name.prefix == "env":
        return f"set the environment variable {name.name}"
    return f"add {name.name!r} to what {name.prefix!r} reads, or change the reference"
