"""Files that are either whole or not there: atomic writes, and JSON without surprises."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from secateur.errors import RunError

_NEXT_STEP = {
    errno.ENOSPC: "Free some space or write elsewhere",
    errno.EDQUOT: "Free some of your quota or write elsewhere",
    errno.ENOENT: "Create its folder first",
    errno.EISDIR: "Give the path of a file, not of a folder",
}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Generator[Path]:
    """A temporary path to write to, which becomes `path` at once when the body ends well.

    The temporary file lies in the same folder. After the body it is synced to disk and renamed, so
    that `path` holds either all of the new content or all of the old, also after a power cut. If
    anything fails, the temporary file is removed and `path` stays as it was. A symbolic link is
    followed, not replaced; who may read a file that is replaced, may read the new one.

    Args:
        path: The file to create or replace; its folder must exist.

    Raises:
        RunError: if the file cannot be written, for example because the disk is full, or is a device or a
            pipe.
    """
    try:
        target = Path(os.path.realpath(path))
    except ValueError as error:  # a NUL in it
        raise RunError(f"cannot write {str(path)!r}: {error}. Check the path.") from error
    # os.path, as what may not be looked at is told apart below
    if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        raise RunError(f"cannot write {str(path)!r}: it is a device or a pipe. Give the path of a file.")
    temporary = target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        if os.path.isfile(target):
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except OSError as error:
        step = _NEXT_STEP.get(error.errno or 0, "Check the path and its permissions")
        raise RunError(f"cannot write {str(path)!r}: {error.strerror or error}. {step}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what `atomic_path` left when its process was killed."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", name) is not None


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Create or replace a file with `data`, wholly or not at all; see `atomic_path`.

    Args:
        path: The file; its folder must exist.
        data: Its content; text is written as UTF-8, its line ends as they are.

    Raises:
        RunError: if the file cannot be written, for example because the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a value as indented JSON, atomically.

    Raises:
        RunError: if the value is not JSON (NaN and infinity are not), or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(
            f"cannot write {str(path)!r} as JSON: {error}. Use None for what is not known."
        ) from error
    atomic_write(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        RunError: if the file cannot be read, or does not hold one JSON object as `parse_json` takes it.
    """
    try:
        value = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}. Check the path.") from error
    except ValueError as error:
        raise RunError(
            f"{str(path)!r} is not valid JSON: {error}. Restore the file or make it anew."
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{str(path)!r} must hold a JSON object, got a {type(value).__name__}.")
    return cast("dict[str, Any]", value)


def parse_json(text: str | bytes) -> object:
    """Parse JSON strictly: no duplicate keys, no NaN or infinity, no nesting beyond the stack.

    Args:
        text: The JSON; bytes must be UTF-8.

    Raises:
        ValueError: saying what is wrong, for anything that is not such JSON.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:32]} is too large for a number")
    return value


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. By now the new file is whole and in place, and not every file system can."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Generator[bool]:
    """Hold `path` against other processes; False if another one holds it.

    The lock is freed when a process dies. The file is made for it, and removed afterwards.

    Args:
        path: In a folder that exists.
        wait: Until it is free, so never False.
    """
    while True:
        with path.open("w") as file:
            held = _lock(file, path, wait=wait)
            if held or not wait:
                try:
                    yield held
                finally:
                    if held:
                        with contextlib.suppress(OSError):
                            path.unlink(missing_ok=True)
                return


def _lock(file: IO[str], path: Path, *, wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has none: there, nobody is kept out
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        # Whoever held it until just now has removed the file: a lock on that keeps nobody out.
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
