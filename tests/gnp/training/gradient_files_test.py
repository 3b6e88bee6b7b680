"""Every step's gradient on disk: written as it comes, read at any time, missed where it is not."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from gnp.training import gradient_files
from gnp.training.files import FileFormatError
from gnp.training.gradient_files import (
    DiskSpaceError,
    GradientFiles,
    check_space,
    read_index,
    size_line,
)

NAMES, SHAPES = ("a/b", "a/c", "d"), ((), (3,), (2, 4))
PARAMS = {"a": {"b": np.zeros(()), "c": np.zeros(3)}, "d": np.zeros((2, 4))}


def gradients_of(step):
    draw = np.random.default_rng(step)
    return [draw.normal(size=shape).astype(np.float32) for shape in SHAPES]


def write(directory, steps, from_step=0, total=6, params=PARAMS):
    files = GradientFiles(directory, params, 2, total, from_step)
    for step in steps:
        files(step, gradients_of(step))
    return files


def test_rows_are_the_steps(tmp_path):
    write(tmp_path, range(1, 7)).close()
    index = read_index(tmp_path)
    assert (index.names, index.shapes) == (NAMES, SHAPES)
    assert (index.steps_per_epoch, index.total_steps, index.steps) == (2, 6, 6)
    for layer, file in enumerate(index.files):
        rows = np.load(file, mmap_mode="r")
        assert rows.dtype == np.float32 and rows.shape == (6, *SHAPES[layer])
        for step in range(1, 7):
            np.testing.assert_array_equal(rows[step - 1], gradients_of(step)[layer])
        assert file.stat().st_size - rows.nbytes < 200
    sizes = sum(int(np.prod(shape)) for shape in SHAPES)
    gib = sum(np.load(file).nbytes for file in index.files) / 2**30
    assert f" = {gib:.3g} GiB in " in size_line(tmp_path, sizes, 6)


def test_steps_can_be_read_while_they_are_written(tmp_path):
    files = write(tmp_path, [1, 2, 3])
    rows = np.load(files.index.files[2], mmap_mode="r")
    np.testing.assert_array_equal(rows[2], gradients_of(3)[2])
    np.testing.assert_array_equal(rows[3:], 0)
    assert read_index(tmp_path).steps == 0  # not for certain yet
    files.flush()
    assert read_index(tmp_path).steps == 3
    files.close()


def test_goes_on_at_its_step(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    write(tmp_path / "whole", range(1, 7)).close()
    write(tmp_path / "parts", [1, 2, 3, 4]).close()
    files = write(tmp_path / "parts", [], from_step=3)
    assert read_index(tmp_path / "parts").steps == 3
    for step in (4, 5, 6):
        files(step, gradients_of(step))
    files.close()
    for path in (tmp_path / "whole" / "gradients").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / "gradients" / path.name).read_bytes()


def test_starting_over_forgets_what_was_there(tmp_path):
    write(tmp_path, range(1, 7)).close()
    write(tmp_path, [1], total=4).close()
    rows = np.load(read_index(tmp_path).files[1])
    assert rows.shape == (4, 3)
    np.testing.assert_array_equal(rows[1:], 0)


def test_zeros_take_no_room_before_they_are_written(tmp_path):
    files = GradientFiles(tmp_path, {"w": np.zeros((1000, 1000))}, 10, 10**4)
    assert files.index.files[0].stat().st_size > 4 * 10**10
    assert files.index.files[0].stat().st_blocks * 512 < 10**6
    files.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "index.json").unlink(), "index.json is missing or damaged"),
        (lambda d: (d / "index.json").write_text("{}"), "index.json is missing or damaged"),
        (lambda d: (d / "001_a.c.npy").unlink(), "001_a.c.npy is missing or damaged"),
        (lambda d: (d / "001_a.c.npy").write_bytes(b""), "001_a.c.npy is missing or damaged"),
        (lambda d: os.truncate(d / "001_a.c.npy", 150), "001_a.c.npy is missing or damaged"),
        (lambda d: np.save(d / "001_a.c.npy", np.zeros(3)), "001_a.c.npy is not what"),
        (shutil.rmtree, "index.json is missing or damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    write(tmp_path, [1, 2]).close()
    damage(tmp_path / "gradients")
    for use in (lambda: read_index(tmp_path), lambda: write(tmp_path, [], from_step=2)):
        with pytest.raises(FileFormatError, match=f"{message}.*config.retrain=True"):
            use()


def test_another_model_or_length_is_refused(tmp_path):
    write(tmp_path, [1, 2]).close()
    for other in ({"total": 8}, {"params": {"x": PARAMS["a"], "d": PARAMS["d"]}}):
        with pytest.raises(FileFormatError, match="of another model or length"):
            write(tmp_path, [], from_step=2, **other)


def test_a_disk_without_room_is_refused_beforehand(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4000))
    check_space(tmp_path, 10, 100)
    with pytest.raises(DiskSpaceError) as caught:
        check_space(tmp_path, 11, 100)
    message = str(caught.value)
    assert "11 parameters x 100 steps x 4 bytes = 4.1e-06 GiB in" in message
    assert "--config.record.steps=False" in message and "\n" not in message
    # What is written already needs no more room.
    GradientFiles(tmp_path, {"w": np.zeros(1000)}, 1, 4)(1, [np.ones(1000, np.float32)])
    check_space(tmp_path, 1000, 2)


def test_a_disk_that_fills_up(tmp_path, monkeypatch):
    files = write(tmp_path, [1])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gradient_files.os, "pwrite", full)
    with pytest.raises(DiskSpaceError, match="000_a.b.npy cannot be written: No space left"):
        files(2, gradients_of(2))
    monkeypatch.undo()
    files.close()
    assert json.loads((tmp_path / "gradients" / "index.json").read_text())["steps"] == 1


def test_a_write_in_several_parts(tmp_path, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, place: whole(fd, data[:5], place))
    write(tmp_path, [1, 2]).close()
    monkeypatch.undo()
    np.testing.assert_array_equal(np.load(read_index(tmp_path).files[2])[1], gradients_of(2)[2])
