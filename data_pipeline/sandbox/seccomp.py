"""The system calls that commands in the sandbox do not get, as a filter for bubblewrap.

User namespaces, capabilities and the root view do the main work; the filter closes what they leave
open: kernel keyrings (the caller's session keys are inherited), sockets that no network namespace
holds (AF_VSOCK reaches the hypervisor), memory that neither a process nor the disk is charged with
(memfd, large System V segments, larger buffers of pipes and sockets), open files that no process
shows, cores beyond those given, typing into the caller's terminal, and young interfaces that
containers commonly close too.  Numbers: the kernel's syscall tables.
"""

import errno
import itertools
import platform
import struct
from collections.abc import Mapping

_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _RETURN, _AND = 0x20, 0x06, 0x54  # classic BPF opcodes
_JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT = 0x15, 0x25, 0x45
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_MPTCP = 262  # its sockets grow as TCP's do, but tell nobody
_TERMINAL_REQUESTS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_MAX_SEGMENT_BYTES = 64 << 10  # times the kernel's 4096 segments: 256 MiB at most
_MAX_SEMAPHORES = 64
_SET_PIPE_SIZE, _MAX_PIPE_BYTES = 1031, 64 << 10  # the default size
_SOL_SOCKET = 1
# What is answered to options of SOL_SOCKET.  The kernel itself gives less than was asked for by
# SO_SNDBUF and SO_RCVBUF without saying so: so does the filter.  Then SO_SNDBUFFORCE,
# SO_RCVBUFFORCE and SO_ZEROCOPY.
_SOCKET_OPTIONS = {7: 0, 8: 0, 32: errno.EPERM, 33: errno.EPERM, 60: errno.EOPNOTSUPP}
_CLONE_FILES, _CLONE_THREAD, _CLOSE_RANGE_UNSHARE = 0x400, 0x10000, 2

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: number on x86_64, on aarch64, errno
_REFUSED = {
    "keyctl": (250, 219, errno.EPERM),
    "add_key": (248, 217, errno.EPERM),
    "request_key": (249, 218, errno.EPERM),
    "bpf": (321, 280, errno.EPERM),
    "perf_event_open": (298, 241, errno.EPERM),
    "userfaultfd": (323, 282, errno.EPERM),
    "open_by_handle_at": (304, 265, errno.EPERM),
    "sched_setaffinity": (203, 122, errno.EPERM),
    "io_uring_setup": (425, 425, errno.ENOSYS),
    "io_uring_enter": (426, 426, errno.ENOSYS),
    "io_uring_register": (427, 427, errno.ENOSYS),
    "memfd_create": (319, 279, errno.ENOSYS),
    "memfd_secret": (447, 447, errno.ENOSYS),
    "msgget": (68, 186, errno.ENOSYS),
    "vmsplice": (278, 75, errno.ENOSYS),  # a pipe would hold huge pages that their owner let go
    "clone3": (435, 435, errno.ENOSYS),  # its flags cannot be seen; libraries fall back to clone
}
# name: number on x86_64, on aarch64, which argument, its largest value
_BOUNDED = {"shmget": (29, 194, 1, _MAX_SEGMENT_BYTES), "semget": (64, 190, 1, _MAX_SEMAPHORES)}
# name: number on x86_64, on aarch64, which argument, bits that it must not have
_WITHOUT_BITS = {
    "unshare": (272, 97, 0, _CLONE_FILES),
    "close_range": (436, 436, 2, _CLOSE_RANGE_UNSHARE),
}
_SOCKET, _IOCTL, _FCNTL, _SETSOCKOPT, _CLONE = (41, 198), (16, 29), (72, 25), (54, 208), (56, 220)


def _step(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; jumps count the instructions skipped."""
    return _INSTRUCTION.pack(code, if_true, if_false, value)


def _refuse(number: int) -> bytes:
    """End with an errno."""
    return _step(_RETURN, _ERRNO | number)


def _low(argument: int) -> bytes:
    """Load the low half of an argument (the machines here are little-endian)."""
    return _step(_LOAD, _FIRST_ARGUMENT + 8 * argument)


def _high(argument: int) -> bytes:
    return _step(_LOAD, _FIRST_ARGUMENT + 8 * argument + 4)


def _on_call(number: int, body: list[bytes]) -> list[bytes]:
    """`body`, which must return on every way, for one system call."""
    return [
        _step(_LOAD, _NUMBER),
        _step(_JUMP_EQUAL, number, if_false=len(body)),
        *body,
    ]


def _bounded(argument: int, most: int, *, fault: int = errno.ENOSPC) -> list[bytes]:
    """Refuse an argument above `most`."""
    return [
        _high(argument),
        _step(_JUMP_GREATER, 0, if_true=2),
        _low(argument),
        _step(_JUMP_GREATER, most, if_false=1),
        _refuse(fault),
        _step(_RETURN, _ALLOW),
    ]


def _choose(argument: int, ends: Mapping[int, bytes], *, otherwise: list[bytes]) -> list[bytes]:
    """The end that belongs to the value of the low half of an argument."""
    tests = [(_step(_JUMP_EQUAL, value, if_false=1), end) for value, end in ends.items()]
    return [_low(argument), *itertools.chain.from_iterable(tests), *otherwise]


def _only(argument: int, value: int, body: list[bytes]) -> list[bytes]:
    """`body` where the low half of an argument has this value; else the call is allowed."""
    return [
        _low(argument),
        _step(_JUMP_EQUAL, value, if_true=1),
        _step(_RETURN, _ALLOW),
        *body,
    ]


def _own_files() -> list[bytes]:
    """Refuse (of clone) a thread whose open files are not those of its process."""
    return [
        _low(0),
        _step(_AND, _CLONE_THREAD | _CLONE_FILES),
        _step(_JUMP_EQUAL, _CLONE_THREAD, if_false=1),
        _refuse(errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]


def _without(argument: int, bits: int) -> list[bytes]:
    """Refuse an argument that has one of the bits."""
    return [
        _low(argument),
        _step(_JUMP_ANY_BIT, bits, if_false=1),
        _refuse(errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]


def _bodies(allow: bytes) -> dict[tuple[int, int], list[bytes]]:
    """Numbers of a system call -> what is done about it, for those with rules of their own."""
    families = {family: allow for family in _FAMILIES}
    family = _choose(0, families, otherwise=[_refuse(errno.EAFNOSUPPORT)])
    requests = {request: _refuse(errno.EPERM) for request in _TERMINAL_REQUESTS}
    options = {option: _refuse(fault) for option, fault in _SOCKET_OPTIONS.items()}
    pipe_size = _bounded(2, _MAX_PIPE_BYTES, fault=errno.EPERM)
    return {
        _SOCKET: _choose(2, {_MPTCP: _refuse(errno.EPROTONOSUPPORT)}, otherwise=family),
        _IOCTL: _choose(1, requests, otherwise=[allow]),
        _FCNTL: _only(1, _SET_PIPE_SIZE, pipe_size),
        _SETSOCKOPT: _only(1, _SOL_SOCKET, _choose(2, options, otherwise=[allow])),
        _CLONE: _own_files(),
    }


def program(machine: str | None = None) -> bytes:
    """The filter's instructions for this machine.

    Raises:
        ValueError: for a machine whose system call numbers are not known here.
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCHITECTURES:
        known = ", ".join(_AUDIT_ARCHITECTURES)
        raise ValueError(f"the sandbox's system call filter knows {known}; this is {machine}")
    which = list(_AUDIT_ARCHITECTURES).index(machine)
    allow = _step(_RETURN, _ALLOW)
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_JUMP_EQUAL, _AUDIT_ARCHITECTURES[machine], if_true=1),
        _refuse(errno.ENOSYS),  # 32-bit programs have other numbers
    ]
    if machine == "x86_64":
        steps += [
            _step(_LOAD, _NUMBER),
            _step(_JUMP_GREATER, _X32_BIT - 1, if_false=1),
            _refuse(errno.ENOSYS),
        ]
    for row in _REFUSED.values():
        steps += _on_call(row[which], [_refuse(row[2])])
    for row in _BOUNDED.values():
        steps += _on_call(row[which], _bounded(row[2], row[3]))
    for row in _WITHOUT_BITS.values():
        steps += _on_call(row[which], _without(row[2], row[3]))
    for name, body in _bodies(allow).items():
        steps += _on_call(name[which], body)
    return b"".join([*steps, allow])
