"""Digests of source files: of any file, of this package, and of all that a file imports.

Standard library only.
"""

import ast
import functools
import hashlib
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from dss_jax import __version__
from dss_jax.core.paths import PACKAGE, shipped

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
"""What compiled code depends on beside this package."""

TICK_SECONDS = 0.02
"""A file system's clock ticks every 1 to 10 ms: of two changes within a tick it may not tell."""

_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_SITE = {"site-packages", "dist-packages"}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. One that has not changed is read once a process."""
    if time.time() - path.stat().st_ctime < TICK_SECONDS:
        # Or a change that comes at once would leave the file's times as they are.
        time.sleep(TICK_SECONDS)
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@functools.cache
def _digest(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def package_digest(*rooms: str) -> str:
    """SHA-256 of this package's source files, in hex: of some rooms, or of all; read once."""
    folders = [PACKAGE / room for room in rooms] or [PACKAGE]
    digest = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


@functools.cache
def code_digest(*rooms: str) -> str:
    """The package's version and digest (or that of some rooms), and what compiled code needs."""
    libraries = (f"{name} {metadata.version(name)}" for name in LIBRARIES)
    own = () if rooms else (__version__,)
    return " ".join((*own, package_digest(*rooms)[:16], *libraries))


def imported_files(files: Iterable[Path], *, loaded: bool = True) -> set[Path]:
    """Source files and all that they import, also inside of functions, and what that imports:
    resolved paths, without those that are `installed` and not among `files`.

    `loaded`: whether a module that is loaded already is looked for where it was loaded from.
    """
    left = {file.resolve() for file in files}
    found: set[Path] = set()
    while left:
        file = left.pop()
        found.add(file)
        imported = {path.resolve() for path in _imports(file, loaded) if path.is_file()}
        left |= {path for path in imported - found if not installed(path)}
    return found


def module_file(name: str, *, loaded: bool = True) -> Path | None:
    """The source file of a module, found without importing anything; None where there is none."""
    if loaded and (own := getattr(sys.modules.get(name), "__dict__", {}).get("__file__")):
        return Path(own)
    places = [Path(folder, *name.split(".")) for folder in (str(Path.cwd()), *sys.path)]
    files = (file for p in places for file in (p / "__init__.py", p.with_suffix(".py")))
    return next(filter(Path.is_file, files), None)


def _imports(file: Path, loaded: bool) -> Iterator[Path]:
    """The files of the modules that a source file names in its import statements."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # No Python. Whoever executes it says so.
    for node in ast.walk(tree):
        names: list[str] = []
        match node:
            case ast.ImportFrom(level=level, module=module) if level:
                base = file.parents[level - 1] / Path(*(module or "").split("."))
                for path in (base, *(base / alias.name for alias in node.names)):
                    yield from (path.with_suffix(".py"), path / "__init__.py")
            case ast.ImportFrom(module=module):
                names = [f"{module}.{alias.name}" for alias in node.names]
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.Call(func=called, args=[ast.Constant(value=str(name)), *_]):
                names = [name] if "import_module" in ast.unparse(called) else []
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE.name or parts[0] in sys.stdlib_module_names:
                continue
            # A package's own file runs before its modules; the last part may be no module.
            heads = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
            yield from filter(None, (module_file(head, loaded=loaded) for head in heads))


def installed(file: Path) -> bool:
    """Whether a resolved path is the standard library's, an installed package's or this package's;
    the task files that come with it are not.
    """
    if file.is_relative_to(shipped("tasks")):
        return False
    inside = any(file.is_relative_to(folder) for folder in (PACKAGE, *_STANDARD))
    return inside or bool(_SITE & set(file.parts))
