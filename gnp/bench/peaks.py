"""Published peaks of accelerators, for the utilization of a step."""

from typing import NamedTuple


class Peak(NamedTuple):
    """Dense matrix products at the highest clock, in TFLOP/s; None: not published.

    Attributes:
        bfloat16: operands in bfloat16.
        float32: operands in float32 as XLA multiplies them by default, on a GPU in TF32.
        source: the maker's page.
    """

    bfloat16: float
    float32: float | None
    source: str


_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_TPU = "https://cloud.google.com/tpu/docs/"

# Beginning of jax's device_kind -> peak; the first that fits. NVIDIA's pages print twice these
# numbers for the H100 and H200, which hold for sparse matrices alone.
_PEAKS = {
    "NVIDIA A100": Peak(312.0, 156.0, f"{_NVIDIA}a100/"),
    "NVIDIA H100 PCIe": Peak(756.5, 378.0, f"{_NVIDIA}h100/"),
    "NVIDIA H100": Peak(989.5, 494.5, f"{_NVIDIA}h100/"),
    "NVIDIA H200 NVL": Peak(835.5, 417.5, f"{_NVIDIA}h200/"),
    "NVIDIA H200": Peak(989.5, 494.5, f"{_NVIDIA}h200/"),
    "TPU v4": Peak(275.0, None, f"{_TPU}v4"),
    "TPU v5 lite": Peak(197.0, None, f"{_TPU}v5e"),
    "TPU v5e": Peak(197.0, None, f"{_TPU}v5e"),
    "TPU v5": Peak(459.0, None, f"{_TPU}v5p"),
    "TPU v6 lite": Peak(918.0, None, f"{_TPU}v6e"),
    "TPU v6e": Peak(918.0, None, f"{_TPU}v6e"),
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return a device's peak in operations a second; None where it is not known here.

    Args:
        device_kind: what jax calls the device.
        dtype: "bfloat16" or "float32".

    Example:
        >>> peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16"), peak_flops("cpu", "float32")
        (312000000000000.0, None)
    """
    for beginning, peak in _PEAKS.items():
        if device_kind.startswith(beginning):
            value = peak.bfloat16 if dtype == "bfloat16" else peak.float32
            return None if value is None else 1e12 * value
    return None
