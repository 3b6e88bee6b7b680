"""Pictures of a data set's examples, before and after augmentation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

import ds_pipeline
from ds_pipeline.decode import decode_image
from gnp.analysis import data_pictures as pictures
from gnp.analysis.data_numbers import decoded, encoded, evenly, is_encoded

_GRID = 8
_SERIES = 24
_SEED_TAG = 0x4C6F


def plot_examples(
    dataset: ds_pipeline.Dataset,
    source: ds_pipeline.Source,
    split: str,
    seed: int,
    title: str,
    path: Path,
) -> None:
    """Draw examples: images before and after augmentation, series as lines, tables by column.

    Args:
        dataset: whose augmentation is applied to the training split.
        source: of the split.
        split: train or evaluation.
        seed: of the choice and of the augmentation.
        title: of the picture.
        path: the PNG to write.
    """
    labels, classes = source.labels(), dataset.class_names
    steps = (dataset.augment, dataset.mix, dataset.erase)
    if len(dataset.shape) == 1:
        indices = evenly(len(source), 5000)
        inputs = decoded(source, dataset.shape).batch(indices)["input"]
        columns = dataset.columns or [f"column {i + 1}" for i in range(inputs.shape[1])]
        pictures.plot_columns(inputs, labels[indices], classes, columns, title, path)
    elif len(dataset.shape) == 2:
        indices = choose(labels, _SERIES, seed)
        series = decoded(source, dataset.shape).batch(indices)["input"]
        names, colors = [""] * len(indices), [0] * len(indices)
        if classes:
            colors = labels[indices].tolist()
            names = [classes[label] for label in colors]
            names = [f"class {name}" if len(name) < 3 else name for name in names]
        pictures.plot_series(series, names, colors, title, path)
    elif split == "train" and any(step is not None for step in steps):
        _plot_augmented(dataset, source, seed, title, path)
    else:
        indices = choose(labels, _GRID * _GRID, seed)
        images = _originals(source, indices, dataset.shape)
        names = [_label_name(label, dataset, 18) for label in labels[indices]]
        pictures.plot_images(images, names, _GRID, (), title, path)


def choose(labels: npt.NDArray[Any], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw indices of examples, of as many classes as there are, sorted by class."""
    rng = np.random.default_rng((seed, _SEED_TAG))
    shuffled = rng.permutation(len(labels))
    if labels.dtype.kind == "f":
        return np.sort(shuffled[:count])
    # The first of each class, then the second of each, and so on; classes in a random order.
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[ordered], prepend=-1))
    sizes = np.diff(starts, append=len(ordered))
    turn = np.arange(len(ordered)) - np.repeat(starts, sizes)
    rank = np.repeat(rng.permutation(len(sizes)), sizes)
    chosen = ordered[np.lexsort((rank, turn))][:count]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _plot_augmented(
    dataset: ds_pipeline.Dataset, source: ds_pipeline.Source, seed: int, title: str, path: Path
) -> None:
    """Draw a row an example: as it is, then as the first epochs see it."""
    indices = choose(source.labels(), _GRID, seed)
    labels = source.labels()[indices]
    limits = _limits(source)
    columns = [_originals(source, indices, dataset.shape)]
    names = [["original", *[""] * (len(indices) - 1)]]
    for epoch in range(_GRID - 1):
        batch = augmented(dataset, source, indices, seed, epoch)
        columns.append([as_pixels(image, *limits) for image in batch["input"]])
        mixtures = [
            _mixture(label, own, dataset) for label, own in zip(batch["label"], labels, strict=True)
        ]
        names.append([f"epoch {epoch + 1}\n{mixtures[0]}".strip(), *mixtures[1:]])
    images = [image for row in zip(*columns, strict=True) for image in row]
    texts = [name for row in zip(*names, strict=True) for name in row]
    row_names = [_label_name(label, dataset, 24) for label in labels]
    pictures.plot_images(images, texts, _GRID, row_names, title, path)


def augmented(
    dataset: ds_pipeline.Dataset,
    source: ds_pipeline.Source,
    indices: npt.NDArray[np.int64],
    seed: int,
    epoch: int,
) -> ds_pipeline.Batch:
    """Return examples as training sees them; mixed with one another, the last with the first."""
    batch = source.batch(indices)
    if dataset.augment is not None:
        batch = dataset.augment(batch, seed, epoch, indices)
    if dataset.mix is not None:
        partners = {key: values[::-1] for key, values in batch.items()}
        batch = dataset.mix(batch, partners, seed, epoch)
    if dataset.erase is not None:
        batch = dataset.erase(batch, seed, epoch, indices)
    return batch


def as_pixels(
    image: npt.NDArray[Any], low: float = 0.0, high: float = 255.0
) -> npt.NDArray[np.uint8]:
    """Return an image to look at: uint8 [h, w, 3].

    Args:
        image: [h, w, c]; of other than 1, 3 or 4 channels the mean is shown.
        low: shown as black.
        high: shown as white.
    """
    scaled = (np.asarray(image, np.float64) - low) * (255 / max(high - low, 1e-12))
    pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if pixels.shape[-1] in (3, 4):
        return pixels[..., :3]
    gray = pixels.mean(axis=-1, keepdims=True).astype(np.uint8)
    return np.repeat(gray, 3, axis=-1)


def _originals(
    source: ds_pipeline.Source, indices: npt.NDArray[np.int64], shape: Sequence[int]
) -> list[npt.NDArray[np.uint8]]:
    """Return images as they are stored; encoded ones whole, in the middle of a light square."""
    if not is_encoded(source):
        limits = _limits(source)
        return [as_pixels(image, *limits) for image in source.batch(indices)["input"]]
    square, images = (shape[0], shape[0]), encoded(source).batch(indices)["input"]
    whole = [PIL.Image.fromarray(decode_image(image)) for image in images]
    return [np.asarray(PIL.ImageOps.pad(image, square, color="#eeeeee")) for image in whole]


def _limits(source: ds_pipeline.Source) -> tuple[float, float]:
    """Return the values that are shown as black and white: of photographs 0 and 255."""
    if is_encoded(source):
        return 0.0, 255.0
    inputs = source.batch(evenly(len(source), 256))["input"]
    low, high = float(inputs.min()), float(inputs.max())
    if inputs.dtype == np.uint8:
        return 0.0, 255.0 if high > 127 else max(high, 1.0)
    return low, high


def _label_name(label: Any, dataset: ds_pipeline.Dataset, most: int) -> str:
    if not dataset.class_names:
        return f"{float(label):.4g}"
    return pictures.shortened(dataset.class_names[int(label)], most)


def _mixture(label: Any, own: int, dataset: ds_pipeline.Dataset) -> str:
    """Return `70% + 30% of dog` for a soft label, the row's own class first; else nothing."""
    if np.ndim(label) == 0:
        return ""
    others = np.array(label)
    others[own] = 0
    partner = int(np.argmax(others))
    text = f"{label[own]:.0%}"
    if others[partner] > 0.005:
        name = pictures.shortened(dataset.class_names[partner], 7)
        text += f" + {others[partner]:.0%} of {name}"
    return text
