"""What all pictures share: colours, a pyplot without a screen, and files written whole.

Matplotlib is imported when the first picture is drawn: it takes a second.
"""

import io
from pathlib import Path
from typing import Any

from dss_jax.core.paths import write_whole

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""


def pyplot() -> Any:
    """`matplotlib.pyplot`, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Text stays text in SVG; the ids in it do not depend on the time.
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "dss"
    return plt


def save(figure: Any, *files: Path) -> None:
    """Writes a figure as each file's ending says (PNG without one), and closes it.

    The same figure gives the same bytes.
    """
    for file in files:
        ending = file.suffix.removeprefix(".") or "png"
        picture = io.BytesIO()
        metadata = {"Date": None} if ending == "svg" else {}
        figure.savefig(picture, format=ending, dpi=130, metadata=metadata)
        write_whole(file, picture.getvalue())
    pyplot().close(figure)
