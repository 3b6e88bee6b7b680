"""Names of runs and titles of data sets, for people to read."""

from collections.abc import Sequence
from pathlib import Path

# Kinds whose name does not say which data they are, as ds_pipeline has them: it loads slowly.
OWN_FILES = ("image_folder", "csv", "npz", "idx", "forecast")


def dataset_title(name: str, data_dir: str | None) -> str:
    """Return the data set's name; of the kinds that are no name, with the file or folder.

    Args:
        name: dataset.dataset_name.
        data_dir: dataset.data_dir.

    Example:
        >>> dataset_title("mnist", "data"), dataset_title("csv", "data/prices.csv")
        ('mnist', 'csv prices.csv')
    """
    if name not in OWN_FILES or not data_dir:
        return name
    return f"{name} {Path(data_dir).expanduser().resolve().name}"


def names_of(runs: Sequence[Path]) -> list[str]:
    """Return the names of run directories, or the whole paths where two have one name.

    Example:
        >>> names_of([Path("runs/plain"), Path("runs/penalized")])
        ['plain', 'penalized']
        >>> names_of([Path("a/run"), Path("b/run")])
        ['a/run', 'b/run']
    """
    names = [path.resolve().name for path in runs]
    return names if len(set(names)) == len(names) else [str(path) for path in runs]
