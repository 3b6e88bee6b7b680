"""The tables against what the paper and the published code say of them."""

from collections import Counter

import pytest

from ds_pipeline.augment import POLICIES
from ds_pipeline.augment.operations import OPERATIONS
from ds_pipeline.augment.policies import RANDAUGMENT, SIGNED, parameter


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar", 95),
        ("svhn", 25),
        ("imagenet", 25),
        ("cifar-paper", 25),
        ("svhn-paper", 25),
        ("imagenet-paper", 25),
    ],
)
def test_sizes_and_ranges(name: str, count: int) -> None:
    policy = POLICIES[name]
    assert len(policy.subpolicies) == count
    assert policy.published == ("paper" not in name)
    for pair in policy.subpolicies:
        for step in pair:
            assert step.operation in (*OPERATIONS, "Cutout")
            assert step.probability in [tenths / 10 for tenths in range(11)]
            assert step.level in range(11)


# Over both halves: uses, sum of the probabilities in tenths, sum of the levels. Counted from the
# published code's lists and from torchvision's reading of the paper.
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        (
            "cifar",
            {
                "AutoContrast": (35, 204, 0),
                "Brightness": (13, 48, 61),
                "Color": (13, 63, 72),
                "Contrast": (6, 22, 30),
                "Cutout": (3, 10, 10),
                "Equalize": (40, 211, 0),
                "Invert": (6, 10, 0),
                "Posterize": (2, 3, 10),
                "Rotate": (3, 16, 9),
                "Sharpness": (7, 36, 28),
                "ShearX": (4, 5, 7),
                "ShearY": (7, 21, 31),
                "Solarize": (24, 99, 96),
                "TranslateX": (4, 17, 17),
                "TranslateY": (23, 137, 180),
            },
        ),
        (
            "svhn",
            {
                "AutoContrast": (3, 23, 0),
                "Contrast": (1, 3, 3),
                "Equalize": (6, 39, 0),
                "Invert": (12, 76, 0),
                "Rotate": (4, 34, 14),
                "ShearX": (6, 42, 29),
                "ShearY": (8, 61, 51),
                "Solarize": (5, 22, 25),
                "TranslateX": (1, 9, 3),
                "TranslateY": (4, 20, 18),
            },
        ),
        (
            "imagenet",
            {
                "AutoContrast": (2, 10, 0),
                "Color": (9, 50, 37),
                "Equalize": (12, 80, 0),
                "Invert": (1, 4, 0),
                "Posterize": (2, 12, 8),
                "Rotate": (7, 46, 39),
                "ShearX": (2, 2, 9),
                "ShearY": (4, 26, 14),
                "Solarize": (8, 46, 41),
                "SolarizeAdd": (2, 14, 10),
                "TranslateY": (1, 8, 9),
            },
        ),
        (
            "cifar-paper",
            {
                "AutoContrast": (7, 50, 0),
                "Brightness": (4, 23, 25),
                "Color": (5, 29, 27),
                "Contrast": (2, 8, 13),
                "Equalize": (9, 47, 0),
                "Invert": (3, 2, 0),
                "Posterize": (1, 3, 7),
                "Rotate": (1, 7, 2),
                "Sharpness": (5, 28, 24),
                "ShearY": (2, 7, 15),
                "Solarize": (4, 19, 18),
                "TranslateX": (2, 8, 17),
                "TranslateY": (5, 34, 39),
            },
        ),
        (
            "imagenet-paper",
            {
                "AutoContrast": (2, 12, 0),
                "Color": (6, 38, 18),
                "Contrast": (2, 20, 16),
                "Equalize": (17, 112, 0),
                "Invert": (3, 18, 0),
                "Posterize": (5, 28, 32),
                "Rotate": (6, 36, 45),
                "Sharpness": (1, 4, 7),
                "ShearX": (1, 6, 5),
                "Solarize": (7, 36, 36),
            },
        ),
    ],
)
def test_what_each_operation_adds_up_to(name: str, counts: dict[str, tuple[int, int, int]]) -> None:
    steps = [step for pair in POLICIES[name].subpolicies for step in pair]
    uses = Counter(step.operation for step in steps)
    found = {
        operation: (
            uses[operation],
            round(sum(10 * step.probability for step in steps if step.operation == operation)),
            round(sum(step.level for step in steps if step.operation == operation)),
        )
        for operation in uses
    }
    assert found == counts


def test_the_published_cifar_policy_has_twenty_of_the_papers_subpolicies() -> None:
    published, paper = (set(POLICIES[name].subpolicies) for name in ("cifar", "cifar-paper"))
    assert len(published & paper) == 20
    assert POLICIES["svhn"].subpolicies == POLICIES["svhn-paper"].subpolicies


@pytest.mark.parametrize(
    ("operation", "published", "paper"),
    [
        # At levels 0, 3, 5 and 10, for sides of 331 pixels.
        ("ShearX", (0, 0.09, 0.15, 0.3), (0, 0.09, 0.15, 0.3)),
        ("ShearY", (0, 0.09, 0.15, 0.3), (0, 0.09, 0.15, 0.3)),
        ("Rotate", (0, 9, 15, 30), (0, 9, 15, 30)),
        ("TranslateX", (0, 75, 125, 250), (0, 45, 75, 150)),
        ("TranslateY", (0, 75, 125, 250), (0, 45, 75, 150)),
        ("Posterize", (1, 1, 2, 4), (8, 7, 6, 4)),
        ("Solarize", (0, 76, 128, 256), (256, 180, 128, 0)),
        ("SolarizeAdd", (0, 33, 55, 110), (0, 33, 55, 110)),
        ("Color", (0.1, 0.64, 1.0, 1.9), (0.1, 0.64, 1.0, 1.9)),
        ("Contrast", (0.1, 0.64, 1.0, 1.9), (0.1, 0.64, 1.0, 1.9)),
        ("Brightness", (0.1, 0.64, 1.0, 1.9), (0.1, 0.64, 1.0, 1.9)),
        ("Sharpness", (0.1, 0.64, 1.0, 1.9), (0.1, 0.64, 1.0, 1.9)),
        ("Cutout", (0, 60, 100, 200), (0, 18, 30, 60)),
        ("Equalize", (0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_scales(operation: str, published: tuple[float, ...], paper: tuple[float, ...]) -> None:
    for wanted, is_published in ((published, True), (paper, False)):
        found = [parameter(operation, level, 331, is_published) for level in (0, 3, 5, 10)]
        assert found == pytest.approx(wanted)


def test_randaugment_has_the_papers_fourteen_operations() -> None:
    assert len(set(RANDAUGMENT)) == len(RANDAUGMENT) == 14
    assert set(RANDAUGMENT) - {"Identity"} == set(OPERATIONS) - {"Invert", "SolarizeAdd"}
    assert set(SIGNED) <= set(RANDAUGMENT)
