"""The peaks of devices, by what jax calls them."""

import pytest

from gnp.bench.peaks import peak_flops


@pytest.mark.parametrize(
    ("device", "dtype", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "float32", 378.0),
        ("NVIDIA H200", "float32", 494.5),
        ("TPU v5 lite", "bfloat16", 197.0),
        ("TPU v5p", "bfloat16", 459.0),
    ],
)
def test_known_devices(device, dtype, teraflops):
    assert peak_flops(device, dtype) == 1e12 * teraflops


@pytest.mark.parametrize("device", ["cpu", "TPU v6e"])
def test_what_is_not_known(device):
    assert peak_flops(device, "float32") is None
