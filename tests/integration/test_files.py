"""Files are whole or not there, whatever goes wrong while they are written."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from secateur.errors import RunError
from secateur.files import atomic_path, atomic_write, parse_json, read_json, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_creates_and_replaces(tmp_path):
    path = tmp_path / "a.txt"
    atomic_write(path, "one α\n")
    assert path.read_bytes() == "one α\n".encode()
    atomic_write(str(path), b"\x00two")
    assert path.read_bytes() == b"\x00two"
    assert names(tmp_path) == ["a.txt"]


def test_new_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic_write(tmp_path / "atomic", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert modes[0] == modes[1]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")
    atomic_write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_text() == "new"


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    atomic_write(tmp_path / "a", "x")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("where", ["write", "fsync", "rename"])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, where, existed):
    path = tmp_path / "result.json"
    if existed:
        path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner, name = {"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "rename": (Path, "replace")}[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(RunError, match=r"cannot write '.*result\.json': No space left on device\. Free"):
            atomic_write(path, "new")
    assert names(tmp_path) == (["result.json"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_a_write_that_the_system_stops_half_way(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "big"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        with pytest.raises(RunError, match="cannot write"):
            atomic_write(path, bytes(1024 * 1024))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["big"]


def test_an_error_of_the_body_passes_through(tmp_path):
    (tmp_path / "a").write_text("old")

    def interrupted() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_missing_folder_and_folder_as_file(tmp_path):
    with pytest.raises(RunError, match="Create its folder first"):
        atomic_write(tmp_path / "nowhere" / "a", "x")
    with pytest.raises(RunError, match="not of a folder"):
        atomic_write(tmp_path, "x")
    assert names(tmp_path) == []
    assert names(tmp_path.parent).count(tmp_path.name) == 1
    assert not [name for name in names(tmp_path.parent) if name.endswith(".tmp")]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_json_round_trip(tmp_path):
    value = {"α": [1, 0.1, None, True], "b": {"a": "x"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text() == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}, {"a": {1, 2}}, object()])
def test_what_is_not_json_is_not_written(tmp_path, value):
    with pytest.raises(RunError, match=r"cannot write '.*x\.json' as JSON"):
        write_json(tmp_path / "x.json", value)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "NaN",
        "[Infinity]",
        '{"a": -Infinity}',
        "1e999",
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        b"\xff",
        "1 2",
    ],
)
def test_strict_json_refuses(tmp_path, text):
    with pytest.raises(ValueError):  # noqa: PT011 - the wording is Python's own
        parse_json(text)
    (tmp_path / "x").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match="is not valid JSON"):
        read_json(tmp_path / "x")


def test_read_json_wants_an_object_in_a_file(tmp_path):
    (tmp_path / "x").write_text("[1]")
    with pytest.raises(RunError, match="must hold a JSON object, got a list"):
        read_json(tmp_path / "x")
    with pytest.raises(RunError, match=r"cannot read .* No such file"):
        read_json(tmp_path / "y")


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    (tmp_path / "private").write_text("old")
    (tmp_path / "private").chmod(0o600)
    atomic_write(tmp_path / "private", "new")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_path_that_can_be_none_is_told():
    with pytest.raises(RunError, match=r"null byte\. Check the path"):
        atomic_write("a\0b", "x")


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="pipe': it is a device or a pipe"):
        atomic_write(tmp_path / "pipe", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["pipe"]
