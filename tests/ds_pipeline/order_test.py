"""The order of the examples, the shares of processes, and blocks of steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline.order import Blocks, batch_indices, block_steps, epoch_order, process_rows


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = [
        epoch_order(50, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_order(50, 0, 0).tolist()


@settings(max_examples=100, deadline=None)
@given(
    start=st.integers(0, 40),
    length=st.integers(1, 40),
    epoch=st.integers(1, 12),
    size=st.integers(1, 15),
)
def test_blocks_hold_every_step_once(start: int, length: int, epoch: int, size: int) -> None:
    blocks = Blocks(start, start + length, epoch, size)
    found = [blocks[i] for i in range(len(blocks))]
    steps = [step for block in found for step in range(*block)]
    assert steps == list(range(start, start + length))
    for first, last in found:
        assert 0 < last - first <= size and first // epoch == (last - 1) // epoch


@pytest.mark.parametrize(
    ("shape", "rows", "steps"),
    [
        ((32, 32, 3), 64, 16),
        ((8, 8, 1), 2000, 1),
        ((224, 224, 3), 64, 1),
        ((13,), 32, 32),
        ((), 1, 1024),
    ],
)
def test_a_block_is_large_for_small_examples_alone(
    shape: tuple[int, ...], rows: int, steps: int
) -> None:
    assert block_steps(shape, rows) == steps


def test_the_order_cannot_be_changed_by_who_asks() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0)[0] = 1


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_each_batch(processes: int) -> None:
    rows = [process_rows(6, i, processes) for i in range(processes)]
    assert np.concatenate(rows).tolist() == list(range(6))
    steps = [np.concatenate([batch_indices(20, 6, 1, t, t + 1, r) for r in rows]) for t in (3, 4)]
    assert np.concatenate(steps).tolist() == epoch_order(20, 1, 1)[:12].tolist()
