"""AutoAugment's policies and the scales that turn a level into an operation's parameter.

Two sources differ, and both are here:

- "cifar", "svhn", "imagenet": the code that the SAM authors published (google-research/sam, from
  TensorFlow's EfficientNet code) and that the GNP authors ran. cifar has 95 sub-policies there;
  imagenet is another policy than the paper's, with SolarizeAdd. Its scales are pixels of large
  photographs: a level moves by 25 pixels, so that on CIFAR's 32 x 32 images every translation of
  level 2 and above leaves nothing but gray (11% of the images, 12% with svhn), and Posterize and
  Solarize become weaker with the level.
- "cifar-paper", "svhn-paper", "imagenet-paper": the paper's tables, 25 sub-policies each (those
  of svhn are the same). Scales are the paper's ranges, in the direction in which the effect
  grows; lengths, which it gives for images of 331 pixels, are the same share of any image.

Levels go from 0 to 10 in both. The paper's tables and ranges were checked against torchvision's
reading of them.

References:
    Cubuk, Zoph, Mane, Vasudevan, Le: AutoAugment: Learning Augmentation Policies from Data,
    arXiv 1805.09501, 2018.
    Cubuk, Zoph, Shlens, Le: RandAugment: Practical automated data augmentation with a reduced
    search space, arXiv 1909.13719, 2019.
"""

import csv
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """One half of a sub-policy: an operation, and the probability that it is applied."""

    operation: str
    probability: float
    level: float  # 0 to 10; 0 where the operation has no parameter


class Policy(NamedTuple):
    """An AutoAugment policy: each image gets one of its sub-policies, all equally likely."""

    subpolicies: tuple[tuple[Step, Step], ...]
    published: bool  # scales as in the published code; else as in the paper


def _read_policies() -> dict[str, Policy]:
    """Read policies.csv: a sub-policy a line, level 0 where an operation has no parameter."""
    tables: dict[str, list[tuple[Step, Step]]] = {}
    with Path(__file__).with_name("policies.csv").open(encoding="utf-8", newline="") as file:
        for name, *fields in list(csv.reader(file))[1:]:
            pair = (Step(o, float(p), float(v)) for o, p, v in (fields[:3], fields[3:]))
            tables.setdefault(name, []).append(tuple(pair))  # type: ignore[arg-type]
    tables["svhn-paper"] = tables["svhn"]
    return {n: Policy(tuple(t), published="paper" not in n) for n, t in tables.items()}


POLICIES = _read_policies()

RANDAUGMENT = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Rotate",
    "Solarize",
    "Color",
    "Posterize",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
"""RandAugment's operations in the paper's order, all equally likely.

The published TensorFlow code, which no recipe here was run with, has Invert, SolarizeAdd and
Cutout instead of Identity, and its scales are for large photographs.
"""

SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
"""Operations whose parameter is negative half of the time."""


def parameter(operation: str, level: float, side: int, published: bool) -> float:
    """Return an operation's parameter at a level; 0 for operations without one.

    Args:
        operation: a name of the tables.
        level: 0 to 10.
        side: of the image along the operation's direction, in pixels.
        published: scales as in the published code; else as in the paper.

    Returns:
        Degrees, slope, pixels, bits, threshold, addend, factor, or a square's side in pixels.
    """
    share = level / 10
    match operation:
        case "Rotate":
            return 30 * share
        case "ShearX" | "ShearY":
            return 0.3 * share
        case "TranslateX" | "TranslateY":
            return float(int(250 * share if published else 150 / 331 * side * share))
        case "Posterize":
            # No bits at all: TensorFlow's shifts stop at 7 bits, which keeps one.
            return float(max(1, int(4 * share)) if published else 8 - int(4 * share))
        case "Solarize":
            return float(int(256 * share) if published else 256 - int(256 * share))
        case "SolarizeAdd":
            return float(int(110 * share))
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return 1.8 * share + 0.1
        case "Cutout":
            return float(2 * int(100 * share) if published else int(60 / 331 * side * share))
        case _:
            return 0.0
