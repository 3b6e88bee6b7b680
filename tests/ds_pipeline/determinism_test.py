"""The first 100 batches are the same, to the bit, however they are made."""

import hashlib
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import default
from ds_pipeline import Batch, Dataset, build_dataset, train_batches

STEPS, RESUMED, BATCH_SIZE, SEED = 100, 37, 16, 5
DEVICES = (1, 2, 4)


def digits(workers: int) -> Dataset:
    """With a policy, windows and flips, mixup and cutout; an epoch has 89 steps."""
    config = default.get_config()
    config.dataset.dataset_name = "digits"
    config.dataset.image_level_augmentations = "autoaugment"
    config.dataset.batch_level_augmentations = "mixcut"
    config.dataset.cutout_size = 4
    config.dataset.workers = workers
    return build_dataset(config)


def batches(data: Dataset, start: int, process: int = 0, processes: int = 1) -> list[Batch]:
    return list(train_batches(data, BATCH_SIZE, SEED, start, STEPS, process, processes))


def digests(batches: Iterable[Mapping[str, Any]]) -> list[str]:
    """One for each batch, of all its bytes, types and shapes."""
    found = []
    for batch in batches:
        digest = hashlib.sha256()
        for key in sorted(batch):
            array = np.ascontiguousarray(batch[key])
            digest.update(f"{key} {array.dtype} {array.shape}".encode() + array.tobytes())
        found.append(digest.hexdigest())
    return found


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """One process with threads, from the beginning."""
    found = batches(digits(workers=0), 0)
    assert found[0]["input"].dtype == np.float32 and found[0]["label"].shape == (BATCH_SIZE, 10)
    return digests(found)


def test_no_two_batches_are_alike(expected: list[str]) -> None:
    assert len(set(expected)) == STEPS


@pytest.mark.parametrize(
    ("workers", "processes", "start"),
    [
        *((0, processes, start) for processes in DEVICES for start in (0, RESUMED)),
        pytest.param(1, 1, RESUMED, marks=pytest.mark.slow),
        # Seconds for the start of each worker.
        pytest.param(2, 1, RESUMED, marks=pytest.mark.slow),
        pytest.param(2, 1, 0, marks=pytest.mark.slow),
        pytest.param(2, 2, 0, marks=pytest.mark.slow),
        pytest.param(2, 4, RESUMED, marks=pytest.mark.slow),
    ],
)
def test_processes_workers_and_a_resumed_run_change_nothing(
    expected: list[str], workers: int, processes: int, start: int
) -> None:
    data = digits(workers)
    shares = [batches(data, start, process, processes) for process in range(processes)]
    joined = (
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    )
    assert digests(joined) == expected[start:]
    assert not multiprocessing.active_children()


def on_devices(count: int) -> list[str]:
    """Digests of what so many devices of this process hold, one after the other."""
    import jax

    from gnp.training.mesh import build_mesh, shard_batch

    mesh = build_mesh(devices=jax.devices()[:count])
    found = []
    for batch in train_batches(digits(workers=0), BATCH_SIZE, SEED, 0, STEPS):
        whole = {}
        for key, array in shard_batch(batch, mesh).items():
            shards = sorted(array.addressable_shards, key=lambda shard: shard.device.id)
            assert [len(shard.data) for shard in shards] == [BATCH_SIZE // count] * count
            whole[key] = np.concatenate([shard.data for shard in shards])
        found.append(whole)
    return digests(found)


@pytest.mark.slow  # tests/gnp/training/gradients_test.py has other batches on four devices
def test_devices_change_nothing(expected: list[str], gnp_environment: dict[str, str]) -> None:
    flags = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__))],
        capture_output=True, check=False, env=gnp_environment | flags, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected] * len(DEVICES)


if __name__ == "__main__":
    print(json.dumps([on_devices(count) for count in DEVICES]))
