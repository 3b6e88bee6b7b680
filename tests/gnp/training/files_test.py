"""Files that are not trusted, and files that are never half written."""

import json
import os
import stat

import numpy as np
import pytest

from gnp.training import files
from gnp.training.files import FileFormatError

JSON = [
    b"\xff\xfe", b"{", b"", b"[" * 99999, b'{"a": ' * 9999, b"9" * 5000, b"1" + b"0" * 25,
    b'{"a": 1}x', b"\x00",
]  # fmt: skip


@pytest.mark.parametrize("content", JSON)
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FileFormatError, match="a is damaged"):
        files.read_json(tmp_path / "a")


ROWS = ["[]", "1", "{}", '{"epoch": 1}', '{"epoch": 1, "step": true}', '{"epoch": -1, "step": 2}',
        '{"epoch": 1, "step": 2, "loss": "x"}', '{"epoch": 1, "step": 2, "loss": [1]}',
        '{"epoch": 1.5, "step": 2}', '{"epoch": 1, "step": null}']  # fmt: skip


@pytest.mark.parametrize("row", [*JSON, *(row.encode() for row in ROWS)])
def test_rows_that_are_none(tmp_path, row):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1, "step": 5}\n' + (row or b" "))
    with pytest.raises(FileFormatError, match="metrics.jsonl, line 2: "):
        files.read_rows(tmp_path / "metrics.jsonl")


def test_damaged_arrays(tmp_path):
    path, random = tmp_path / "a.npz", np.random.default_rng(0)
    np.savez_compressed(path, x=np.arange(300.0), y=np.array(["a", "b"]))
    np.testing.assert_array_equal(files.read_arrays(path)["x"], np.arange(300.0))
    whole = path.read_bytes()
    found = 0
    for _ in range(300):
        content = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            content[place] = random.integers(256)
        path.write_bytes(content[: random.integers(1, len(whole) + 1)])
        try:
            files.read_arrays(path)
        except FileFormatError as error:
            found += 1
            assert "\n" not in str(error)
    assert found > 200


def test_python_objects_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], object))
    with pytest.raises(FileFormatError, match="damaged: "):
        files.read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("read", [files.read_json, files.read_rows, files.read_arrays])
def test_a_pipe_or_a_device_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(FileFormatError, match=f"{name} is no regular file"):
            read(tmp_path / name)


def test_files_have_the_permissions_that_the_user_gives(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_json(tmp_path / "a.json", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json" / "b").touch()
    for path in (tmp_path / "a.json", tmp_path / "gone" / "b.json"):
        with pytest.raises(OSError) as raised:
            files.write_json(path, 1)
        assert raised.value.filename == os.fspath(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.json"]


def test_a_file_and_its_folder_are_on_the_disk_before_the_next_is_written(tmp_path, monkeypatch):
    synced = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os,
        "fsync",
        lambda number: (synced.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number)),
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (synced.append("replace"), replace(a, b)))
    files.write_json(tmp_path / "a.json", {"b": 1})
    temporary, between, folder = synced
    assert temporary.startswith(f"{tmp_path}/.a.json.")
    assert (between, folder) == ("replace", os.fspath(tmp_path))
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
