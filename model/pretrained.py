"""Published weights in a freshly initialized model."""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.registry import ModelError
from model.weight_files import read_weights
from model.weight_names import HEADS, family, is_buffer, to_timm, torch_layout

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# A list's index, at the end of a module's name: layer1_0/conv1/kernel is layer1.0.conv1.weight.
_INDEX = re.compile(r"_(\d+)(?=/)")
_GROUPS_SHOWN = 12


@dataclasses.dataclass
class Report:
    """The outcome for each array of a file and of a model.

    The model's arrays are named by their paths (`blocks_0/attn/qkv/kernel`), the file's as the
    file names them once prefixes are gone.

    Attributes:
        loaded: the model's arrays that have the file's values.
        resized: those among them that were resized, with both grids.
        replaced: arrays of the head that are left as initialized, with both class counts.
        missing: the model's arrays that the file does not have, left as initialized.
        unexpected: the file's arrays that the model does not have.
        wrong_shape: arrays of both that differ in shape, left as initialized, with both shapes.
    """

    loaded: list[str] = dataclasses.field(default_factory=list)
    resized: list[str] = dataclasses.field(default_factory=list)
    replaced: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    wrong_shape: list[str] = dataclasses.field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Every array was matched, but for those of a replaced head."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def lines(self) -> list[str]:
        """List the mismatches, a line each kind; arrays that differ in an index share an entry.

        Example:
            >>> Report(missing=["blocks_0/gamma_1", "blocks_1/gamma_1"]).lines()
            ['missing: blocks_*/gamma_1 (2)']
        """
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.wrong_shape),
        )
        return [f"{kind}: {_grouped(names)}" for kind, names in kinds if names]

    def summary(self) -> str:
        """Return one line: arrays loaded, resized, and left as initialized."""
        outcomes = [f"{len(self.loaded)} arrays loaded"]
        if self.resized:
            outcomes.append(f"resized: {_grouped(self.resized)}")
        if self.replaced:
            outcomes.append(f"as initialized: {_grouped(self.replaced)}")
        return "; ".join(outcomes)


class PretrainedError(ModelError):
    """Weights that do not match the model; a line each kind of mismatch, and the report."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class _Target(NamedTuple):
    """An array of the model: its path, timm's name of it, and itself or its shape."""

    path: str
    name: str
    leaf: Any


def load_pretrained(
    path: str | Path, params: Any, model_state: Any, *, strict: bool = True
) -> tuple[Any, Any, Report]:
    """Load the values of a file into a model's parameters and batch statistics.

    The file is `.safetensors` or `.npz`, with the names of PyTorch (timm, torchvision) for ViT,
    Swin, CaiT, ResNet, CifarResNet and VGG, or of vision_transformer and big_vision for ViT.
    Kernels are transposed to Flax's layout. Position embeddings and Swin's tables of relative
    positions are resized (bicubic) where the grid is another one, the class token's kept; both
    grids must be square. Where the number of classes differs, the head stays as it is.

    Args:
        path: the file.
        params: pytree of the model's parameters, or their shapes (jax.ShapeDtypeStruct).
        model_state: the rest, such as {"batch_stats": ...}, or its shapes.
        strict: raise where an array of the model or of the file has no counterpart; False:
            leave such arrays as they are.

    Returns:
        params, model_state, and the outcome for each array. Types stay the model's.

    Raises:
        ModelError: the file cannot be read, no kernel in it fits the model (whatever `strict`
            says), a value is not finite, or, with `strict`, an array has no counterpart.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "weights.npz")
        >>> np.savez(file, **{"fc.weight": np.ones((2, 3)), "fc.bias": np.arange(2)})
        >>> zeros = {"fc": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
        >>> params, _, report = load_pretrained(file, zeros, {})
        >>> params["fc"]["bias"].tolist(), report.summary()
        ([0.0, 1.0], '2 arrays loaded')
    """
    targets = _targets(params) + _targets(model_state)
    expected = {target.name for target in targets}
    weights = to_timm(read_weights(path), expected)
    kernels = _kernels(targets)
    if not any(target.name in weights for target in kernels):
        raise ModelError(
            f"pretrained weights {path}: nothing in it fits the model; its names "
            f"{_looks(weights)}, the model's {_looks([target.name for target in targets])}"
        )
    report = Report()
    values = [_fitted(weights.get(target.name), target, report) for target in targets]
    for target, value in zip(targets, values, strict=True):
        if value is not None and not np.isfinite(value).all():
            raise ModelError(
                f"pretrained weights {path}: {target.name} holds NaN or infinite values; "
                "the file is damaged, or its run diverged"
            )
    for name in weights:
        if name not in expected and not is_buffer(name):
            # ViT's layer before the logits goes with them.
            has_gone = report.replaced and name.startswith("pre_logits.")
            (report.replaced if has_gone else report.unexpected).append(name)
    if not set(report.loaded) & {target.path for target in kernels} or (strict and not report.fits):
        message = _mismatch(path, report, weights, targets)
        if strict:
            message += "\nmodel.pretrained_strict=False goes on without these"
        raise PretrainedError(message, report)
    leaves = [
        target.leaf if value is None else jnp.asarray(value, target.leaf.dtype)
        for target, value in zip(targets, values, strict=True)
    ]
    count = len(jax.tree.leaves(params))
    return (
        jax.tree.unflatten(jax.tree.structure(params), leaves[:count]),
        jax.tree.unflatten(jax.tree.structure(model_state), leaves[count:]),
        report,
    )


def to_pytorch(params: Any, model_state: Any) -> dict[str, np.ndarray]:
    """Return a model's arrays by the names that `load_pretrained` expects, in PyTorch's layout.

    Of the families that `load_pretrained` reads these are timm's names. VGG's dense layers stay
    matrices (out, in), which timm has as convolutions.

    Args:
        params: pytree of the model's parameters.
        model_state: the rest, such as {"batch_stats": ...}.

    Returns:
        Name -> array, contiguous: kernels of convolutions (out, in, height, width), of dense layers
        (out, in). One behind a flattened image takes rows, columns, channels, but VGG's, which has
        PyTorch's order.

    Raises:
        ModelError: two arrays have one name.

    Example:
        >>> weights = to_pytorch({"fc": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}, {})
        >>> {name: array.shape for name, array in weights.items()}
        {'fc.bias': (2,), 'fc.weight': (2, 3)}
    """
    weights = {}
    for path, name, leaf in _targets(params) + _targets(model_state):
        if name in weights:
            raise ModelError(f"{path}: another array is {name} in PyTorch's names, too")
        weights[name] = np.array(torch_layout(path, np.asarray(leaf)), order="C")
    return weights


def _fitted(array: np.ndarray | None, target: _Target, report: Report) -> np.ndarray | None:
    """Return a file's array in the target's shape, None where that cannot be, and report it."""
    if array is None:
        report.missing.append(target.path)
        return None
    # Of one byte they would be quantized, with scales that are not applied here.
    is_number = array.dtype.kind in "fiu" and array.dtype.itemsize > 1
    if not is_number and array.dtype != jnp.bfloat16:
        report.wrong_shape.append(f"{target.path} ({array.dtype} is no type of weights)")
        return None
    with np.errstate(over="ignore"):  # what overflows is infinite, and said to be
        array = array.astype(np.float32)
    shape = tuple(target.leaf.shape)
    if target.path.endswith("kernel"):
        array = _flax_kernel(array, len(shape))
    if array.shape != shape:
        module, _, leaf = target.name.rpartition(".")
        resized = None
        if leaf == "pos_embed":
            resized = _resized_positions(array, shape)
        elif leaf == "relative_position_bias_table":
            resized = _resized_table(array, shape)
        if resized is None:
            if module in HEADS and array.ndim and array.shape[:-1] == shape[:-1]:
                counts = f"file {array.shape[-1]}, model {shape[-1]}"
                report.replaced.append(f"{target.path} ({counts})")
            else:
                report.wrong_shape.append(f"{target.path} (file {array.shape}, model {shape})")
            return None
        report.resized.append(f"{target.path} {array.shape} to {shape}")
        array = resized
    report.loaded.append(target.path)
    return array


def _flax_kernel(array: np.ndarray, ndim: int) -> np.ndarray:
    """Transpose PyTorch's (out, in, ...) to Flax's (..., in, out), of `ndim` axes."""
    # timm has VGG's dense layers as convolutions that see all pixels, its inputs in the order of
    # torchvision's flattened ones: channels, rows, columns.
    if array.ndim == 4 and ndim == 2:
        array = array.reshape(array.shape[0], -1)
    if array.ndim == 2 and ndim == 4:
        array = array[:, :, None, None]
    if array.ndim < 2:
        return array
    return np.transpose(array, (*range(2, array.ndim), 1, 0))


def _resized_positions(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resize embeddings [1, tokens + n^2, c] to another n; None where these are no such grids.

    Where the file has no embedding for the class token, it gets 0, which is what was added to it.
    """
    if array.ndim != 3 or len(shape) != 3 or array.shape[::2] != shape[::2]:
        return None
    (tokens, n), (new_tokens, new_n) = _grid(array.shape[1]), _grid(shape[1])
    if n is None or new_n is None or tokens > new_tokens:
        return None
    grid = array[0, tokens:].reshape(n, n, -1)
    kept = np.concatenate([array[0, :tokens], np.zeros((new_tokens - tokens, shape[2]))])
    return np.concatenate([kept, _resized(grid, new_n)])[None].astype(np.float32)


def _resized_table(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resize biases [(2 w - 1)^2, heads] to windows of another side w."""
    if array.ndim != 2 or len(shape) != 2 or array.shape[1] != shape[1]:
        return None
    n, new_n = math.isqrt(array.shape[0]), math.isqrt(shape[0])
    if n * n != array.shape[0] or new_n * new_n != shape[0]:
        return None
    return _resized(array.reshape(n, n, -1), new_n)


def _grid(length: int) -> tuple[int, int | None]:
    """Return the count of tokens before a square grid (0 or 1), and its side."""
    for tokens in (0, 1):
        side = math.isqrt(max(length - tokens, 0))
        if side and side * side == length - tokens:
            return tokens, side
    return 0, None


def _resized(grid: np.ndarray, n: int) -> np.ndarray:
    """Resize [h, w, c] to [n^2, c]."""
    if grid.shape[:2] != (n, n):
        grid = np.asarray(jax.image.resize(grid, (n, n, grid.shape[2]), "bicubic"))
    return grid.reshape(n * n, -1)


def _targets(tree: Any) -> list[_Target]:
    targets = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/").removeprefix("batch_stats/")
        module, _, last = _INDEX.sub(r"/\1", path).rpartition("/")
        name = f"{module}/{_LEAVES.get(last, last)}".lstrip("/").replace("/", ".")
        targets.append(_Target(path, name, leaf))
    return targets


def _kernels(targets: list[_Target]) -> list[_Target]:
    """Return the body's kernels, or the head's if alone: two families may share a head."""
    kernels = [target for target in targets if target.path.endswith("kernel")]
    return [t for t in kernels if t.name.removesuffix(".weight") not in HEADS] or kernels


def _looks(names: Collection[str]) -> str:
    known = family(names)
    examples = ", ".join(sorted(names, key=len)[:2] if known is None else sorted(names)[:1])
    return f"{f'look like {known}' if known else 'are of no known family'} ({examples})"


def _mismatch(
    path: str | Path, report: Report, names: Collection[str], targets: list[_Target]
) -> str:
    here, there = family([target.name for target in targets]), family(names)
    line = (
        f"pretrained weights {path} do not match the model: {len(report.loaded)} of its "
        f"{len(targets)} arrays fit"
    )
    if here != there:
        line += f"; the file looks like {there or 'no known family'}, the model is {here}"
    return "\n".join([line, *report.lines()])


def _grouped(names: Iterable[str]) -> str:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?:(?<=[._/])|^)\d+(?=[./])", "*", name), []).append(name)
    texts = [
        same[0] if len(same) == 1 else f"{pattern} ({len(same)})"
        for pattern, same in groups.items()
    ]
    more = len(texts) - _GROUPS_SHOWN
    return ", ".join(texts[:_GROUPS_SHOWN]) + (f" and {more} more" if more > 0 else "")
