"""The system calls that commands in the sandbox do not get, as a filter for bubblewrap.

User namespaces, capabilities and the root view do the main work; the filter closes what they leave
open: kernel keyrings (the caller's session keys are inherited), sockets that no network namespace
holds (AF_VSOCK reaches the hypervisor), memory that neither a process nor the disk is charged with
(memfd, large System V segments), cores beyond those given, typing into the caller's terminal, and
young interfaces that containers commonly close too.  Numbers: the kernel's syscall tables.
"""

import errno
import platform
import struct

_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _RETURN = 0x20, 0x15, 0x25, 0x06  # classic BPF opcodes
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_TERMINAL_REQUESTS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_MAX_SEGMENT_BYTES = 64 << 10  # times the kernel's 4096 segments: 256 MiB at most
_MAX_SEMAPHORES = 64

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
}
# name: number on x86_64, on aarch64, which argument, its largest value
_BOUNDED = {"shmget": (29, 194, 1, _MAX_SEGMENT_BYTES), "semget": (64, 190, 1, _MAX_SEMAPHORES)}
_SOCKET, _IOCTL = (41, 198), (16, 29)


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


def _bounded(argument: int, most: int) -> list[bytes]:
    """Refuse an argument above `most`."""
    return [
        _high(argument),
        _step(_JUMP_GREATER, 0, if_true=2),
        _low(argument),
        _step(_JUMP_GREATER, most, if_false=1),
        _refuse(errno.ENOSPC),
        _step(_RETURN, _ALLOW),
    ]


def _one_of(
    argument: int, values: tuple[int, ...], *, then: bytes, otherwise: bytes
) -> list[bytes]:
    """Compare the low half of an argument with several values."""
    tests = [
        _step(_JUMP_EQUAL, value, if_true=len(values) - place) for place, value in enumerate(values)
    ]
    return [_low(argument), *tests, otherwise, then]


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
    wrong_family = _refuse(errno.EAFNOSUPPORT)
    steps += _on_call(_SOCKET[which], _one_of(0, _FAMILIES, then=allow, otherwise=wrong_family))
    wrong_request = _refuse(errno.EPERM)
    steps += _on_call(
        _IOCTL[which], _one_of(1, _TERMINAL_REQUESTS, then=wrong_request, otherwise=allow)
    )
    return b"".join([*steps, allow])
