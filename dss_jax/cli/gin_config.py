"""The one file that knows gin: gin files and bindings in, a checked `Run` out.

Flags follow T5X: `--gin_file`, `--gin_search_paths`, `--gin.NAME=value`. Gin's own parser reads the
text, and this file what it finds: values, macros and includes. Gin itself would also import the
modules that a file names, and take bindings that nothing uses; here whatever has no effect, or
would do more than bind, is refused.
"""

import logging
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gin import config_parser

from dss_jax.core import config, storage
from dss_jax.core.errors import Mistakes, UsageError, unknown_name
from dss_jax.core.paths import shipped

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from dss_jax.core.sweep_config import Sweep

SECTIONS = (*config.SECTIONS, "Sweep")
"""Names in gin files: of what a run has, and of the grid of `dss sweep`, which it passes over."""


def settings() -> list[str]:
    from dss_jax.core.sweep_config import Sweep

    return [*config.SETTINGS, *(f"Sweep.{f.name}" for f in fields(Sweep))]


def search_paths(extra: Iterable[str | Path] = ()) -> list[Path]:
    """Where gin files are looked up, best first: `extra`, ./gin_configs, the shipped ones."""
    return [*map(Path, extra), Path.cwd() / "gin_configs", Path.cwd(), shipped("gin_configs")]


def gin_names(folder: str, extra: Iterable[str | Path] = ()) -> dict[str, Path]:
    """Name -> file of the gin files in one folder ("models") of the search paths."""
    found: dict[str, Path] = {}
    for path in search_paths(extra):
        for file in sorted((path / folder).glob("*.gin")):
            found.setdefault(file.stem, file)
    return found


def named_file(kind: str, name: str, extra: Iterable[str | Path] = ()) -> Path:
    """The gin file `<kind>s/<name>.gin`; raises UsageError with the nearest where there is none."""
    known = gin_names(f"{kind}s", extra)
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]


@dataclass(frozen=True)
class Settings:
    """What gin files and bindings give, "Train.steps" -> value, not checked yet."""

    values: dict[str, Any]

    def _made(self, section: type) -> Any:
        head = f"{section.__name__}."
        own = {n.removeprefix(head): v for n, v in self.values.items() if n.startswith(head)}
        return section(**own)

    def run(self) -> config.Run:
        """The checked configuration. Raises UsageError with what is allowed for wrong values."""
        mistakes, made = Mistakes(), {}
        for part, section in zip(fields(config.Run), config.SECTIONS.values(), strict=True):
            with mistakes:
                made[part.name] = self._made(section)
        mistakes.done()
        return config.Run(**made)

    def sweep(self) -> "Sweep":
        """The grid; what is said of runs is passed over. Raises UsageError as `run`."""
        from dss_jax.core.sweep_config import Sweep

        return self._made(Sweep)


def read(
    files: Sequence[str | Path] = (),
    bindings: Sequence[str] = (),
    extra_search_paths: Iterable[str | Path] = (),
) -> Settings:
    """Reads gin files, then bindings; later ones win.

    Raises:
      UsageError: a file or a name is wrong, or a binding has no effect; the message says where.
    """
    return _Reader(["", *search_paths(extra_search_paths)]).settings(files, bindings)


def read_saved(file: Path, bindings: Sequence[str] = ()) -> Settings:
    """Reads the `config.gin` that a run has saved, then bindings. It may come from anywhere, so
    every line of it must bind a setting to a value.

    Raises:
      UsageError: as for `read`, or a line does something else.
    """
    return _Reader([""], plain=True).settings([file], bindings)


class _Reference(NamedTuple):
    """What stands for a value: a macro, %NAME, or a function, @NAME, which no setting takes."""

    sign: str
    name: str


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]  # gin has no types
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
        return _Reference("@", f"{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name: str) -> _Reference:
        return _Reference("%", macro_name)


@dataclass
class _Reader:
    """Collects bindings, of files in the folders; where it is `plain`, these may only bind settings
    to values.
    """

    folders: Sequence[str | Path]
    plain: bool = False
    _values: dict[str, tuple[Any, str]] = field(default_factory=dict)
    _macros: dict[str, tuple[Any, str]] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _open: list[Path] = field(default_factory=list)
    _mistakes: Mistakes = field(default_factory=Mistakes)

    def settings(self, files: Sequence[str | Path], bindings: Sequence[str]) -> Settings:
        for file in files:
            self.file(file)
        self.plain = False
        for binding in bindings:
            self.text(binding, f"in {binding!r}")
        values = {}
        for name, bound in self._values.items():
            with self._mistakes:
                values[name] = self._filled(name, *bound)
        self._mistakes.done()
        for name in self._macros.keys() - self._used:
            from dss_jax.core.hints import without_effect

            raise without_effect(name, self._macros[name][1], settings())
        return Settings(values)

    def file(self, name: str | Path) -> None:
        """Reads a file, and what it includes."""
        name = storage.local_file(name) if storage.is_remote(name) else name
        found = next((p for d in self.folders if (p := Path(d) / name).is_file()), None)
        if found is None:
            looked = ", ".join(["the path itself", *map(str, self.folders[1:])])
            raise UsageError(f"no gin file {str(name)!r}. Looked at: {looked}.")
        if found in self._open:
            raise UsageError(f"{found} includes itself.")
        self._open.append(found)
        try:
            self.text(found.read_text(encoding="utf-8"), str(found))
        except UnicodeDecodeError as error:
            raise UsageError(f"gin cannot read {found}: it is no UTF-8 text: {error}.") from error
        self._open.pop()

    def text(self, text: str, where: str) -> None:
        """Reads statements; `where` they stand, for messages."""
        for statement in _statements(text, where):
            place = _place(where, statement.location.line_num)
            if isinstance(statement, config_parser.BindingStatement):
                with self._mistakes:
                    self._bind(statement, place)
            elif isinstance(statement, config_parser.BlockDeclaration):
                with self._mistakes:
                    _check_section(statement.scope, statement.selector, place)
            elif isinstance(statement, config_parser.IncludeStatement):
                if self.plain:
                    raise UsageError(f"include is not taken here: lines only bind values ({place})")
                self.file(statement.filename)
            else:
                raise UsageError(
                    f"{statement.format()!r} is not taken: gin files bind values, and import "
                    f"nothing ({place}). For a SeqIO task of yours give --mixture_or_task_module."
                )

    def _bind(self, found: config_parser.BindingStatement, place: str) -> None:
        if not found.arg_name:
            if self.plain or found.scope:
                raise UsageError(
                    f"{found.selector!r} is no setting: SECTION.NAME = value ({place})"
                )
            self._macros[found.selector] = found.value, place
            return
        _check_section(found.scope, found.selector, place)
        old = f"{found.selector}.{found.arg_name}"
        name = config.RENAMED.get(old, old)
        if name != old:
            log.warning("%s is called %s now (%s)", old, name, place)
        if name not in config.SETTINGS and name not in settings():
            names = [s for s in settings() if s.startswith(f"{found.selector}.")]
            raise UsageError(f"{unknown_name('setting', name, names)} ({place})")
        self._values[name] = found.value, place

    def _filled(self, what: str, value: Any, place: str, within: tuple[str, ...] = ()) -> Any:
        """The value of a setting or a macro with what its macros stand for."""
        if isinstance(value, _Reference):
            sign, name = value
            if sign == "@":
                raise UsageError(f"{what} must be a value, not @{name} ({place})")
            if name not in self._macros:
                raise UsageError(f"{unknown_name('macro', name, self._macros)} ({place})")
            if name in within:
                raise UsageError(f"the macro {name} stands for itself ({place})")
            self._used.add(name)
            return self._filled(f"the macro {name}", *self._macros[name], (*within, name))
        if isinstance(value, dict):
            return dict(self._filled(what, list(value.items()), place, within))
        if isinstance(value, list | tuple):
            return type(value)(self._filled(what, v, place, within) for v in value)
        return value


def _check_section(scope: str, section: str, place: str) -> None:
    if scope:
        raise UsageError(
            f"{scope}/{section} has a scope, which nothing here reads: bind {section} ({place})"
        )
    if section not in SECTIONS:
        raise UsageError(f"{unknown_name('section', section, SECTIONS)} ({place})")


def _place(where: str, line: int) -> str:
    return where if where.startswith("in ") else f"{where}:{line}"


def _statements(text: str, where: str) -> Iterator[Any]:
    parser = config_parser.ConfigParser(text, _Delegate())
    try:
        yield from parser
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        line = getattr(error, "lineno", None) or 1
        from dss_jax.core.hints import unreadable

        raise unreadable(text.splitlines()[line - 1 : line], _place(where, line), error) from error
