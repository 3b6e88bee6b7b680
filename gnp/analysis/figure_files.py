"""Pictures that are never half written."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gnp.training.files import replaced


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a PNG and closes the figure.

    Args:
        figure: of pyplot.
        path: replaced whole.
        dpi: dots an inch.

    Raises:
        OSError: it cannot be written; the old picture is untouched.
    """
    try:
        with replaced(path) as file:
            figure.savefig(file, format="png", dpi=dpi)
    finally:
        plt.close(figure)
