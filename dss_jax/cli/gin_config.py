"""The one file that knows gin: gin files and bindings in, a checked `Run` out.

Flags follow T5X: `--gin_file`, `--gin_search_paths`, `--gin.NAME=value`. gin only collects the
values here; the dataclasses of `dss_jax.core.config` are built, and so checked, by hand, which
keeps them plain and picklable.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gin

from dss_jax.core import config, sweep_config
from dss_jax.core.errors import UsageError, unknown_name
from dss_jax.core.paths import shipped

_FIELD_OF_SECTION = {f.default.__class__.__name__: f.name for f in
                     dataclasses.fields(config.Run)}  # fmt: skip


SECTIONS: dict[str, type] = {**config.SECTIONS, "Sweep": sweep_config.Sweep}
"""Name in gin files -> class: of a run, and the grid of `dss sweep`, which a run passes over."""


def _register() -> None:
    for name, section in SECTIONS.items():
        gin.external_configurable(section, name)


_register()


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
    """The gin file `<kind>s/<name>.gin`.

    Raises:
      UsageError: there is none; the message names the nearest.
    """
    known = gin_names(f"{kind}s", extra)
    if name not in known:
        raise unknown_name(kind, name, known)
    return known[name]


def _explain(error: Exception) -> UsageError:
    """gin's error in our words, with the nearest name where one is misspelt."""
    text = str(error)
    where = re.search(r'In (?:file "[^"]*", line \d+|bindings string line \d+)', text)
    place = f" ({where[0]})" if where else ""
    if found := re.search(r"No configurable matching '([^']+)'", text):
        return UsageError(f"{unknown_name('section', found[1], SECTIONS)}{place}")
    if found := re.search(r"'(\w+)' doesn't have a parameter named '([^']+)'", text):
        fields = dataclasses.fields(SECTIONS[found[1]])
        names = [f"{found[1]}.{f.name}" for f in fields]
        return UsageError(f"{unknown_name('setting', f'{found[1]}.{found[2]}', names)}{place}")
    return UsageError(f"gin cannot read the configuration: {text}")


def bound_settings() -> frozenset[str]:
    """The settings ("T5Config.emb_dim") that the last `load_run` was given, not defaults."""
    return frozenset(f"{n}.{field}" for n in config.SECTIONS for field in gin.get_bindings(n))


def _parse(
    files: Sequence[str | Path], bindings: Sequence[str], extra: Iterable[str | Path]
) -> dict[str, dict[str, Any]]:
    """Section -> the values that gin files and bindings give it; UsageError for what is wrong."""
    gin.clear_config()
    paths = [str(p) for p in search_paths(extra)]
    # gin has no public way to forget earlier paths, and none to keep it from taking
    # "tasks/cqa.gin" for a resource of a Python package named tasks.
    gin.config._LOCATION_PREFIXES = ["", *paths]
    gin.config._FILE_READERS = [(open, os.path.isfile)]
    for file in files:
        if not any((Path(p) / file).is_file() for p in ["", *paths]):
            looked = ", ".join(["the path itself", *paths])
            raise UsageError(f"no gin file {str(file)!r}. Looked at: {looked}.")
    try:
        gin.parse_config_files_and_bindings(
            [str(f) for f in files], list(bindings), finalize_config=False
        )
        return {name: gin.get_bindings(name) for name in SECTIONS}
    except UsageError:
        raise
    except Exception as error:
        raise _explain(error) from error


def load_run(
    files: Sequence[str | Path] = (),
    bindings: Sequence[str] = (),
    extra_search_paths: Iterable[str | Path] = (),
) -> config.Run:
    """Parses gin files, then bindings (later ones win), and builds the checked configuration.

    Raises:
      UsageError: a file, a name or a value is wrong; the message says which and what is allowed.
    """
    values = _parse(files, bindings, extra_search_paths)
    built = {_FIELD_OF_SECTION[n]: config.SECTIONS[n](**values[n]) for n in config.SECTIONS}
    return config.Run(**built)


def load_sweep(
    files: Sequence[str | Path] = (),
    bindings: Sequence[str] = (),
    extra_search_paths: Iterable[str | Path] = (),
) -> sweep_config.Sweep:
    """The grid that gin files and bindings give; what they say of runs is passed over.

    Raises:
      UsageError: as for `load_run`.
    """
    return sweep_config.from_values(_parse(files, bindings, extra_search_paths)["Sweep"])
