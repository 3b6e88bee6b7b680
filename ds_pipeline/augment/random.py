"""Random numbers that are functions of (seed, epoch, index)."""

import functools

import numpy as np

from ds_pipeline.source import Indices


def random_bits(tag: int, seed: int, epoch: int, indices: Indices, draws: int) -> np.ndarray:
    """Draw words of 64 random bits for each example: SplitMix64 at the counter `index`.

    Args:
        tag: of the caller, so that two callers with one (seed, epoch) draw different bits.
        seed: at least 0.
        epoch: at least 0.
        indices: [b], of the examples in the data set.
        draws: words an example.

    Returns:
        uint64 [draws, b].

    References:
        Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    counters = np.asarray(indices).astype(np.uint64)[None, :]
    bits = _keys(tag, seed, epoch, draws)[:, None] + counters * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = bits ^ (bits >> np.uint64(31))
    return result


# The few (tag, seed, epoch) that are in use at a time: a key costs as much as some ten images.
@functools.lru_cache(maxsize=64)
def _keys(tag: int, seed: int, epoch: int, draws: int) -> np.ndarray:
    keys: np.ndarray = np.random.SeedSequence((seed, epoch, tag)).generate_state(draws, np.uint64)
    keys.flags.writeable = False
    return keys


def below(bits: np.ndarray, high: int) -> Indices:
    """Turn random words into integers from 0 to high - 1; the bias is under high / 2**32."""
    return (((bits >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def uniform(bits: np.ndarray) -> np.ndarray:
    """Turn random words into float64 from 0 to below 1."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def signs(bits: np.ndarray) -> np.ndarray:
    """Turn random words into -1.0 or 1.0."""
    return np.where(bits >> np.uint64(63), 1.0, -1.0)
