"""AutoAugment and RandAugment: who gets what, how often, and that each gets its own."""

from collections.abc import Callable

import numpy as np
import pytest

from ds_pipeline import Batch
from ds_pipeline.augment import POLICIES, policy
from ds_pipeline.augment.operations import OPERATIONS, cutout_gray
from ds_pipeline.augment.policies import RANDAUGMENT, SIGNED, parameter
from ds_pipeline.augment.policy import autoaugment, randaugment
from ds_pipeline.augment.random import below, random_bits, signs, uniform

COUNT = 40_000


def batch_of(images: np.ndarray) -> Batch:
    return {"input": images, "label": np.zeros(len(images), np.int32)}


def noise(count: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


def one(name: str, image: np.ndarray, value: float, bits: np.ndarray) -> np.ndarray:
    """One operation on one image."""
    images = image[None]
    if name == "Identity":
        return image
    if name == "Cutout":
        row, column = (below(bits[k], image.shape[k - 1]) for k in (1, 2))
        return cutout_gray(images, np.array([value]), row, column)[0]
    sign = signs(bits[0]).item() if name in SIGNED else 1.0
    return OPERATIONS[name](images, np.array([value * sign]))[0]


@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.parametrize("shape", [(12, 16, 3), (8, 8, 1)])
def test_autoaugment_is_a_loop_over_the_images(name: str, shape: tuple[int, int, int]) -> None:
    subpolicies, published = POLICIES[name]
    images, indices = noise(150, shape), np.arange(1000, 1150)
    found = autoaugment(shape, name)(batch_of(images), 3, 2, indices)["input"]
    for image, result, index in zip(images, found, indices, strict=True):
        bits = random_bits(policy._AUTOAUGMENT_TAG, 3, 2, np.array([index]), 9)
        chosen = subpolicies[below(bits[0], len(subpolicies)).item()]
        for half, step in enumerate(chosen):
            mine = bits[1 + 4 * half : 5 + 4 * half]
            if uniform(mine[0]).item() < step.probability:
                side = shape[0] if step.operation == "TranslateY" else shape[1]
                value = parameter(step.operation, step.level, side, published)
                image = one(step.operation, image, value, mine[1:])
        np.testing.assert_array_equal(result, image)


def test_randaugment_is_a_loop_over_the_images() -> None:
    shape = (12, 16, 3)
    images, indices = noise(150, shape), np.arange(1000, 1150)
    found = randaugment(shape, 3, 7.0)(batch_of(images), 3, 2, indices)["input"]
    for image, result, index in zip(images, found, indices, strict=True):
        bits = random_bits(policy._RANDAUGMENT_TAG, 3, 2, np.array([index]), 12)
        for layer in range(3):
            mine = bits[4 * layer : 4 * layer + 4]
            name = RANDAUGMENT[below(mine[0], 14).item()]
            side = shape[0] if name == "TranslateY" else shape[1]
            image = one(name, image, parameter(name, 7.0, side, False), mine[1:])
        np.testing.assert_array_equal(result, image)


Uses = list[dict[tuple[str, float], int]]


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> Uses:
    """Count how often each (operation, parameter without sign) is asked for, one dict a step."""
    seen: Uses = []

    def count(_: np.ndarray, codes: np.ndarray, values: np.ndarray, __: np.ndarray) -> None:
        pairs, counts = np.unique(np.stack([codes, values]), axis=1, return_counts=True)
        names = [policy._NAMES[int(code)] for code in pairs[0]]
        keys = zip(names, pairs[1].tolist(), strict=True)
        seen.append(dict(zip(keys, counts.tolist(), strict=True)))

    monkeypatch.setattr(policy, "_apply", count)
    return seen


def near(count: int, probability: float) -> bool:
    """Tell whether a count out of COUNT is within five standard deviations."""
    deviation = np.sqrt(COUNT * probability * (1 - probability))
    return bool(abs(count - COUNT * probability) <= 5 * deviation + 1e-9)


@pytest.mark.parametrize("name", list(POLICIES))
def test_autoaugment_uses_each_operation_as_often_as_its_table_says(name: str, uses: Uses) -> None:
    images = np.zeros((COUNT, 1, 1, 1), np.uint8)
    autoaugment((100, 100, 1), name)(batch_of(images), 0, 0, np.arange(COUNT))
    subpolicies, published = POLICIES[name]
    for half in (0, 1):
        wanted: dict[tuple[str, float], float] = {}
        for pair in subpolicies:
            step = pair[half]
            key = (step.operation, parameter(step.operation, step.level, 100, published))
            wanted[key] = wanted.get(key, 0) + step.probability / len(subpolicies)
        found = {key: n for key, n in uses[half].items() if key[0] != "Identity"}
        assert set(found) == {key for key, probability in wanted.items() if probability > 0}
        assert all(near(found.get(key, 0), share) for key, share in wanted.items())


def test_the_two_steps_of_an_image_belong_to_one_subpolicy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[np.ndarray] = []
    monkeypatch.setattr(policy, "_apply", lambda _, codes, __, ___: steps.append(codes))
    autoaugment((100, 100, 1), "svhn")(
        batch_of(np.zeros((COUNT, 1, 1, 1), np.uint8)), 0, 0, np.arange(COUNT)
    )
    both = [
        (policy._NAMES[first], policy._NAMES[second])
        for first, second in set(zip(*(step.tolist() for step in steps), strict=True))
    ]
    pairs = {(a.operation, b.operation) for a, b in POLICIES["svhn"].subpolicies}
    assert {pair for pair in both if "Identity" not in pair} <= pairs


def test_randaugment_uses_all_operations_equally_often(uses: Uses) -> None:
    images = np.zeros((COUNT, 1, 1, 1), np.uint8)
    randaugment((100, 100, 1), 2, 9.0)(batch_of(images), 0, 0, np.arange(COUNT))
    assert len(uses) == 2
    for layer in uses:
        assert {name for name, _ in layer} == set(RANDAUGMENT)
        assert all(near(count, 1 / 14) for count in layer.values())


@pytest.mark.parametrize("name", SIGNED)
def test_signs_are_balanced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[np.ndarray] = []

    def keep(images: np.ndarray, value: np.ndarray) -> np.ndarray:
        values.append(value)
        return images

    monkeypatch.setitem(OPERATIONS, name, keep)
    monkeypatch.setattr(policy, "RANDAUGMENT", (name,))
    randaugment((100, 100, 1), 1, 10.0)(
        batch_of(np.zeros((10_000, 1, 1, 1), np.uint8)), 0, 0, np.arange(10_000)
    )
    strength = parameter(name, 10.0, 100, False)
    assert set(np.concatenate(values)) == {-strength, strength}
    assert abs(np.sign(np.concatenate(values)).mean()) < 0.05


@pytest.mark.parametrize(
    "make", [lambda: autoaugment((12, 12, 3), "cifar"), lambda: randaugment((12, 12, 3), 2, 9.0)]
)
def test_the_old_images_stay(make: Callable[[], policy.Augment]) -> None:
    images = noise(100, (12, 12, 3))
    before = images.copy()
    found = make()(batch_of(images), 0, 0, np.arange(100))["input"]
    np.testing.assert_array_equal(images, before)
    assert (found != before).any()
