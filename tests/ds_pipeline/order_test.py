"""The order of the examples, the shares of processes, and blocks of steps."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_pipeline.order import Blocks, Order, block_steps, epoch_order, process_rows


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
    rows = [
        partial(process_rows, process_index=i, process_count=processes) for i in range(processes)
    ]
    assert np.concatenate([share(6) for share in rows]).tolist() == list(range(6))
    order = Order(20, 6, 1)
    steps = [np.concatenate([order.indices(t, t + 1, share) for share in rows]) for t in (3, 4)]
    assert np.concatenate(steps).tolist() == epoch_order(20, 1, 1)[:12].tolist()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_last_batch_of_an_epoch_can_be_smaller(processes: int) -> None:
    order = Order(16, 6, 1, keep_last_batch=True)
    assert order.steps_per_epoch == 3
    shares = [
        order.indices(3, 6, partial(process_rows, process_index=i, process_count=processes))
        for i in range(processes)
    ]
    each, last = 6 // processes, 4 // processes
    assert [len(share) for share in shares] == [2 * each + last] * processes
    borders = ((0, each), (each, 2 * each), (2 * each, 2 * each + last))
    steps = [share[slice(*border)] for border in borders for share in shares]
    assert np.concatenate(steps).tolist() == epoch_order(16, 1, 1).tolist()
    assert Order(12, 6, 1, keep_last_batch=True).steps_per_epoch == 2


def test_a_fixed_order_is_the_data_sets_own() -> None:
    order = Order(5, 2, 1, shuffle=False)
    assert [order.indices(t, t + 1, np.arange).tolist() for t in range(4)] == [[0, 1], [2, 3]] * 2
