"""Losses against their formulas, metrics against counting."""

import jax.numpy as jnp
import numpy as np
import pytest

from gnp.training.tasks import TASKS, classification, forecasting, metric, regression

OUTPUTS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [3.0, 3.5, -2.0]], np.float32)
LABELS = np.array([0, 1, 1])


def test_softmax_cross_entropy():
    objective = classification.objective("softmax_cross_entropy")
    log_p = OUTPUTS - np.log(np.exp(OUTPUTS).sum(1, keepdims=True))
    expected = -log_p[np.arange(3), LABELS]
    np.testing.assert_allclose(objective.loss(OUTPUTS, LABELS), expected, rtol=1e-6)


def test_label_smoothing():
    objective = classification.objective("softmax_cross_entropy", label_smoothing=0.1)
    log_p = OUTPUTS - np.log(np.exp(OUTPUTS).sum(1, keepdims=True))
    expected = -0.9 * log_p[np.arange(3), LABELS] - 0.1 * log_p.mean(1)
    np.testing.assert_allclose(objective.loss(OUTPUTS, LABELS), expected, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_sigmoid_cross_entropy_of_one_output(share):
    outputs = np.array([[1.5], [-0.5]], np.float32)
    labels = np.array([1, 1])
    objective = classification.objective("sigmoid_cross_entropy", label_smoothing=share)
    p = 1 / (1 + np.exp(-outputs[:, 0]))
    y = 1 - share / 2
    expected = -y * np.log(p) - (1 - y) * np.log(1 - p)
    np.testing.assert_allclose(objective.loss(outputs, labels), expected, rtol=1e-6)
    np.testing.assert_array_equal(objective.metrics["error_rate"](outputs, labels), [0, 1])


def test_squared_error_of_one_output():
    outputs = np.array([[1.5], [-0.5]], np.float32)
    labels = np.array([1.0, 2.0], np.float32)
    objective = regression.objective("squared_error")
    np.testing.assert_allclose(objective.loss(outputs, labels), [0.25, 6.25])
    metric = objective.metrics["mean_absolute_error"](outputs, labels)
    np.testing.assert_allclose(metric, [0.5, 2.5])


def test_errors_of_a_forecast_are_means_over_horizon_and_channels():
    outputs, labels = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    objective = forecasting.objective("squared_error")
    expected = ((outputs - labels) ** 2).mean((1, 2))
    np.testing.assert_allclose(objective.loss(outputs, labels), expected, rtol=1e-6)
    metric = objective.metrics["mean_absolute_error"](outputs, labels)
    np.testing.assert_allclose(metric, np.abs(outputs - labels).mean((1, 2)), rtol=1e-6)


def test_squared_error_of_classes_is_against_one_hot():
    objective = classification.objective("squared_error")
    expected = ((OUTPUTS - np.eye(3)[LABELS]) ** 2).mean(1)
    np.testing.assert_allclose(objective.loss(OUTPUTS, LABELS), expected, rtol=1e-6)


def test_error_rates():
    objective = classification.objective("softmax_cross_entropy", top_k=(5,))
    np.testing.assert_array_equal(objective.metrics["error_rate"](OUTPUTS, LABELS), [0, 1, 0])
    outputs = jnp.arange(7.0)[None].repeat(7, 0)
    wrong = objective.metrics["top_5_error_rate"](outputs, jnp.arange(7))
    np.testing.assert_array_equal(wrong, [1, 1, 0, 0, 0, 0, 0])


def test_the_top_k_error_rate_of_any_k():
    outputs = jnp.arange(7.0)[None].repeat(7, 0)
    for k in (1, 3, 7, 9):
        metrics = classification.objective("softmax_cross_entropy", top_k=(k,)).metrics
        assert list(metrics) == ["error_rate", f"top_{k}_error_rate"]
        wrong = metrics[f"top_{k}_error_rate"](outputs, jnp.arange(7))
        np.testing.assert_array_equal(wrong, np.arange(7) < 7 - k)
    both = classification.objective("softmax_cross_entropy", top_k=(5, 2))
    assert list(both.metrics) == ["error_rate", "top_5_error_rate", "top_2_error_rate"]


@pytest.mark.parametrize(
    ("task", "loss", "classes", "target", "shape"),
    [
        ("classification", "softmax_cross_entropy", 10, (), (10,)),
        ("classification", "softmax_cross_entropy", 2, (), (2,)),
        ("classification", "sigmoid_cross_entropy", 2, (), (1,)),
        ("classification", "sigmoid_cross_entropy", 5, (), (5,)),
        ("classification", "squared_error", 3, (), (3,)),
        ("regression", "squared_error", 1, (), (1,)),
        ("forecasting", "squared_error", 1, (96, 7), (96, 7)),
    ],
)
def test_shape_of_the_outputs(task, loss, classes, target, shape):
    assert loss in TASKS[task].losses
    assert TASKS[task].output_shape(loss, classes, target) == shape


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_each_metric_of_a_task_is_found_in_the_name_of_its_mean(task):
    for loss in task.losses:
        for name in task.objective(loss, 0.0, (5,)).metrics:
            assert metric(f"validation_ema_{name}") == name


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy"])
def test_a_mixed_label_is_the_mean_of_its_shares_losses(loss):
    """As the published mixup: the loss is linear in the label."""
    objective = classification.objective(loss, label_smoothing=0.1)
    others, share = np.array([2, 0, 1]), 0.7
    mixed = (share * np.eye(3)[LABELS] + (1 - share) * np.eye(3)[others]).astype(np.float32)
    expected = share * objective.loss(OUTPUTS, LABELS) + (1 - share) * objective.loss(
        OUTPUTS, others
    )
    np.testing.assert_allclose(objective.loss(OUTPUTS, mixed), expected, rtol=1e-5)


def test_a_mixed_label_of_one_output_is_the_second_class_share():
    outputs, mixed = np.array([[1.5]], np.float32), np.array([[0.25, 0.75]], np.float32)
    objective = classification.objective("sigmoid_cross_entropy")
    p = 1 / (1 + np.exp(-1.5))
    expected = [-0.75 * np.log(p) - 0.25 * np.log(1 - p)]
    np.testing.assert_allclose(objective.loss(outputs, mixed), expected, rtol=1e-6)


def test_a_mixed_label_counts_as_its_largest_part():
    objective = classification.objective("softmax_cross_entropy", top_k=(5,))
    mixed = np.array([[0.6, 0.4, 0], [0.3, 0.7, 0], [0.2, 0, 0.8]], np.float32)
    np.testing.assert_array_equal(objective.metrics["error_rate"](OUTPUTS, mixed), [0, 1, 1])
    wide = np.zeros((1, 7), np.float32)
    wide[0, [1, 6]] = 0.6, 0.4
    outputs = jnp.arange(7.0)[None]
    np.testing.assert_array_equal(objective.metrics["top_5_error_rate"](outputs, wide), [1])
