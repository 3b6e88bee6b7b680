"""Programs for TPU slices, as libtpu compiles them: what the chips say to one another.

All need libtpu (GNP_JAX=tpu bash recipe/setup.sh), and no TPU.
"""

import importlib.util
from collections import Counter
from functools import cache

import numpy as np
import pytest

from config import load_config
from ds_pipeline.dataset import from_arrays
from gnp.experiment import build_experiment
from gnp.main.plan import PENALIZED, PLAIN, abstract_calls, compile_for
from gnp.training.topology import chip_of, find_devices
from tests.gnp.training.models_test import MODELS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu: GNP_JAX=tpu"
    ),
]
SWIN = {"depths": (1, 1), "embed_dim": 24, "num_heads": (3, 6), "window_size": 2}
TRANSFORMERS = [
    ("ViT_TI4", {"depth": 2}, (8, 8, 3)),
    ("Swin_Tiny", SWIN, (16, 16, 3)),
    ("CaiT_XXS2", {"class_depth": 1}, (32, 32, 3)),
]


@cache
def program(name, step=PENALIZED, **keys):
    """Return the program of a model's step on four chips of TPU v5e, for 16 examples."""
    params, shape = next(each[1:] for each in (*MODELS, *TRANSFORMERS) if each[0] == name)
    count = keys.get("batch_size", 16)
    inputs = np.zeros((count, *shape), np.uint8 if len(shape) == 3 else np.float32)
    inputs[::2] = 1
    examples = inputs, np.arange(count) % 10
    data = from_arrays("zeros and ones", examples, examples)
    values = {"model.model_name": name, "batch_size": count, "gnp.r": 0.05, "gnp.alpha": 0.8}
    values |= {f"model.model_params.{key}": value for key, value in params.items()}
    values |= {key.replace("__", "."): value for key, value in keys.items()}
    config = load_config("config/default.py", [(k, str(v)) for k, v in values.items()])
    devices = find_devices("v5e:2x2")
    experiment = build_experiment(config, data, devices)
    call = abstract_calls(config, experiment)[step]
    return compile_for(experiment, step, *call, config, chip_of(devices))


def counts(found):
    """Return how often each kind of collective runs in one step."""
    kinds = Counter()
    for each in found.collectives:
        kinds[each.kind] += each.times
    return dict(kinds)


@pytest.mark.parametrize("name", [name for name, _, _ in (*MODELS, *TRANSFORMERS)])
def test_every_familys_penalized_step_compiles(name):
    found = program(name)
    assert found.flops > 0
    assert set(counts(found)) == {"all-reduce"}


def test_gradients_and_metrics_are_one_sum():
    assert counts(program("MLP", PLAIN)) == {"all-reduce": 1}
    assert counts(program("MLP")) == {"all-reduce": 2}


def test_each_group_of_a_batch_keeps_its_gradient():
    """Each chip has its own perturbation: nothing is said in between."""
    assert counts(program("MLP", gnp__sync_perturbations=False, gnp__m=4)) == {"all-reduce": 1}


def test_batch_norm_of_the_global_batch_is_two_sums_a_layer_and_pass():
    """Seven forward; seven back, the last with gradients of scales and biases; and the kernels."""
    plain, penalized = program("WideResNet_10_1", PLAIN), program("WideResNet_10_1")
    assert counts(plain) == {"all-reduce": 15} and counts(penalized) == {"all-reduce": 30}
    forward = [each.source for each in plain.collectives if not each.backward]
    blocks = [f"group_{g}_block_1/norm_{n}" for g in (1, 2, 3) for n in (1, 2)]
    assert forward == [*blocks, "norm"]


def test_batch_norm_of_each_chips_examples_is_none():
    """Running statistics and metrics go with the sum of the gradients."""
    local = {"model__model_params__batch_norm_group": 4}
    assert counts(program("WideResNet_10_1", PLAIN, **local)) == {"all-reduce": 1}
    assert counts(program("WideResNet_10_1", **local)) == {"all-reduce": 2}


def test_split_parameters_are_gathered_once_a_pass_and_their_gradients_scattered():
    """Four kernels are large enough to be split; the penalty takes norms over the chips."""
    split = {"mesh__data": 1, "mesh__fsdp": 4}
    plain, penalized = (program("WideResNet_10_1", s, **split) for s in (PLAIN, PENALIZED))
    assert counts(plain) == {"all-gather": 4, "reduce-scatter": 1, "all-reduce": 15}
    assert counts(penalized) == {"all-gather": 8, "reduce-scatter": 2, "all-reduce": 32}


def test_gradients_of_split_products_are_one_sum():
    """Not pieces that are handed on from chip to chip, as XLA makes of parts that are asked for."""
    found = counts(program("ViT_TI4", PLAIN, batch_size=8192, mesh__data=1, mesh__fsdp=4))
    assert found["reduce-scatter"] == 1 and "collective-permute" not in found
