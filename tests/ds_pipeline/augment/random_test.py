"""Random numbers as functions of (seed, epoch, index)."""

import numpy as np

from ds_pipeline.augment.random import below, random_bits, signs, uniform


def test_seed_epoch_index_and_tag_all_matter() -> None:
    indices = np.arange(100)
    streams = [
        random_bits(1, 0, 0, indices, 2),
        random_bits(2, 0, 0, indices, 2),
        random_bits(1, 1, 0, indices, 2),
        random_bits(1, 0, 1, indices, 2),
        random_bits(1, 0, 0, indices + 100, 2),
    ]
    words = np.concatenate([stream.ravel() for stream in streams])
    assert len(np.unique(words)) == len(words)


def test_random_integers_are_uniform() -> None:
    values = below(random_bits(7, 0, 0, np.arange(90_000), 1)[0], 9)
    counts = np.bincount(values, minlength=9)
    # 10,000 each, with a deviation of 94.
    assert len(counts) == 9 and (abs(counts - 10_000) < 500).all()


def test_random_fractions_and_signs_are_uniform_and_apart() -> None:
    bits = random_bits(7, 0, 0, np.arange(100_000), 2)
    fractions, sides = uniform(bits[0]), signs(bits[1])
    assert fractions.min() >= 0 and fractions.max() < 1
    counts = np.histogram(fractions, bins=10, range=(0, 1))[0]
    assert (abs(counts - 10_000) < 500).all()
    assert set(sides) == {-1.0, 1.0} and abs(sides.mean()) < 0.02
    assert abs(np.corrcoef(fractions, sides)[0, 1]) < 0.02


def test_the_values_stay_what_they_were() -> None:
    # Changing them would change the batches of runs that are resumed.
    bits = random_bits(0x4241, 3, 1, np.array([0, 5]), 2)
    assert [hex(word) for word in bits.ravel().tolist()] == [
        "0xb633388d497d6a5a",
        "0x26037418c693b7e1",
        "0x28c5e7ec1dba8962",
        "0xed55d51de77e6592",
    ]
