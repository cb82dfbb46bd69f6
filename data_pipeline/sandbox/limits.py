"""How much one sandbox may take, and which kernel limit holds which part of it."""

import dataclasses

_MIB = 1 << 20
LEAST_MEMORY_MB = 64  # the supervisor and one interpreter need about 30
_MAX_OPEN_FILES = 1024  # of a process; each may hold a buffer of the kernel's (`buffers.py`)
_MAX_SHARED_MEMORY_BYTES = 64 * _MIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one sandbox may take of the machine.

    The writable disk is a tmpfs, so it is memory: processes and disk together take `memory_mb` at
    most, and the disk is full at the smaller of `storage_mb` and `memory_mb`.

    Attributes:
        cpus: cores that its processes are bound to.
        memory_mb: MiB of processes and disk together.
        storage_mb: MiB of the writable disk.
        max_processes: processes and threads at the same time.
        lifetime_s: seconds from start to end, whatever is running.
    """

    cpus: int = 1
    memory_mb: int = 2048
    storage_mb: int = 10240
    max_processes: int = 256
    lifetime_s: float

    def __post_init__(self):
        rules = (
            ("cpus", self.cpus, 1),
            ("memory_mb", self.memory_mb, LEAST_MEMORY_MB),
            ("storage_mb", self.storage_mb, 1),
            ("max_processes", self.max_processes, 8),
            ("lifetime_s", self.lifetime_s, 1),
        )
        faults = [f"{name}={value} must be {least} or more" for name, value, least in rules
                  if not value >= least]  # fmt: skip
        if faults:
            raise ValueError(f"sandbox limits: {'; '.join(faults)}")

    @property
    def memory_bytes(self) -> int:
        """Bytes of processes and disk together."""
        return self.memory_mb * _MIB

    @property
    def disk_bytes(self) -> int:
        """Bytes of the writable disk."""
        return min(self.storage_mb, self.memory_mb) * _MIB

    @property
    def shared_memory_bytes(self) -> int:
        """Bytes of /dev/shm, a disk of its own that counts as memory too."""
        return min(_MAX_SHARED_MEMORY_BYTES, self.memory_bytes // 2)

    def of_a_process(self) -> dict[str, int]:
        """Kernel limits (RLIMIT_*) of each command; no command can raise them again.

        The kernel counts NPROC by user and user namespace (Linux 5.14 and newer), so it is this
        sandbox's own.  DATA makes a single greedy process fail by itself with ENOMEM; the sum of
        all of them is the watchdog's.
        """
        return {
            "NPROC": self.max_processes,
            "DATA": self.memory_bytes,
            "NOFILE": _MAX_OPEN_FILES,
            "CORE": 0,
        }
