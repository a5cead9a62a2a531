"""One digest of the package's source files, for all that is made from them."""

import functools
import hashlib
from importlib import metadata

from dss_jax import __version__
from dss_jax.core.paths import PACKAGE

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


@functools.cache
def code_digest() -> str:
    """The package's version, its source files, and the libraries that compiled code depends on."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\n".encode())
        digest.update(file.read_bytes())
    for name in LIBRARIES:
        digest.update(f"{name} {metadata.version(name)} ".encode())
    return f"{__version__} {digest.hexdigest()[:16]}"
