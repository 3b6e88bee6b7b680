"""Pictures: in a style of their own whatever the user's is, and never half written."""

import contextlib
import glob
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from gnp.terminal import describe, warn
from gnp.training.files import replaced

# Files: OSError. FreeType, TeX: RuntimeError. Texts and sizes that matplotlib cannot take:
# ValueError. Lines of too many turns: OverflowError.
_FAILURES = (OSError, RuntimeError, ValueError, OverflowError)


@contextlib.contextmanager
def _without_settings() -> Iterator[None]:
    """Keep the user's settings from matplotlib, which reads them as it is imported.

    It would end there on a backend that it lacks; ./matplotlibrc comes before all others.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    spec = find_spec("matplotlib")
    own = Path(spec.origin if spec and spec.origin else "").parent / "mpl-data"
    users = {name: os.environ.pop(name, None) for name in ("MPLBACKEND", "MATPLOTLIBRC")}
    os.environ["MATPLOTLIBRC"] = str(own)
    try:
        has_file = Path("matplotlibrc").exists()
        with contextlib.chdir(own) if has_file else contextlib.nullcontext():
            yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update({name: value for name, value in users.items() if value is not None})


with _without_settings():
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which stay apart without color vision; dashes and markers do too.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLORS, linestyle=("-", "--", "-.", ":") * 2),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.titlesize": 12,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@contextlib.contextmanager
def picture(
    path: Path,
    figsize: tuple[float, float],
    *,
    dpi: int = 120,
    mathtext: bool = False,
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Iterator[Figure]:
    """Give a figure to draw on, and write it as a PNG when the block ends without an error.

    Args:
        path: replaced whole.
        figsize: width and height in inches.
        dpi: dots an inch.
        mathtext: texts between dollars, such as the ticks of logarithmic axes, are formulas; not
            where texts are of data, whose names may have dollars in them.
        layout: matplotlib's; "compressed" for grids of images.

    Raises:
        OSError: it cannot be written; the old picture is untouched.
    """
    with own_style(mathtext):
        figure = Figure(figsize=figsize, layout=layout)
        yield figure
        with picture_file(path) as file:
            figure.savefig(file, format="png", dpi=dpi)


@contextlib.contextmanager
def own_style(mathtext: bool = False) -> Iterator[None]:
    """Draw in one style, and without a word on what data have in them.

    Glyphs that the font lacks become boxes, and numbers that are too large are left out.
    """
    style: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    style |= {**_STYLE, "text.parse_math": mathtext}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("ignore", category)
        with matplotlib.rc_context(style):
            yield


@contextlib.contextmanager
def picture_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a picture to write, as `replaced` does; what an interrupted one left is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        left.unlink(missing_ok=True)
    with replaced(path) as file:
        yield file


def drawn(plot: Callable[..., None], *arguments: Any) -> bool:
    """Draw a picture, whose path is the last argument; warn and return False where that fails."""
    try:
        plot(*arguments)
    except _FAILURES as error:
        warn(f"{arguments[-1].name} was not drawn: {describe(error).splitlines()[0]}")
        return False
    return True
