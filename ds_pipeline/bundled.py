"""scikit-learn's bundled data sets: nothing is downloaded.

digits: 1,797 images of 8 x 8 pixels with 17 levels, 0 to 16; iris: 150 flowers, 4 measurements,
3 classes; wine: 178 wines, 13 measurements, 3 classes; breast_cancer: 569 tumours, 30
measurements, 2 classes; diabetes: 442 patients, 10 measurements, the disease's progression to
predict.
"""

import numpy as np

from ds_pipeline.splits import Splits, split_off_test

NAMES = ("digits", "iris", "wine", "breast_cancer", "diabetes")


def load_bundled(name: str, test_fraction: float, seed: int, split: str = "stratified") -> Splits:
    """Load a bundled set, split into train and test.

    Args:
        name: one of NAMES.
        test_fraction: share of the test split.
        seed: of the split, at least 0.
        split: how, see `split_indices`.

    Returns:
        Images uint8 [n, 8, 8, 1], 0 to 16, for the digits; float32 [n, d] for the others.

    References:
        Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, 1998. Fisher: Iris, 1936.
        Aeberhard, Forina: Wine, 1992. Wolberg et al.: Breast Cancer Wisconsin (Diagnostic), 1993.
        All in the UCI Machine Learning Repository. Efron et al.: Least Angle Regression, Annals
        of Statistics, 2004 (diabetes).
    """
    # Imported here: it takes a second, which other data sets need not spend.
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    inputs = bunch.data.astype(np.float32)
    if name == "digits":
        inputs = bunch.images.astype(np.uint8)[..., None]
    is_regression = name == "diabetes"
    labels = bunch.target.astype(np.float32 if is_regression else np.int32)
    class_names = () if is_regression else tuple(str(text) for text in bunch.target_names)
    columns = () if name == "digits" else tuple(str(text) for text in bunch.feature_names)
    return split_off_test(
        name, inputs, labels, test_fraction, seed, class_names, columns, split=split
    )
