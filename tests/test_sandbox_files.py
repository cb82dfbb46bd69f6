"""Hostile names, links and special files on their way in and out of the local sandbox."""

import io
import os
import stat
import time

import pytest

from data_pipeline.sandbox import root_view, sandbox, transfer

pytestmark = pytest.mark.skipif(
    bool(root_view.missing_programs()),
    reason=f"no sandbox without {', '.join(root_view.missing_programs())}",
)
SECRET = "hidden-marmalade-91"


@pytest.fixture
def box():
    with sandbox.Sandbox(cpus=1, memory_mb=256, storage_mb=64, lifetime_s=120) as box:
        yield box


def test_links_in_a_folder_that_goes_in_are_not_followed(box, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    source = tmp_path / "source"
    source.mkdir()
    (source / "link").symlink_to(tmp_path / "secret")
    (source / "folder").symlink_to(tmp_path)
    os.mkfifo(source / "pipe")
    box.put_dir(source, "/app")
    done = box.run("ls /app; cat /app/link /app/folder/secret", timeout_s=20)
    assert done.stdout.split() == [b"folder", b"link"] and done.return_code != 0
    with pytest.raises(OSError, match="symbolic links"):
        box.put_file(source / "link", "/app/x")
    with pytest.raises(ValueError, match="regular file"):
        box.put_file(source / "pipe", "/app/x")


def test_what_lies_in_the_way_inside_is_replaced(box):
    box.run("mkfifo /tests/a; ln -s /usr/bin/env /tests/b; ln -s /dev/full /tests/c", timeout_s=20)
    for name in "abc":
        box.put_file(b"mine", f"/tests/{name}")
        assert box.get_file(f"/tests/{name}") == b"mine"


def test_a_folder_comes_out_without_links_and_special_files(box, tmp_path):
    make = "cd /logs/agent; echo good > file; ln -s /etc/passwd a; ln -s ../../../../.. b; mkfifo c"
    nest = "mkdir -p d/e; ln -s . d/e/loop"
    nest += "; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"f\")'"
    deep = "python3 -c \"import os\nfor _ in range(3000): os.mkdir('x'); os.chdir('x')\""
    box.run(f"{make}; {nest}; {deep}", timeout_s=60)
    links = box.get_dir("/logs/agent", tmp_path / "out")
    assert sorted(links) == ["a", "b", "d/e/loop"]
    found = [path for path in (tmp_path / "out").rglob("*") if not path.match("x*")]
    assert {path.name for path in found} == {"file", "d", "e"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("path", ["/tmp/pipe", "/dev/zero", "/dev/pts/ptmx", "/tmp", "/tmp/loop"])
def test_only_regular_files_come_out(box, path):
    box.run("mkfifo /tmp/pipe; ln -s loop /tmp/loop", timeout_s=20)
    began_s = time.monotonic()
    with pytest.raises(sandbox.SandboxError):
        box.get_file(path)
    assert time.monotonic() - began_s < 20


def test_a_file_too_large_does_not_come_out(box, tmp_path):
    assert box.run("truncate -s 1T /app/huge", timeout_s=20).return_code == 0
    with pytest.raises(sandbox.SandboxError, match="larger than 1000 bytes"):
        box.get_file("/app/huge", max_bytes=1000)
    with pytest.raises(sandbox.SandboxError, match="larger than 1000 bytes"):
        box.get_dir("/app", tmp_path / "out", max_bytes=1000)


def entry(kind: bytes, name: bytes, content: bytes = b"", *, mode: int = 0o644) -> bytes:
    return transfer.ENTRY.pack(kind, mode, len(name), len(content)) + name + content


@pytest.mark.parametrize(
    "stream",
    [
        entry(b"f", b"../escaped", b"x"),
        entry(b"f", b"/tmp/escaped", b"x"),
        entry(b"d", b"a") + entry(b"f", b"a/../../escaped", b"x"),
        entry(b"f", b"a/./../escaped", b"x"),
        entry(b"f", b"", b"x"),
        entry(b"f", b"a\0b", b"x"),
        entry(b"l", b"up", b"..") + entry(b"f", b"up/../../escaped", b"x"),
        entry(b"c", b"device"),
        entry(b"f", b"huge", b"x" * 2000),
        transfer.ENTRY.pack(b"f", 0, 1, 500) + b"a" + b"short",
        transfer.ENTRY.pack(b"f", 0, 65535, 1) + b"a" * 65535,
        b"not a stream",
        b"",
    ],
)
def test_a_hostile_stream_writes_nothing_outside(tmp_path, stream):
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(transfer.TransferError):
        transfer.unpack(io.BytesIO(stream), target, links=False, max_bytes=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert all(path.resolve().is_relative_to(target) for path in target.rglob("*"))


def test_a_stream_does_not_write_through_links_of_the_target(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target/a").symlink_to(tmp_path / "outside")
    (tmp_path / "target/b").symlink_to(tmp_path / "outside/b")
    stream = entry(b"f", b"a/x", b"x", mode=0o6777) + entry(b"f", b"b", b"y") + entry(b"e", b"")
    transfer.unpack(io.BytesIO(stream), tmp_path / "target", links=False, max_bytes=1000)
    assert not list((tmp_path / "outside").iterdir())
    assert stat.S_IMODE((tmp_path / "target/a/x").stat().st_mode) == 0o777  # no set-user bits
    assert (tmp_path / "target/b").read_bytes() == b"y"
