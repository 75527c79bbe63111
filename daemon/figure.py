"""What every plot of kvloom begins and ends with: an empty figure, saved as the same bytes for the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, MissingDependency

__all__ = ["figure_saved_to"]


@contextmanager
def figure_saved_to(path: Path, *, width_in: float, height_in: float) -> Iterator[Any]:
    """A ``matplotlib.figure.Figure`` which is written to ``path`` once it was drawn on.

    Raises :class:`InvalidRequest` where ``path`` does not end in .svg or .png, and :class:`MissingDependency` without
    matplotlib (the ``[plot]`` extra).
    """
    if path.suffix not in {".svg", ".png"}:
        raise InvalidRequest(f"plot file {path.name!r} must end in .svg or .png")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib is not installed: pip install 'kvloom[plot]'") from error
    mpl.rcParams["svg.hashsalt"] = "kvloom"
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    yield figure
    figure.savefig(path, dpi=144, metadata={"Date": None} if path.suffix == ".svg" else None)
