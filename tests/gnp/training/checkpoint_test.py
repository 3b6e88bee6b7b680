"""Checkpoints come back to the bit, and damaged ones are noticed."""

import errno
import hashlib
import json
import os
import resource
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training import checkpoint
from gnp.training.checkpoint import CheckpointError, Checkpoints, read_checkpoint
from gnp.training.state import TrainState
from tests.marks import quick_first

# TensorStore's threads find their event loop closed where a file was not written or read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(scale: float = 1.0, width: int = 3) -> TrainState:
    params = {"dense": {"kernel": scale * jnp.arange(4.0 * width).reshape(4, width)}}
    return TrainState(params, {"mean": jnp.ones(3)}, optax.adam(1e-3).init(params))


def save(directory: Path, steps: tuple[int, ...]) -> None:
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(step, make_state(step), {"step": step, "sums": {"loss": 0.1 * step}})
    checkpoints.wait()
    checkpoints.close()


def restore(directory: Path, step: int | None = None, like: TrainState | None = None):
    checkpoints = Checkpoints(directory)
    try:
        return checkpoints.restore(like or make_state(), step)
    finally:
        checkpoints.close()


def test_comes_back_to_the_bit(tmp_path):
    save(tmp_path, (1, 2))
    restored = restore(tmp_path)
    assert restored.step == 2
    assert restored.progress == {"step": 2, "sums": {"loss": 0.2}}
    assert jax.tree.structure(restored.state) == jax.tree.structure(make_state())
    for ours, theirs in zip(
        jax.tree.leaves(restored.state), jax.tree.leaves(make_state(2)), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


class Grown(NamedTuple):
    """Adam's state after a version that gave it fields without arrays."""

    count: jax.Array
    memory: tuple[()]
    mu: optax.Updates
    nu: optax.Updates
    more: optax.EmptyState


def test_what_holds_no_array_may_differ(tmp_path):
    save(tmp_path, (1,))
    state = make_state()
    count, mu, nu = state.opt_state[0]
    grown = Grown(count, (), mu, nu, optax.EmptyState())
    like = state._replace(opt_state=(grown, *state.opt_state[1:]))
    restored = restore(tmp_path, like=like).state
    assert jax.tree.structure(restored) == jax.tree.structure(like)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(make_state()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_none_in_an_empty_directory(tmp_path):
    assert restore(tmp_path) is None


def test_a_step_by_its_number(tmp_path):
    save(tmp_path, (1, 2))
    assert restore(tmp_path, 1).step == 1
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .* there are: 1, 2"):
        restore(tmp_path, 7)


def test_donated_right_after_save(tmp_path):
    """The loop donates the state to the next step while the checkpoint is still being written."""
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1000, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = jax.tree.map(lambda x: jnp.ones((512, 512)), {"a": 0, "b": 0})
    for step in (1, 2):
        checkpoints.save(step, TrainState(state, {}, ()), {})
        state = spoil(state)
    checkpoints.wait()
    like = TrainState({"a": jnp.ones((512, 512)), "b": jnp.ones((512, 512))}, {}, ())
    first, second = checkpoints.restore(like, 1), checkpoints.restore(like, 2)
    checkpoints.close()
    np.testing.assert_array_equal(first.state.params["a"], 1.0)
    np.testing.assert_array_equal(second.state.params["b"], 1001.0)


def files_of(directory: Path, step: int) -> list[str]:
    folder = directory / "checkpoints" / str(step)
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("harm", quick_first(("truncate", "flip", "remove")))
def test_every_damaged_file_leads_to_the_checkpoint_before(tmp_path, harm):
    save(tmp_path / "original", (1, 2))
    names = files_of(tmp_path / "original", 2)
    assert len(names) > 5
    for number, name in enumerate(names):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "original", directory)
        file = directory / "checkpoints" / "2" / name
        content = file.read_bytes()
        if harm == "remove":
            file.unlink()
        elif harm == "truncate":
            file.write_bytes(content[: len(content) // 2])
        else:
            middle = len(content) // 2
            file.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        restored = restore(directory)
        if restored.step == 2:  # a file that is not read: nothing may be lost
            np.testing.assert_array_equal(
                restored.state.params["dense"]["kernel"], make_state(2).params["dense"]["kernel"]
            )
            continue
        assert restored.step == 1
        assert "checkpoint 2 is damaged" in restored.warnings[0]
        np.testing.assert_array_equal(
            restored.state.params["dense"]["kernel"], make_state(1).params["dense"]["kernel"]
        )
        assert not (directory / "checkpoints" / "2").exists()
        assert f"now {directory / 'checkpoints' / '2.damaged-1'}" in restored.warnings[0]


def damage(directory: Path, step: int, name: str, content: bytes) -> None:
    (directory / "checkpoints" / str(step) / name).write_bytes(content)


def content_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.*")
            if p.is_file()}  # fmt: skip


def test_damaged_ones_are_kept_under_names_of_their_own(tmp_path):
    for count in (1, 2):
        save(tmp_path, (1, 2))
        damage(tmp_path, 2, "progress/metadata", b"%d" % count)
        assert restore(tmp_path).step == 1
        kept = tmp_path / "checkpoints" / f"2.damaged-{count}"
        assert (kept / "progress" / "metadata").read_bytes() == b"%d" % count
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, make_state(), {})
    assert {"3", "2.damaged-1", "2.damaged-2"} == set(os.listdir(tmp_path / "checkpoints"))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b"[1]", b"3", b"null", b"{}", b"[" * 100_000, b"9" * 10_000,
        b'{"state/_METADATA": 3, "progress/metadata": [{}]}',
        b'{"state/_METADATA": "", "progress/metadata": "", "state/\\u0000": ""}',
        b'{"../1/sha256.json": "", "/": "", "state/_METADATA": "", "progress/metadata": ""}',
    ],
    ids=lambda content: repr(content[:24]),
)  # fmt: skip
def test_digests_that_are_none_are_damage(tmp_path, content):
    save(tmp_path, (1, 2))
    damage(tmp_path, 2, "sha256.json", content)
    restored = restore(tmp_path)
    assert (restored.step, len(restored.warnings)) == (1, 1)
    assert len(restored.warnings[0].splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress/metadata", b"[]"), ("progress/metadata", b'{"step": 1}'),
        ("progress/metadata", b"[" * 100_000), ("progress/metadata", b'{"step": "2"}'),
        ("state/_METADATA", b"[]"), ("state/_METADATA", b'{"tree_metadata": 3}'),
        ("state/_METADATA", b"[" * 100_000), ("state/_METADATA", b"{}"),
        ("state/_sharding", b"[1]"), ("state/manifest.ocdbt", b""),
    ],
)  # fmt: skip
def test_what_nobody_wrote_is_refused_in_one_line(tmp_path, name, content):
    """Its digests are right: it is not damaged, but made."""
    save(tmp_path, (1, 2))
    damage(tmp_path, 2, name, content)
    digests = tmp_path / "checkpoints" / "2" / "sha256.json"
    changed = {name: hashlib.sha256(content).hexdigest()}
    digests.write_text(json.dumps(json.loads(digests.read_text()) | changed))
    before = content_of(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert content_of(tmp_path) == before


def test_files_of_others_are_no_damage(tmp_path):
    save(tmp_path, (1, 2))
    root = tmp_path / "checkpoints"
    folders = [root, *(folder for folder in root.rglob("*") if folder.is_dir())]
    for folder in folders:
        for name in (".DS_Store", "._x", ".nfs0001", "desktop.ini"):
            (folder / name).write_bytes(b"\0")
        (folder / "an empty folder").mkdir()
    (root / "._2").write_text("")
    (root / "3").write_text("")  # where a checkpoint is going to be
    (root / "7").mkdir()
    (root / "9").write_text("")
    others = {"._2", ".DS_Store", "._x", ".nfs0001", "desktop.ini", "an empty folder", "7", "9"}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        restored = checkpoints.restore(make_state())
        assert (restored.step, restored.warnings) == (2, [])
        for step in (3, 4, 5):
            checkpoints.save(step, make_state(step), {})
            (root / str(step - 1) / ".DS_Store").write_text("")
            shutil.rmtree(root / str(step - 1) / "an empty folder", ignore_errors=True)
    assert set(os.listdir(root)) == others | {"3", "4", "5", "3.damaged-1"}
    assert restore(tmp_path).step == 5


def limit_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no more files be opened than there are."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    undo = monkeypatch.undo
    monkeypatch.undo = lambda: (resource.setrlimit(resource.RLIMIT_NOFILE, before), undo())


def fail_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", fail)


@pytest.mark.parametrize(
    ("harm", "line"),
    [(limit_files, r"/checkpoints.*: Too many open files"),
     (fail_to_read, r"/checkpoints/2/\S+: Input/output error; nothing was changed")],
)  # fmt: skip
def test_what_cannot_be_read_is_no_damage(tmp_path, monkeypatch, harm, line):
    save(tmp_path, (1, 2))
    before = content_of(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        harm(monkeypatch)
        try:
            with pytest.raises(CheckpointError, match=line) as caught:
                checkpoints.restore(make_state())
        finally:
            monkeypatch.undo()
    assert "damaged" not in str(caught.value)
    assert content_of(tmp_path) == before
    restored = restore(tmp_path)
    assert (restored.step, restored.warnings) == (2, [])


def test_one_that_a_running_training_removes_is_no_error(tmp_path, monkeypatch):
    save(tmp_path, (1, 2))
    read = Checkpoints._read

    def read_late(self, step, *rest):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
        if step == 1:
            save(tmp_path, (3,))
            monkeypatch.undo()
        return read(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "_read", read_late)
    restored = read_checkpoint(tmp_path, make_state())
    assert (restored.step, restored.warnings) == (3, [])


def test_all_of_it_is_on_the_disk_before_its_name_and_before_older_ones_go(tmp_path, monkeypatch):
    """A power failure keeps what was synced, and may keep anything else."""
    root = tmp_path / "run" / "checkpoints"
    synced: set[tuple[int, int]] = set()
    renamed: list[str] = []
    fsync, rename = os.fsync, os.rename

    def version(path):
        status = os.stat(path)
        return status.st_ino, status.st_mtime_ns

    def note_sync(descriptor):
        fsync(descriptor)
        synced.add(version(descriptor))

    def note_rename(source, target):
        source, target = Path(source), Path(target)
        if target.parent == root:
            needed = [root]  # another one's name
            if target.name.isdigit():
                needed = [root.parent, source, *source.rglob("*")]
            assert [path for path in needed if version(path) not in synced] == []
            renamed.append(target.name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    with Checkpoints(root.parent, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {})
    assert renamed == ["1", "2", "1.orbax-checkpoint-tmp"]
    assert os.listdir(root) == ["2"]


def a_file(path: Path) -> None:
    path.write_text("")


def a_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("harm", [a_file, a_link])
@pytest.mark.parametrize("moment", ["start", "save"])
def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path, moment, harm):
    started = time.monotonic()
    root = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match=rf"{root}.*: (File exists|No such|Not a dir)"):
        if moment == "start":
            harm(root)
        with Checkpoints(tmp_path) as checkpoints:
            shutil.rmtree(root)
            harm(root)
            checkpoints.save(2, make_state(), {})
            checkpoints.wait()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("where", ["elsewhere", None])
def test_a_directory_that_goes_away_is_said_at_once(tmp_path, where):
    """Moved, or its checkpoints removed."""
    started = time.monotonic()
    save(tmp_path / "run", (1,))
    line = rf"checkpoint 2 could not be written to {tmp_path / 'run'}.*: No such file or directory"
    with pytest.raises(CheckpointError, match=line), Checkpoints(tmp_path / "run") as checkpoints:
        if where:
            (tmp_path / "run").rename(tmp_path / where)
        else:
            shutil.rmtree(tmp_path / "run" / "checkpoints")
        checkpoints.save(2, make_state(), {})
        checkpoints.wait()
    assert time.monotonic() - started < 30
    assert not (where and restore(tmp_path / where).step != 1)


def test_all_damaged_is_said(tmp_path):
    save(tmp_path, (1,))
    (tmp_path / "checkpoints" / "1" / "sha256.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        restore(tmp_path)


def test_another_model_is_said(tmp_path):
    save(tmp_path, (1,))
    with pytest.raises(CheckpointError, match=r"another model.*dense/kernel is \(4, 3\) there"):
        restore(tmp_path, like=make_state(width=5))


def test_leaving_it_waits_even_after_an_error(tmp_path):
    with pytest.raises(KeyError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {})
        raise KeyError
    assert restore(tmp_path).step == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
# The cache of compiled programs meets the limit too.
@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache entry")
@pytest.mark.parametrize("who", ["TensorStore", "the digests"])
def test_a_full_disk_is_said(tmp_path, monkeypatch, who):
    """A limit on the size of files stands for it."""

    def full(_):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    save(tmp_path, (1,))
    large = make_state(width=4000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = r"checkpoint 2 could not be written .*File too large; the newest good one is of step 1$"
    with pytest.raises(CheckpointError, match=line), Checkpoints(tmp_path) as checkpoints:
        try:
            if who == "TensorStore":
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            else:
                monkeypatch.setattr(checkpoint, "_files", full)
            checkpoints.save(2, large, {})
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    assert restore(tmp_path).step == 1
