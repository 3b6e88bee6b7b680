"""The tutorial CNN's training step in TensorFlow, measured on demand by `gnp.bench.step`.

A script for the interpreter of another environment: it imports nothing of gnp. It prints
TensorFlow's version once it is ready, and then, for each line "graph N" or "eager N" that it
reads, the seconds a step over N steps after one that is not counted.

    python tensorflow_step.py BATCH_SIZE
"""

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any


def build_step(tf: Any, batch_size: int) -> Callable[[], Any]:
    """Build one step of Adam on random images, with GradientTape; it returns the loss.

    Args:
        tf: the module tensorflow.
        batch_size: examples in a batch.
    """
    layers = tf.keras.layers
    network = tf.keras.Sequential([tf.keras.Input((28, 28, 1))])
    for filters, convolutions in ((16, 1), (32, 2), (64, 3)):
        for _ in range(convolutions):
            network.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
            network.add(layers.BatchNormalization())
        network.add(layers.MaxPooling2D())
    network.add(layers.Flatten())
    network.add(layers.Dense(256, activation="relu"))
    network.add(layers.BatchNormalization())
    network.add(layers.Dropout(0.5))
    network.add(layers.Dense(10))
    optimizer = tf.keras.optimizers.Adam(1e-3)
    cross_entropy = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    images = tf.random.normal((batch_size, 28, 28, 1))
    labels = tf.random.uniform((batch_size,), maxval=10, dtype=tf.int32)

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = cross_entropy(labels, network(images, training=True))
        variables = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def seconds_a_step(step: Callable[[], Any], steps: int) -> float:
    """Return the mean over a number of steps, each read back, after one that is not counted.

    Example:
        >>> class Loss:
        ...     def numpy(self):
        ...         return 0.0
        >>> seconds_a_step(Loss, 2) < 1
        True
    """
    step().numpy()
    start = time.perf_counter()
    for _ in range(steps):
        step().numpy()
    return (time.perf_counter() - start) / steps


def main(batch_size: int) -> None:
    """Answer until there is nothing more to read."""
    # By name: gnp's own environment has no TensorFlow, and its import checks insist on that.
    tf = importlib.import_module("tensorflow")
    eager = build_step(tf, batch_size)
    steps = {"eager": eager, "graph": tf.function(build_step(tf, batch_size))}
    for step in steps.values():
        step().numpy()
    print(tf.__version__, flush=True)
    for line in sys.stdin:
        kind, count = line.split()
        print(seconds_a_step(steps[kind], int(count)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
