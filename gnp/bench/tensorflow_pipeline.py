"""Input pipelines in tf.data, measured on demand by `gnp.bench.pipeline`.

A script for the interpreter of another environment: it imports nothing of gnp. It is written after
the description of the pipelines that the SAM and GNP authors used: shuffle, change each image in a
`map` with AUTOTUNE, batch, normalize, change the batch, prefetch. It prints TensorFlow's version
once it is ready, and then, for each line "KIND SECONDS" that it reads, the images/s.

    python tensorflow_pipeline.py SPEC.json

SPEC.json names the files `images` and `labels` (.npy), `mean` and `std` of the raw values, the
`batch_size`, `subpolicies` as lists of two [operation, probability, parameter, whether the sign is
drawn], and the `files` of JPEGs, or none.
"""

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# A batch or more is ready when a measurement starts; these are not counted.
SKIPPED = 10
CROP = 224


class Pipelines:
    """The pipelines by name; each is built when it is first asked for, and goes on after that.

    Args:
        tf: the module tensorflow.
        spec: what SPEC.json holds.
    """

    def __init__(self, tf: Any, spec: dict[str, Any]) -> None:
        self._tf = tf
        self._spec = spec
        self._iterators: dict[str, Iterator[Any]] = {}

    def rate(self, kind: str, seconds: float) -> float:
        """Return images/s over about so many seconds."""
        if kind not in self._iterators:
            self._iterators[kind] = iter(self._build(kind))
        batches = self._iterators[kind]
        for _ in range(SKIPPED):
            next(batches)
        count, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            images, _ = next(batches)
            count += len(images)
        return count / (time.perf_counter() - start)

    def _build(self, kind: str) -> Any:
        if kind == "jpeg":
            return _photographs(self._tf, self._spec)
        tf, spec = self._tf, self._spec
        per_image: list[Callable[[Any], Any]] = []
        if kind.startswith("autoaugment"):
            conditions = not kind.endswith("switch")
            per_image.append(_policy(tf, spec["subpolicies"], conditions))
        if kind != "none":
            per_image.append(lambda image: _basic(tf, image))

        def change(image: Any, label: Any) -> Any:
            for step in per_image:
                image = step(image)
            return image, label

        def finish(images: Any, labels: Any) -> Any:
            images = _normalized(tf, images, spec)
            labels = tf.one_hot(labels, 10)
            if kind.startswith("autoaugment"):
                images = _cutout(tf, images)
            if kind.endswith("mixup"):
                images, labels = _mixup(tf, images, labels)
            return images, labels

        arrays = np.load(spec["images"]), np.load(spec["labels"])
        data = tf.data.Dataset.from_tensor_slices(arrays).cache().shuffle(len(arrays[1])).repeat()
        if per_image:
            data = data.map(change, num_parallel_calls=tf.data.AUTOTUNE)
        data = data.batch(spec["batch_size"], drop_remainder=True)
        return data.map(finish, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _normalized(tf: Any, images: Any, spec: dict[str, Any]) -> Any:
    return (tf.cast(images, tf.float32) - spec["mean"]) / spec["std"]


def _basic(tf: Any, image: Any) -> Any:
    image = tf.image.random_flip_left_right(image)
    padded = tf.pad(image, [[4, 4], [4, 4], [0, 0]], mode="REFLECT")
    return tf.image.random_crop(padded, image.shape)


def _cutout(tf: Any, images: Any, size: int = 16) -> Any:
    """Draw a square of zeros at a random place of each image, cut off at the border."""
    count, height, width, _ = images.shape
    row = tf.random.uniform([count, 1], maxval=height, dtype=tf.int32)
    column = tf.random.uniform([count, 1], maxval=width, dtype=tf.int32)
    rows, columns = tf.range(height)[None, :] - row, tf.range(width)[None, :] - column
    in_rows = (rows >= -size // 2) & (rows < size - size // 2)
    in_columns = (columns >= -size // 2) & (columns < size - size // 2)
    erased = in_rows[:, :, None] & in_columns[:, None, :]
    return tf.where(erased[..., None], 0.0, images)


def _mixup(tf: Any, images: Any, labels: Any) -> Any:
    """Mix a batch with its reverse, by one weight from Beta(1, 1), which is uniform."""
    weight = tf.random.uniform([])
    weight = tf.maximum(weight, 1 - weight)
    return (
        weight * images + (1 - weight) * images[::-1],
        weight * labels + (1 - weight) * labels[::-1],
    )


def _photographs(tf: Any, spec: dict[str, Any]) -> Any:
    """Return random crops of JPEGs at 224 pixels: decoded in part, resized bicubically, flipped."""
    box = tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4])

    def read(file: Any) -> Any:
        data = tf.io.read_file(file)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            box,
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, [CROP, CROP], method="bicubic")
        return tf.image.random_flip_left_right(image), 0

    def finish(images: Any, labels: Any) -> Any:
        mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
        return (images - mean) / std, labels

    data = tf.data.Dataset.from_tensor_slices(spec["files"]).repeat().shuffle(1000)
    data = data.map(read, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.batch(spec["batch_size"], drop_remainder=True)
    return data.map(finish, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _policy(tf: Any, subpolicies: Any, conditions: bool) -> Callable[[Any], Any]:
    """Apply one sub-policy an image.

    Args:
        tf: the module tensorflow.
        subpolicies: as in SPEC.json.
        conditions: one tf.cond a sub-policy, as the published code has it; else tf.switch_case,
            which is quicker.
    """

    def applied(image: Any, steps: Any) -> Any:
        for name, probability, value, signed in steps:
            image = tf.cond(
                tf.random.uniform([]) < probability,
                lambda image=image, name=name, value=value, signed=signed: _operation(
                    tf, image, name, value, signed
                ),
                lambda image=image: image,
            )
        return image

    def augment(image: Any) -> Any:
        chosen = tf.random.uniform([], maxval=len(subpolicies), dtype=tf.int32)
        if not conditions:
            branches = [lambda steps=steps: applied(image, steps) for steps in subpolicies]
            return tf.switch_case(chosen, branches)
        for number, steps in enumerate(subpolicies):
            image = tf.cond(
                tf.equal(chosen, number),
                lambda image=image, steps=steps: applied(image, steps),
                lambda image=image: image,
            )
        return image

    return augment


def _operation(tf: Any, image: Any, name: str, value: float, signed: bool) -> Any:
    """Return an operation on a uint8 image [h, w, 3], whose sign, if any, is drawn."""
    amount: Any = value
    if signed:
        amount = value * (2.0 * tf.cast(tf.random.uniform([]) < 0.5, tf.float32) - 1.0)
    height, width = (float(side) for side in image.shape[:2])
    match name:
        case "Invert":
            return 255 - image
        case "Solarize":
            return tf.where(tf.cast(image, tf.int32) < int(value), image, 255 - image)
        case "SolarizeAdd":
            added = tf.clip_by_value(tf.cast(image, tf.int32) + int(value), 0, 255)
            return tf.where(image < 128, tf.cast(added, tf.uint8), image)
        case "Posterize":
            shift = 8 - int(value)
            return tf.bitwise.left_shift(
                tf.bitwise.right_shift(image, tf.cast(shift, tf.uint8)), tf.cast(shift, tf.uint8)
            )
        case "AutoContrast":
            return _autocontrast(tf, image)
        case "Equalize":
            return tf.stack([_equalized(tf, image[:, :, i]) for i in range(3)], axis=2)
        case "Color":
            return _blend(
                tf, tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image)), image, value
            )
        case "Contrast":
            gray = tf.reduce_mean(tf.cast(tf.image.rgb_to_grayscale(image), tf.float32))
            return _blend(tf, tf.fill(image.shape, tf.cast(gray, tf.uint8)), image, value)
        case "Brightness":
            return _blend(tf, tf.zeros_like(image), image, value)
        case "Sharpness":
            return _blend(tf, _smooth(tf, image), image, value)
        case "Cutout":
            batch = tf.cast(image, tf.float32)[None] - 128.0
            return tf.cast(_cutout(tf, batch, int(value))[0] + 128.0, tf.uint8)
        case "ShearX":
            return _transformed(tf, image, [1.0, amount, 0.0, 0.0, 1.0, 0.0])
        case "ShearY":
            return _transformed(tf, image, [1.0, 0.0, 0.0, amount, 1.0, 0.0])
        case "TranslateX":
            return _transformed(tf, image, [1.0, 0.0, amount, 0.0, 1.0, 0.0])
        case "TranslateY":
            return _transformed(tf, image, [1.0, 0.0, 0.0, 0.0, 1.0, amount])
        case "Rotate":
            cos, sin = tf.cos(amount * math.pi / 180), tf.sin(amount * math.pi / 180)
            x, y = (width - 1) / 2, (height - 1) / 2
            row = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]
            return _transformed(tf, image, row)
    raise ValueError(f"unknown operation {name}")


def _transformed(tf: Any, image: Any, row: list[Any]) -> Any:
    transform = tf.stack([tf.convert_to_tensor(value, tf.float32) for value in [*row, 0.0, 0.0]])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=transform[None],
        output_shape=image.shape[:2],
        fill_value=128.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def _blend(tf: Any, first: Any, second: Any, factor: float) -> Any:
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    return tf.cast(tf.clip_by_value(first + factor * (second - first), 0.0, 255.0), tf.uint8)


def _smooth(tf: Any, image: Any) -> Any:
    """Return the mean over 3 x 3 pixels, the center weighted by 5; the border as it is."""
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32)[:, :, None, None] / 13.0
    values = tf.cast(image, tf.float32)[None]
    smooth = tf.nn.depthwise_conv2d(values, tf.tile(kernel, [1, 1, 3, 1]), [1] * 4, "VALID")
    smooth = tf.cast(tf.clip_by_value(smooth, 0.0, 255.0), tf.uint8)[0]
    inside = tf.pad(tf.ones_like(smooth), [[1, 1], [1, 1], [0, 0]])
    return tf.where(inside == 1, tf.pad(smooth, [[1, 1], [1, 1], [0, 0]]), image)


def _autocontrast(tf: Any, image: Any) -> Any:
    values = tf.cast(image, tf.float32)
    low = tf.reduce_min(values, axis=[0, 1])
    high = tf.reduce_max(values, axis=[0, 1])
    scaled = (values - low) * (255.0 / tf.maximum(high - low, 1.0))
    stretched = tf.cast(tf.clip_by_value(scaled, 0.0, 255.0), tf.uint8)
    return tf.where(high > low, stretched, image)


def _equalized(tf: Any, channel: Any) -> Any:
    values = tf.cast(channel, tf.int32)
    counts = tf.histogram_fixed_width(values, [0, 255], nbins=256)
    step = (tf.reduce_sum(counts) - tf.boolean_mask(counts, counts > 0)[-1]) // 255
    table = (tf.cumsum(counts) + step // 2) // tf.maximum(step, 1)
    table = tf.clip_by_value(tf.concat([[0], table[:-1]], axis=0), 0, 255)
    return tf.where(step == 0, channel, tf.cast(tf.gather(table, values), tf.uint8))


def main(file: str) -> None:
    """Answer until there is nothing more to read."""
    # By name: gnp's own environment has no TensorFlow, and its import checks insist on that.
    tf = importlib.import_module("tensorflow")
    pipelines = Pipelines(tf, json.loads(Path(file).read_text()))
    print(tf.__version__, flush=True)
    for line in sys.stdin:
        kind, seconds = line.split()
        print(pipelines.rate(kind, float(seconds)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
