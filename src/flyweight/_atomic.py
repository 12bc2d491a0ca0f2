"""Files and folders that appear whole or not at all: written under a temporary name, synced, renamed.

Limits: the locks that tell a killed run's folder from a running one's need POSIX; elsewhere left-overs stay.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flyweight.errors import InputError

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WORK_NAME = "flyweight-work"
UNFINISHED_SUFFIX = "-unfinished"
_MARK = b'"flyweight"'  # among the first keys of our manifests; other programs' manifest.json lack it
_MARK_WITHIN_BYTES = 256
_CLAIM_ATTEMPTS = 100  # a claim fails only while another run clears left-overs of the same name

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; raises as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that holds either what it held before or all of ``data``, whatever happens meanwhile.

    Raises:
        InputError: It cannot be written: no such folder, no permission, no space, or not a file there.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(_name(path.name, "partial"))
    with _writing(path):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file; name a file to write")
        try:
            _write_synced(partial, data)
            partial.replace(path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, next to ``target``; it becomes ``target`` when the block ends without an exception.

    After an exception, an interrupt included, ``target`` is as it was. Left-overs of killed runs are cleared.

    Args:
        overwrite: Replace an artifact that is there already. A folder of other files is never replaced.

    Raises:
        InputError: ``target`` cannot be written or may not be replaced, or the disk fills up meanwhile.
    """
    target = Path(os.path.realpath(target))
    with _parents_of(target):
        with _writing(target):
            _clear_leftovers(target)
            _check_replaceable(target, overwrite)
            partial, lock = _claim(target)
        try:
            with _filling(partial, target):
                yield partial
            with _writing(target):
                _sync_tree(partial)
                _check_replaceable(target, overwrite)
                _move_in(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _unlock(lock)


@contextmanager
def kept_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """As `new_folder`, but what was filled in stays beside ``target`` after an exception, or a kill.

    The next run finds it there and goes on.

    Raises:
        InputError: As `new_folder`; or another run fills it at this moment.
    """
    target = Path(os.path.realpath(target))
    unfinished = target.with_name(target.name + UNFINISHED_SUFFIX)
    with _writing(target):
        _check_replaceable(target, overwrite)
        unfinished.mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock(unfinished)
    except BlockingIOError as error:
        raise InputError(f"{unfinished} is being filled by another run; wait for it") from error
    try:
        with _filling(unfinished, target):
            yield unfinished
        with _writing(target):
            _sync_tree(unfinished)
            _check_replaceable(target, overwrite)
            _move_in(unfinished, target)
    finally:
        _unlock(lock)


@contextmanager
def work_folder(parent: Path | None = None, name: str = WORK_NAME) -> Iterator[Path]:
    """A temporary folder, gone afterwards. What killed runs left there under that name is cleared.

    Args:
        parent: Where; None is the system's place for temporary files.
        name: Part of the folder's name.
    """
    target = Path(os.path.realpath(parent or tempfile.gettempdir())) / name
    with _writing(target):
        _clear_leftovers(target)
        folder, lock = _claim(target)
    try:
        folder.chmod(stat.S_IRWXU)  # models may be secret, and others read what lies there
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def check_replaceable(target: Path, *, overwrite: bool) -> None:
    """Nothing, if `new_folder` may make or replace ``target``: called before long work.

    Raises:
        InputError: It may not: other files are there, or an artifact that is not to be overwritten.
    """
    target = Path(os.path.realpath(target))
    with _writing(target):
        _check_replaceable(target, overwrite)


def holds_artifact(folder: Path) -> bool:
    """Whether a manifest of ours lies in ``folder``; the rest is not looked at."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return _MARK in file.read(_MARK_WITHIN_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Any failure of the system becomes one sentence about ``path``."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


@contextmanager
def _filling(partial: Path, target: Path) -> Iterator[None]:
    """The same, for code of the caller: its failures elsewhere, such as a data file it cannot read, pass."""
    try:
        yield
    except OSError as error:
        named = Path(os.path.realpath(error.filename)) if isinstance(error.filename, str) else partial
        inside = named.is_relative_to(partial)
        if error.errno in _FULL or (error.errno in _READ_ONLY and inside):
            raise _unwritable(target if inside else named, error) from error
        raise


@contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    """Create what is missing above ``target``, and remove it again if nothing was put in."""
    missing: list[Path] = []
    try:
        with _writing(target):
            missing += [folder for folder in target.parents if not folder.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _name(name: str, kind: str) -> str:
    return f".{name}.{secrets.token_hex(4)}.{kind}"


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder durable. Windows cannot open one; it journals names by itself."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            with (Path(parent) / name).open("rb+" if sys.platform == "win32" else "rb") as file:
                os.fsync(file.fileno())
        _sync(Path(parent))


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not target.name or os.path.ismount(target):
        raise InputError(
            f"{target} is a mount point and cannot be replaced as a whole; name a folder inside it"
        )
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file; name a folder to write to")
    if not os.access(target, os.W_OK | os.X_OK):
        raise InputError(f"{target} is read-only; change its permissions or name another folder")
    if next(target.iterdir(), None) is None:
        return
    if not holds_artifact(target):
        raise InputError(
            f"{target} holds files that are no artifact and is not overwritten; name another folder"
        )
    if not overwrite:
        raise InputError(
            f"{target} holds an artifact already; overwrite it (--overwrite) or name another folder"
        )


def _claim(target: Path) -> tuple[Path, int | None]:
    """A new, locked folder next to ``target``."""
    for _ in range(_CLAIM_ATTEMPTS):
        partial = target.with_name(_name(target.name, "partial"))
        partial.mkdir()
        with suppress(FileNotFoundError, BlockingIOError):  # another run saw it unlocked and is clearing it
            lock = _lock(partial)
            if partial.exists():
                return partial, lock
            _unlock(lock)
    raise InputError(f"{target} cannot be written: other runs keep clearing it; try again")


def _lock(folder: Path) -> int | None:
    """Hold ``folder`` until `_unlock` or the end of this process; None where folders cannot be locked.

    A lock, not a process id in the name: containers that share a disk do not see each other's processes.

    Raises:
        BlockingIOError: A running process holds it.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None  # a file system without locks, such as some network ones
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _clear_leftovers(target: Path) -> None:
    """Put back what a run killed while it replaced ``target`` had moved aside; remove what is half made."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(partial|previous)")
    for folder in [f for f in target.parent.iterdir() if pattern.fullmatch(f.name) and f.is_dir()]:
        # Gone meanwhile, at work, or somebody else's.
        with suppress(FileNotFoundError, BlockingIOError, PermissionError):
            lock = _lock(folder)
            try:
                if lock is not None:
                    _clear(folder, target)
            finally:
                _unlock(lock)


def _clear(folder: Path, target: Path) -> None:
    if folder.suffix == ".previous" and not target.exists():
        _log.warning("%s restored: an earlier run was killed while it replaced it", target)
        folder.rename(target)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _move_in(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``; what was there is kept aside until that is done."""
    if not target.exists():
        partial.rename(target)
        _sync(target.parent)
        return
    aside = target.with_name(_name(target.name, "previous"))
    lock = _lock(target)
    try:
        target.rename(aside)
        partial.rename(target)
        _sync(target.parent)
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(target)
        _unlock(lock)


def _unwritable(path: Path, error: OSError) -> InputError:
    if error.errno in _FULL:
        return InputError(f"{path} cannot be written: the disk is full; free some space or write elsewhere")
    if isinstance(error, BlockingIOError):
        return InputError(f"{path} cannot be written: another run is replacing it; try again when it is done")
    if error.errno in _READ_ONLY:
        return InputError(
            f"{path} cannot be written: no permission, or read-only; write elsewhere or permit it"
        )
    if isinstance(error, FileNotFoundError) and path.parent.is_dir():  # as in /proc
        return InputError(f"{path} cannot be written: {path.parent} takes no files; name another place")
    return InputError(
        f"{path} cannot be written: {(error.strerror or str(error)).lower()}; name another place"
    )
