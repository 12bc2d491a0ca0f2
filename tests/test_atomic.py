from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flyweight import _atomic
from flyweight._atomic import kept_folder, new_folder, work_folder, write_bytes, write_text
from flyweight.errors import InputError

OURS = '{"format_version": 1, "flyweight": "0.1.0"}'


def contents(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


def artifact(folder: Path, word: str = "old") -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(OURS)
    (folder / "model").write_text(word)
    return folder


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_text_makes_and_replaces_a_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "a.txt", "zwei: ü")
    assert (tmp_path / "a.txt").read_bytes() == "zwei: ü".encode()
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]


def test_a_written_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("failing", ["fsync", "interrupt"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", no_space if failing == "fsync" else interrupt)
    with pytest.raises((InputError, KeyboardInterrupt)):
        write_bytes(tmp_path / "a", b"new")
    assert contents(tmp_path) == {"a": "old"}


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(InputError, match="the disk is full"):
        write_bytes(tmp_path / "a", b"new")


def test_a_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory"):
        write_bytes(tmp_path / "missing" / "a", b"")


def test_a_device_or_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    for path in (tmp_path, tmp_path / "null"):
        with pytest.raises(InputError, match="not a regular file"):
            write_bytes(path, b"")
    assert (tmp_path / "null").is_symlink()


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("before", ["nothing", "empty folder", "missing parents"])
def test_new_folder_appears_when_it_is_whole(tmp_path: Path, before: str) -> None:
    target = tmp_path / "a" / "b" / "out" if before == "missing parents" else tmp_path / "out"
    if before == "empty folder":
        target.mkdir()
    with new_folder(target, overwrite=False) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("new")
        assert partial.parent == target.parent
        assert not (target / "deep").exists()
    assert contents(target) == {"deep/file": "new"}
    assert [f.name for f in target.parent.iterdir()] == ["out"]


def test_new_folder_replaces_an_artifact_when_told(tmp_path: Path) -> None:
    target = artifact(tmp_path / "out")
    with new_folder(target, overwrite=True) as partial:
        (partial / "model").write_text("new")
        assert contents(target)["model"] == "old"
    assert contents(tmp_path) == {"out/model": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_new_folder_changes_nothing_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    target = artifact(tmp_path / "out")

    def fail_half_way() -> None:
        with new_folder(target, overwrite=True) as partial:
            (partial / "model").write_text("half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert contents(tmp_path) == {"out/manifest.json": OURS, "out/model": "old"}
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_parents_made_for_a_folder_that_failed_are_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "b" / "out", overwrite=False):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_the_old_folder_is_restored_when_the_new_one_cannot_move_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    rename = Path.rename

    def fail_for_partial(self: Path, to: Path) -> Path:
        if self.suffix == ".partial":
            raise error
        return rename(self, to)

    target = artifact(tmp_path / "out")
    monkeypatch.setattr(Path, "rename", fail_for_partial)
    with pytest.raises((InputError, KeyboardInterrupt)), new_folder(target, overwrite=True) as partial:
        (partial / "model").write_text("new")
    assert contents(tmp_path) == {"out/manifest.json": OURS, "out/model": "old"}


@pytest.mark.parametrize(
    ("name", "content", "overwrite", "message"),
    [
        ("notes.txt", "mine", True, "no artifact"),
        ("manifest.json", '{"name": "a web page"}', True, "no artifact"),
        ("manifest.json", OURS, False, "holds an artifact already"),
    ],
)
def test_new_folder_refuses_to_overwrite(
    tmp_path: Path, name: str, content: str, overwrite: bool, message: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(InputError, match=message), new_folder(tmp_path / "out", overwrite=overwrite):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {f"out/{name}": content}


def test_files_that_appear_meanwhile_are_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def put_own_file() -> None:
        target.mkdir()
        (target / "mine").write_text("mine")

    with pytest.raises(InputError, match="no artifact"), new_folder(target, overwrite=True):
        put_own_file()
    assert contents(tmp_path) == {"out/mine": "mine"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (p / "out").write_text(""), "is a file"),
        (lambda p: (p / "out").symlink_to("/"), "mount point"),
        (
            lambda p: (p / "out").symlink_to(p / "file" / "out") or (p / "file").touch(),
            "not a directory|file exists",
        ),
    ],
)
def test_new_folder_needs_a_place_for_a_folder(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path)
    with pytest.raises(InputError, match=message), new_folder(tmp_path / "out", overwrite=True):
        pytest.fail("the block must not run")


def test_a_folder_without_write_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, _: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", denied)
    with pytest.raises(InputError, match="no permission"), new_folder(tmp_path / "out", overwrite=False):
        pytest.fail("the block must not run")


def test_a_disk_that_fills_up_in_the_block_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the disk is full"), new_folder(tmp_path / "out", overwrite=False):
        no_space()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_to_read_elsewhere_in_the_block_passes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out", overwrite=False):
        (tmp_path / "data.csv").read_text()


def run_until_ready(target: Path, body: str) -> subprocess.Popen[str]:
    code = f"""
import sys
import tempfile
from pathlib import Path
from flyweight import _atomic
target = Path({str(target)!r})
{body}
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


FILLING = """
import time
with _atomic.new_folder(target, overwrite=True) as partial:
    (partial / "model").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
BETWEEN_RENAMES = """
import time
rename = Path.rename
def rename_and_wait(self, to):
    rename(self, to)
    print("ready", flush=True)
    time.sleep(60)
Path.rename = rename_and_wait
with _atomic.new_folder(target, overwrite=True) as partial:
    (partial / "model").write_text("new")
"""


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_running_one_fills_is_not(
    tmp_path: Path,
) -> None:
    killed, running = (run_until_ready(tmp_path / "out", FILLING) for _ in range(2))
    kill(killed)
    assert len(list(tmp_path.glob(".out.*.partial"))) == 2
    with new_folder(tmp_path / "out", overwrite=False):
        assert len(list(tmp_path.glob(".out.*.partial"))) == 2
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    kill(running)


def test_an_artifact_moved_aside_by_a_killed_run_is_restored_by_the_next(tmp_path: Path) -> None:
    target = artifact(tmp_path / "out")
    kill(run_until_ready(target, BETWEEN_RENAMES))
    assert not target.exists()
    with pytest.raises(InputError, match="holds an artifact already"), new_folder(target, overwrite=False):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {"out/manifest.json": OURS, "out/model": "old"}


def test_two_runs_do_not_replace_an_artifact_at_once(tmp_path: Path) -> None:
    target = artifact(tmp_path / "out")
    running = run_until_ready(target, BETWEEN_RENAMES)
    with new_folder(tmp_path / "out", overwrite=True) as partial:
        (partial / "model").write_text("second")
    kill(running)
    assert contents(target) == {"model": "second"}


def test_an_interrupted_run_exits_and_leaves_nothing(tmp_path: Path) -> None:
    process = run_until_ready(tmp_path / "out", FILLING)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert process.stdout is not None
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    others = [
        ".out.v2.0123abcd.partial",
        ".out.0123abcd.partial.txt",
        ".out.xyz.partial",
        "out.0123abcd.partial",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out", overwrite=False):
        pass
    assert {f.name for f in tmp_path.iterdir()} == {*others, "out"}


def test_a_file_system_without_locks_still_gives_new_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(_atomic.fcntl, "flock", unsupported)
    (tmp_path / ".out.0123abcd.partial").mkdir()
    with new_folder(tmp_path / "out", overwrite=False) as partial:
        (partial / "model").write_text("new")
    assert contents(tmp_path) == {"out/model": "new"}


WORKING = """
import time
with _atomic.work_folder() as folder:
    (folder / "model").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_work_folder_is_private_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with work_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "model").write_text("half")
    assert list(tmp_path.iterdir()) == []


def test_the_work_folder_of_a_killed_run_is_cleared_by_the_next_and_that_of_a_running_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    killed, running = (run_until_ready(tmp_path / "out", WORKING) for _ in range(2))
    kill(killed)
    with work_folder():
        assert len(list(tmp_path.iterdir())) == 2
    assert len(list(tmp_path.iterdir())) == 1
    kill(running)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_place_that_takes_no_files_is_told_as_such():
    with (
        pytest.raises(InputError, match="/proc/small cannot be written: /proc takes no files; name another"),
        new_folder(Path("/proc/small"), overwrite=False),
    ):
        pass


def test_a_kept_folder_is_there_when_it_is_whole_and_stays_beside_until_then(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "one").write_text("1")
        raise RuntimeError

    out = tmp_path / "out"
    with pytest.raises(RuntimeError), kept_folder(out, overwrite=False) as folder:
        fail(folder)
    assert contents(tmp_path) == {"out-unfinished/one": "1"}
    with kept_folder(out, overwrite=False) as folder:
        (folder / "two").write_text("2")
    assert contents(tmp_path) == {"out/one": "1", "out/two": "2"}


def test_a_kept_folder_replaces_an_artifact_only_when_told(tmp_path: Path) -> None:
    out = artifact(tmp_path / "out")
    with pytest.raises(InputError, match="holds an artifact already"), kept_folder(out, overwrite=False):
        pass
    with kept_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("2")
    assert contents(tmp_path) == {"out/new": "2"}


def test_a_kept_folder_is_filled_by_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        kept_folder(out, overwrite=False),
        pytest.raises(InputError, match="is being filled by another run"),
        kept_folder(out, overwrite=False),
    ):
        pass
