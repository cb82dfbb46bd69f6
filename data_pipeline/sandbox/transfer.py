"""Files in and out of the sandbox as one plain stream; the same text runs on both sides.

On the host it is imported; inside it runs as a program (`python3 -c`, 3.9 or newer, standard
library only): `pack FOLDER`, `unpack FOLDER`, `read FILE`, `write FILE MODE`, with the stream on
stdout or stdin.  Whatever the other side says is hostile: no link is ever followed below the folder
named, special files are left out, names must stay inside.  Links are kept as links on the way in
(inside, they can only point to the inside) and left out on the way out.

An entry: kind (d, f, l), permission bits, length of the name, length of the content; the name,
relative and with slashes; the content (of a link: its target).  The stream ends with kind "e".
"""

import contextlib
import os
import stat
import struct
import sys

ENTRY = struct.Struct("!cHHQ")
_CHUNK_BYTES = 1 << 18
_MAX_NAME_BYTES = 4096
_MAX_ENTRIES = 200_000
_MAX_DEPTH = 100


class TransferError(ValueError):
    """A stream or a file that must not be taken."""


def pack(folder, out) -> int:
    """Write all of `folder` to the stream; returns how many entries were left out.

    Left out are special files (pipes, sockets, devices), what cannot be read, and what lies deeper
    than 100 folders.
    """
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        left_out = _pack_folder(top, b"", out)
    finally:
        os.close(top)
    out.write(ENTRY.pack(b"e", 0, 0, 0))
    return left_out


def _pack_folder(top, prefix, out):
    """Write one open folder's entries, and what is below them."""
    left_out = 0
    if prefix.count(b"/") > _MAX_DEPTH:
        return 1
    for name in sorted(os.fsencode(name) for name in os.listdir(top)):
        try:
            left_out += _pack_entry(top, name, prefix + name, out)
        except OSError:
            left_out += 1  # gone meanwhile, or not readable
    return left_out


def _pack_entry(top, name, path, out):
    """Write one entry; returns how many were left out."""
    mode = os.lstat(name, dir_fd=top).st_mode
    if len(path) > _MAX_NAME_BYTES:
        return 1
    if stat.S_ISLNK(mode):
        target = os.readlink(name, dir_fd=top)
        out.write(ENTRY.pack(b"l", 0, len(path), len(target)) + path + target)
        return 0
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return 1
    # Not blocking and not following: the name may have become a pipe or a link since.
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=top)
    try:
        found = os.fstat(file)
        bits = stat.S_IMODE(found.st_mode) & 0o777
        if stat.S_ISDIR(found.st_mode):
            out.write(ENTRY.pack(b"d", bits, len(path), 0) + path)
            return _pack_folder(file, path + b"/", out)
        if not stat.S_ISREG(found.st_mode):
            return 1
        out.write(ENTRY.pack(b"f", bits, len(path), found.st_size) + path)
        _copy_exactly(file, found.st_size, out)
        return 0
    finally:
        os.close(file)


def _copy_exactly(file, size, out):
    """Copy `size` bytes; a file that shrinks meanwhile is filled up with zeros."""
    while size > 0:
        data = os.read(file, min(size, _CHUNK_BYTES)) or bytes(min(size, _CHUNK_BYTES))
        out.write(data)
        size -= len(data)


def unpack(source, folder, *, links, max_bytes) -> list:
    """Write the stream's entries below `folder`, which exists; returns the links left out.

    Raises TransferError for a stream that names something outside or is larger than allowed.
    """
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    left_out = []
    try:
        for _ in range(_MAX_ENTRIES):
            kind, mode, name_length, size = ENTRY.unpack(_exactly(source, ENTRY.size))
            if kind == b"e":
                return left_out
            max_bytes -= size
            if max_bytes < 0 or name_length > _MAX_NAME_BYTES:
                raise TransferError("the stream is larger than allowed")
            path = _exactly(source, name_length)
            if kind == b"l" and not links:
                _exactly(source, min(size, _MAX_NAME_BYTES))
                left_out.append(path.decode(errors="replace"))
            else:
                _unpack_entry(source, top, kind, mode, path, size)
    finally:
        os.close(top)
    raise TransferError(f"the stream has more than {_MAX_ENTRIES} entries")


def _unpack_entry(source, top, kind, mode, path, size):
    """Write one entry."""
    parts = path.split(b"/")
    if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
        raise TransferError(f"the name {path!r} does not stay inside the folder")
    parent = _descend(top, parts[:-1])
    try:
        if kind == b"d":
            made = _descend(parent, parts[-1:])
            os.fchmod(made, (mode & 0o777) | 0o700)
            os.close(made)
            return
        _remove(parent, parts[-1])
        if kind == b"l":
            os.symlink(_exactly(source, min(size, _MAX_NAME_BYTES)), parts[-1], dir_fd=parent)
        elif kind == b"f":
            _write_new(source, parent, parts[-1], mode, size)
        else:
            raise TransferError(f"the stream holds an entry of unknown kind {kind!r}")
    finally:
        os.close(parent)


def _descend(top, parts):
    """Open the folder below `top`, made where missing; what is a link in the way is replaced."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    here = os.dup(top)
    for part in parts:
        try:
            below = os.open(part, flags, dir_fd=here)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=here)
            below = os.open(part, flags, dir_fd=here)
        except OSError:  # a link or a file in the way
            os.unlink(part, dir_fd=here)
            os.mkdir(part, 0o755, dir_fd=here)
            below = os.open(part, flags, dir_fd=here)
        os.close(here)
        here = below
    return here


def _remove(parent, name):
    """Remove a file or link of that name; a folder of that name is an error of the system's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)


def _write_new(source, parent, name, mode, size):
    """Write one new file; where the disk is full, the system's error says so."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    file = os.open(name, flags, 0o600, dir_fd=parent)
    with os.fdopen(file, "wb") as out:
        while size > 0:
            data = _exactly(source, min(size, _CHUNK_BYTES))
            out.write(data)
            size -= len(data)
        os.fchmod(out.fileno(), mode & 0o777)


def _exactly(source, size) -> bytes:
    """Read that many bytes."""
    data = source.read(size)
    if len(data) != size:
        raise TransferError("the stream ends too early")
    return data


def _read_file(path):
    """Program: one regular file to stdout; links to it are followed (inside)."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise TransferError(f"{path} is not a regular file")
    _copy_exactly(file, found.st_size, sys.stdout.buffer)


def _write_file(path, mode):
    """Program: stdin to a new file at `path`; a link or pipe of that name is replaced."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    name = os.path.basename(path)
    _remove(parent, name)
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
    with os.fdopen(file, "wb") as out:
        while data := sys.stdin.buffer.read(_CHUNK_BYTES):
            out.write(data)
        os.fchmod(out.fileno(), mode & 0o777)


def main(action, path, *rest) -> None:
    """The program inside; a fault is one line on stderr and exit code 1."""
    os.umask(0o022)
    try:
        if action == "pack":
            pack(path, sys.stdout.buffer)
        elif action == "unpack":
            os.makedirs(path, exist_ok=True)
            unpack(sys.stdin.buffer, path, links=True, max_bytes=1 << 62)
        elif action == "read":
            _read_file(path)
        else:
            _write_file(path, int(rest[0]))
        sys.stdout.buffer.flush()
    except (OSError, TransferError) as fault:
        sys.exit(str(fault))


if __name__ == "__main__":
    main(*sys.argv[1:])
