"""TPU chips and pods: what a device holds and does, and devices of pods that are not there.

A device is what jax calls one: a chip, but on tpu7x half of one.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax

_GB, _T = 1e9, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a TPU generation."""

    name: str
    hbm_bytes: int  # that the compiler gives a program
    flops: float  # bfloat16, dense, a second
    hbm_bytes_per_s: float
    link_bytes_per_s: float  # to all neighbours together, in one direction
    host_bytes: int  # of the host's memory, a device's share
    host_link_bytes_per_s: float  # to the host's memory, in one direction


# hbm_bytes: what libtpu 0.0.50 names when a program does not fit. The rest: Google's pages of each
# generation (cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x: peak compute, HBM bandwidth,
# interchip interconnect bandwidth halved to one direction; tpu7x a chiplet, half a chip), and the
# memory of the hosts of their machine types over the devices of a host. The link to the host: "How
# to scale your model", part 2 (PCIe, 16 GB/s, 32 on v6e; for tpu7x the lower is taken).
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v5e", int(15.75 * 2**30), 197 * _T, 819 * _GB, 200 * _GB, int(24e9), 16 * _GB),
        Chip("v5p", int(95.73 * 2**30), 459 * _T, 2765 * _GB, 600 * _GB, int(112e9), 16 * _GB),
        Chip("v6e", int(31.24 * 2**30), 918 * _T, 1640 * _GB, 448 * _GB, int(180e9), 32 * _GB),
        Chip("tpu7x", int(94.74 * 2**30), 1153.5 * _T, 3690 * _GB, 600 * _GB, int(120e9), 16 * _GB),
    )
}

# Read by libtpu when it is asked for a topology: ask no metadata server, let several processes load
# it, and do not look for the host's own chips, for which it is told to be one that has some.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# Pods to try: (topology, devices). Others of the same form are taken too.
KNOWN_TOPOLOGIES: dict[str, tuple[str, ...]] = {
    "v5e": ("v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
    "v5p": ("v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8",
            "v5p:4x8x8"),
    "v6e": ("v6e:2x4", "v6e:4x4", "v6e:4x8", "v6e:8x8", "v6e:8x16", "v6e:16x16"),
    "tpu7x": ("tpu7x:2x2x1", "tpu7x:2x2x2", "tpu7x:2x2x4", "tpu7x:2x4x4", "tpu7x:4x4x4"),
}  # fmt: skip


def chip_of(topology: str) -> Chip:
    """The device of a topology such as "v5p:2x4x4".

    Raises:
        ValueError: an unknown generation.
    """
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise ValueError(
            f"--topology={topology}: the generation must be one of {', '.join(CHIPS)}, as in "
            "v5p:2x4x4; --topology=list shows what is known"
        )
    return CHIPS[generation]


def devices_of(topology: str) -> list[Any]:
    """The devices of a topology, which need not be there: they can be compiled for.

    Raises:
        ValueError: libtpu is not installed, or knows no such topology.
    """
    from jax.experimental import topologies

    chip_of(topology)
    try:
        with _told_to_be_a_tpu_host():
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={topology}: libtpu knows no such topology ({str(error).splitlines()[0]}); "
            "--topology=list shows what is known"
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"--topology={topology} needs libtpu, the TPU compiler, which runs without a TPU: "
            f"uv sync --extra tpu ({error})"
        ) from error
    return list(described.devices)


@contextlib.contextmanager
def _told_to_be_a_tpu_host() -> Iterator[None]:
    """The variables libtpu reads, and afterwards none: other programs would believe them."""
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
