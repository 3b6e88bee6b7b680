"""Files of named arrays: `.safetensors` and `.npz`, never a pickle, which can run code."""

import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from model.registry import ModelError

Weights = dict[str, np.ndarray]

# What NumPy and zipfile raise for a damaged archive: some headers are parsed as Python, and may
# say a size that is not there.
_DAMAGED = (
    EOFError,
    MemoryError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
)
# An archive may unpack to a thousand times its size. Networks hardly shrink, but may hold zeros.
_SMALL, _MOST_TIMES = 2**30, 20
_LONGEST_NAME = 300
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".tar", ".th")


def read_weights(path: str | Path) -> Weights:
    """Read every array of a file, by name.

    Args:
        path: a file that ends in `.safetensors` or `.npz`.

    Returns:
        Name -> array, in the file's own types; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
        ModelError: one line: no such file, another format, damaged, or a pickle in it.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "weights.npz")
        >>> np.savez(file, bias=np.zeros(3))
        >>> read_weights(file)["bias"].shape
        (3,)
    """
    file = Path(os.path.expanduser(path))
    read = _reader(file)
    if not os.path.isfile(file):
        problem = "is a folder" if os.path.isdir(file) else "no such file"
        if problem == "no such file" and os.path.exists(file):
            problem = "is no regular file"  # a pipe, which may never end
        raise ModelError(f"pretrained weights {file}: {problem}")
    try:
        weights = read(file)
    except ModelError:
        raise
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise ModelError(f"pretrained weights {file} cannot be read: {reason}") from error
    except _DAMAGED as error:
        raise ModelError(
            f"pretrained weights {file}: no {file.suffix.lower()} file, or a damaged or "
            f"truncated one ({_first_line(error)})"
        ) from error
    if not weights:
        raise ModelError(f"pretrained weights {file}: holds no arrays")
    for name in weights:  # messages say them
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise ModelError(f"pretrained weights {file}: {ascii(name)[:60]} is no array's name")
    return weights


def _reader(file: Path) -> Callable[[Path], Weights]:
    suffix = file.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors
    if suffix == ".npz":
        return _read_npz
    if suffix in _PICKLES:
        raise ModelError(
            f"pretrained weights {file}: a {suffix} file is a pickle, which can run code when it "
            "is read; where you trust it, convert it with PyTorch: safetensors.torch.save_file("
            f"torch.load('{file.name}', weights_only=True), '{file.stem}.safetensors')"
        )
    raise ModelError(f"pretrained weights {file}: allowed is a file .safetensors or .npz")


def _read_safetensors(file: Path) -> Weights:
    try:
        return load_file(file)
    except (AttributeError, KeyError, TypeError) as error:
        # The header is sound, but names a type that NumPy does not have.
        raise ModelError(
            f"pretrained weights {file}: holds a type of number that cannot be read "
            f"({_first_line(error)}); allowed are float64, float32, float16, bfloat16, integers"
        ) from error
    except SafetensorError as error:
        raise ValueError(_first_line(error)) from error


def _read_npz(file: Path) -> Weights:
    with open(file, "rb") as opened:
        # np.load would take anything else for a pickle, and say so.
        if not zipfile.is_zipfile(opened):
            raise ValueError("no zip archive")
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as archive:
            _check_members(file, archive.zip.infolist())
            return {name: _member(file, archive, name) for name in archive.files}


def _check_members(file: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise unless they are as NumPy writes them, before anything is unpacked."""
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a name is there twice")
    if not {member.compress_type for member in members} <= {
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    }:
        raise ValueError("compressed in another way than NumPy's")
    packed, unpacked = file.stat().st_size, sum(member.file_size for member in members)
    if unpacked > max(_SMALL, _MOST_TIMES * packed):
        raise ModelError(
            f"pretrained weights {file}: {packed / 1e6:.1f} MB unpack to {unpacked / 1e9:.1f} GB, "
            "which no network's weights do; where they are yours, save them with np.savez"
        )


def _member(file: Path, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ModelError(
                f"pretrained weights {file}: {name} is a pickled Python object, which can run "
                "code when it is read; save arrays of numbers alone"
            ) from error
        raise
    except zlib.error as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is no array")
    # NumPy writes bfloat16 as two bytes without a type.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return array.view(jnp.bfloat16)
    return array


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
