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

from typing import NamedTuple


class Step(NamedTuple):
    """One half of a sub-policy.

    Attributes:
        operation: name.
        probability: that it is applied, 0 to 1.
        level: 0 to 10; 0 where the operation has no parameter.
    """

    operation: str
    probability: float
    level: float


class Policy(NamedTuple):
    """An AutoAugment policy: each image gets one of its sub-policies, all equally likely.

    Attributes:
        subpolicies: two steps each.
        published: scales as in the published code; else as in the paper.
    """

    subpolicies: tuple[tuple[Step, Step], ...]
    published: bool


# A sub-policy a line: operation, probability, level (- where there is none).

_CIFAR = """
Invert 0.1 -, Contrast 0.2 6
Rotate 0.7 2, TranslateX 0.3 9
Sharpness 0.8 1, Sharpness 0.9 3
ShearY 0.5 8, TranslateY 0.7 9
AutoContrast 0.5 -, Equalize 0.9 -
Solarize 0.4 5, AutoContrast 0.9 -
TranslateY 0.9 9, TranslateY 0.7 9
AutoContrast 0.9 -, Solarize 0.8 3
Equalize 0.8 -, Invert 0.1 -
TranslateY 0.7 9, AutoContrast 0.9 -
Solarize 0.4 5, AutoContrast 0.0 -
TranslateY 0.7 9, TranslateY 0.7 9
AutoContrast 0.9 -, Solarize 0.4 3
Equalize 0.7 -, Invert 0.1 -
TranslateY 0.7 9, TranslateY 0.7 9
Solarize 0.4 5, AutoContrast 0.9 -
TranslateY 0.8 9, TranslateY 0.9 9
AutoContrast 0.8 -, TranslateY 0.7 9
TranslateY 0.2 7, Color 0.9 6
Equalize 0.7 -, Color 0.4 9
ShearY 0.2 7, Posterize 0.3 7
Color 0.4 3, Brightness 0.6 7
Sharpness 0.3 9, Brightness 0.7 9
Equalize 0.6 -, Equalize 0.5 -
Contrast 0.6 7, Sharpness 0.6 5
Brightness 0.3 7, AutoContrast 0.5 -
AutoContrast 0.9 -, AutoContrast 0.5 -
Solarize 0.3 5, Equalize 0.6 -
TranslateY 0.2 4, Sharpness 0.3 3
Brightness 0.0 8, Color 0.8 8
Solarize 0.2 6, Color 0.8 6
Solarize 0.2 6, AutoContrast 0.8 -
Solarize 0.4 1, Equalize 0.6 -
Brightness 0.0 0, Solarize 0.5 2
AutoContrast 0.9 -, Brightness 0.5 3
Contrast 0.7 5, Brightness 0.0 2
Solarize 0.2 8, Solarize 0.1 5
Contrast 0.5 1, TranslateY 0.2 9
AutoContrast 0.6 -, TranslateY 0.0 9
AutoContrast 0.9 -, Equalize 0.8 -
Brightness 0.0 7, Equalize 0.4 -
Solarize 0.2 5, Equalize 0.7 -
Equalize 0.6 -, Color 0.6 2
Color 0.3 7, Color 0.2 4
AutoContrast 0.5 -, Solarize 0.7 2
AutoContrast 0.2 -, Equalize 0.1 -
ShearY 0.6 5, Equalize 0.6 -
Brightness 0.9 3, AutoContrast 0.4 -
Equalize 0.8 -, Equalize 0.7 -
Equalize 0.7 -, Solarize 0.5 0
Equalize 0.8 -, TranslateY 0.8 9
TranslateY 0.8 9, TranslateY 0.6 9
TranslateY 0.9 0, TranslateY 0.5 9
AutoContrast 0.5 -, Solarize 0.3 4
Solarize 0.5 3, Equalize 0.4 -
Color 0.7 7, TranslateX 0.5 8
Equalize 0.3 -, AutoContrast 0.4 -
TranslateY 0.4 3, Sharpness 0.2 6
Brightness 0.9 6, Color 0.2 8
Solarize 0.5 2, Invert 0.0 -
AutoContrast 0.1 -, Brightness 0.0 0
Cutout 0.2 4, Equalize 0.1 -
Equalize 0.7 -, AutoContrast 0.6 -
Color 0.1 8, ShearY 0.2 3
ShearY 0.4 2, Rotate 0.7 0
ShearY 0.1 3, AutoContrast 0.9 -
TranslateY 0.3 6, Cutout 0.3 3
Equalize 0.5 -, Solarize 0.6 6
AutoContrast 0.3 -, Rotate 0.2 7
Equalize 0.8 -, Invert 0.4 -
Equalize 0.9 -, Color 0.7 0
Equalize 0.1 -, ShearY 0.1 3
AutoContrast 0.7 -, Equalize 0.7 -
Brightness 0.5 1, Contrast 0.1 7
Contrast 0.1 4, Solarize 0.6 5
Solarize 0.2 3, ShearX 0.0 0
TranslateX 0.3 0, TranslateX 0.6 0
Equalize 0.5 -, TranslateY 0.6 7
ShearX 0.1 0, Sharpness 0.5 1
Equalize 0.8 -, Invert 0.3 -
AutoContrast 0.3 -, Cutout 0.5 3
ShearX 0.4 4, AutoContrast 0.9 -
ShearX 0.0 3, Posterize 0.0 3
Solarize 0.4 3, Color 0.2 4
Equalize 0.1 -, Equalize 0.7 -
Equalize 0.3 -, AutoContrast 0.4 -
Solarize 0.6 4, AutoContrast 0.7 -
AutoContrast 0.2 -, Brightness 0.4 8
Equalize 0.1 -, Equalize 0.0 -
Equalize 0.8 -, Equalize 0.0 -
Equalize 0.5 -, AutoContrast 0.1 -
Solarize 0.5 5, AutoContrast 0.9 -
AutoContrast 0.6 -, AutoContrast 0.7 -
Equalize 0.2 -, AutoContrast 0.1 -
Equalize 0.6 -, Equalize 0.4 -
"""

_SVHN = """
ShearX 0.9 4, Invert 0.2 -
ShearY 0.9 8, Invert 0.7 -
Equalize 0.6 -, Solarize 0.6 6
Invert 0.9 -, Equalize 0.6 -
Equalize 0.6 -, Rotate 0.9 3
ShearX 0.9 4, AutoContrast 0.8 -
ShearY 0.9 8, Invert 0.4 -
ShearY 0.9 5, Solarize 0.2 6
Invert 0.9 -, AutoContrast 0.8 -
Equalize 0.6 -, Rotate 0.9 3
ShearX 0.9 4, Solarize 0.3 3
ShearY 0.8 8, Invert 0.7 -
Equalize 0.9 -, TranslateY 0.6 6
Invert 0.9 -, Equalize 0.6 -
Contrast 0.3 3, Rotate 0.8 4
Invert 0.8 -, TranslateY 0.0 2
ShearY 0.7 6, Solarize 0.4 8
Invert 0.6 -, Rotate 0.8 4
ShearY 0.3 7, TranslateX 0.9 3
ShearX 0.1 6, Invert 0.6 -
Solarize 0.7 2, TranslateY 0.6 7
ShearY 0.8 4, Invert 0.8 -
ShearX 0.7 9, TranslateY 0.8 3
ShearY 0.8 5, AutoContrast 0.7 -
ShearX 0.7 2, Invert 0.1 -
"""

_IMAGENET = """
Equalize 0.8 -, ShearY 0.8 4
Color 0.4 9, Equalize 0.6 -
Color 0.4 1, Rotate 0.6 8
Solarize 0.8 3, Equalize 0.4 -
Solarize 0.4 2, Solarize 0.6 2
Color 0.2 0, Equalize 0.8 -
Equalize 0.4 -, SolarizeAdd 0.8 3
ShearX 0.2 9, Rotate 0.6 8
Color 0.6 1, Equalize 1.0 -
Invert 0.4 -, Rotate 0.6 0
Equalize 1.0 -, ShearY 0.6 3
Color 0.4 7, Equalize 0.6 -
Posterize 0.4 6, AutoContrast 0.4 -
Solarize 0.6 8, Color 0.6 9
Solarize 0.2 4, Rotate 0.8 9
Rotate 1.0 7, TranslateY 0.8 9
ShearX 0.0 0, Solarize 0.8 4
ShearY 0.8 0, Color 0.6 4
Color 1.0 0, Rotate 0.6 2
Equalize 0.8 -, Equalize 0.0 -
Equalize 1.0 -, AutoContrast 0.6 -
ShearY 0.4 7, SolarizeAdd 0.6 7
Posterize 0.8 2, Solarize 0.6 10
Solarize 0.6 8, Equalize 0.6 -
Color 0.8 6, Rotate 0.4 5
"""

_CIFAR_PAPER = """
Invert 0.1 -, Contrast 0.2 6
Rotate 0.7 2, TranslateX 0.3 9
Sharpness 0.8 1, Sharpness 0.9 3
ShearY 0.5 8, TranslateY 0.7 9
AutoContrast 0.5 -, Equalize 0.9 -
ShearY 0.2 7, Posterize 0.3 7
Color 0.4 3, Brightness 0.6 7
Sharpness 0.3 9, Brightness 0.7 9
Equalize 0.6 -, Equalize 0.5 -
Contrast 0.6 7, Sharpness 0.6 5
Color 0.7 7, TranslateX 0.5 8
Equalize 0.3 -, AutoContrast 0.4 -
TranslateY 0.4 3, Sharpness 0.2 6
Brightness 0.9 6, Color 0.2 8
Solarize 0.5 2, Invert 0.0 -
Equalize 0.2 -, AutoContrast 0.6 -
Equalize 0.2 -, Equalize 0.6 -
Color 0.9 9, Equalize 0.6 -
AutoContrast 0.8 -, Solarize 0.2 8
Brightness 0.1 3, Color 0.7 0
Solarize 0.4 5, AutoContrast 0.9 -
TranslateY 0.9 9, TranslateY 0.7 9
AutoContrast 0.9 -, Solarize 0.8 3
Equalize 0.8 -, Invert 0.1 -
TranslateY 0.7 9, AutoContrast 0.9 -
"""

_IMAGENET_PAPER = """
Posterize 0.4 8, Rotate 0.6 9
Solarize 0.6 5, AutoContrast 0.6 -
Equalize 0.8 -, Equalize 0.6 -
Posterize 0.6 7, Posterize 0.6 6
Equalize 0.4 -, Solarize 0.2 4
Equalize 0.4 -, Rotate 0.8 8
Solarize 0.6 3, Equalize 0.6 -
Posterize 0.8 5, Equalize 1.0 -
Rotate 0.2 3, Solarize 0.6 8
Equalize 0.6 -, Posterize 0.4 6
Rotate 0.8 8, Color 0.4 0
Rotate 0.4 9, Equalize 0.6 -
Equalize 0.0 -, Equalize 0.8 -
Invert 0.6 -, Equalize 1.0 -
Color 0.6 4, Contrast 1.0 8
Rotate 0.8 8, Color 1.0 2
Color 0.8 8, Solarize 0.8 7
Sharpness 0.4 7, Invert 0.6 -
ShearX 0.6 5, Equalize 1.0 -
Color 0.4 0, Equalize 0.6 -
Equalize 0.4 -, Solarize 0.2 4
Solarize 0.6 5, AutoContrast 0.6 -
Invert 0.6 -, Equalize 1.0 -
Color 0.6 4, Contrast 1.0 8
Equalize 0.8 -, Equalize 0.6 -
"""


def _parse(table: str) -> tuple[tuple[Step, Step], ...]:
    def step(text: str) -> Step:
        operation, probability, level = text.split()
        return Step(operation, float(probability), 0.0 if level == "-" else float(level))

    pairs = (line.split(", ") for line in table.strip().splitlines())
    return tuple((step(first), step(second)) for first, second in pairs)


POLICIES: dict[str, Policy] = {
    "cifar": Policy(_parse(_CIFAR), published=True),
    "svhn": Policy(_parse(_SVHN), published=True),
    "imagenet": Policy(_parse(_IMAGENET), published=True),
    "cifar-paper": Policy(_parse(_CIFAR_PAPER), published=False),
    "svhn-paper": Policy(_parse(_SVHN), published=False),
    "imagenet-paper": Policy(_parse(_IMAGENET_PAPER), published=False),
}

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

    Example:
        >>> parameter("Posterize", 10, 32, published=False)
        4.0
        >>> parameter("TranslateX", 9, 32, published=True)
        225.0
        >>> parameter("TranslateX", 9, 32, published=False)
        13.0
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
