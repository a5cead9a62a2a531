#!/bin/sh
# JAX 0.10.2. With `jax_compilation_cache_max_size` set, the persistent cache writes two files an
# entry: NAME-cache, then NAME-atime. A process that is killed between the two leaves the first
# alone, and from then on nothing is ever kept in that folder again: before each write JAX reads the
# -atime of every entry, finds one missing, warns "Error writing persistent compilation cache entry",
# and writes none. Functions are compiled at each start, for good; neither an eviction nor a new
# process mends it. Only removing the half-written entry does.
#
# Seen: 1 entry; after the half-written one, two more functions: 1 entry, 2 warnings;
#       that one removed: 2 entries.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  jax==0.10.2 jaxlib==0.10.2 filelock==4.2.12
cat > "$folder/run.py" <<'PY'
import sys
import warnings
from pathlib import Path

import jax

folder = Path(sys.argv[1])
jax.config.update("jax_compilation_cache_dir", str(folder))
jax.config.update("jax_compilation_cache_max_size", 10**9)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def kept(*constants):
    """Compiles a function for each constant; entries there are then, and warnings on the way."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for constant in constants:
            jax.jit(lambda x, constant=constant: x * x + constant)(2.0)
    found = [w for w in said if "Error writing persistent" in str(w.message)]
    return len(list(folder.glob("*-cache"))), len(found)


seen = [kept(1.0)]
(atime,) = folder.glob("*-atime")
atime.unlink()  # What a process leaves that is killed before it writes this file.
seen.append(kept(2.0, 3.0))
for entry in folder.glob("*-cache"):
    entry.unlink()
seen.append(kept(4.0, 5.0))
for what, (entries, warned) in zip(("whole", "half-written", "removed"), seen, strict=True):
    print(f"{what}: {entries} entries, {warned} warnings")
sys.exit(seen != [(1, 0), (1, 2), (2, 0)])
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py" "$folder/cache"
