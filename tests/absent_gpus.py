"""GPUs that are not there, to trace, lower and compile for."""

import contextlib
import importlib.util
from collections.abc import Iterator
from unittest import mock

import jax
import jax.extend
from jax.experimental import topologies

from jaxterm import sharding

CAN_COMPILE = importlib.util.find_spec("jax_cuda13_plugin") is not None

# As XLA's deviceless compiler wants an H100 described (figures: openxla/xla#25919).
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  l2_cache_size: 52428800  memory_bandwidth: 3352320000000  device_memory_size: 84929347584
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 19 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def h100() -> list[jax.Device]:
    """One, known to the compiler of the extra `cuda` alone."""
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x1", target_config=_H100
    )
    return list(described.devices)


@contextlib.contextmanager
def lowering(device_kind: str, capability: float) -> Iterator[None]:
    """Tokamax's kernels are those for such a device."""
    from tokamax._src import config as tokamax_config
    from tokamax._src import gpu_utils

    cpu = jax.devices()[0]
    there = mock.Mock(wraps=cpu, platform=cpu.platform, device_kind=device_kind, core_count=132)
    with (
        tokamax_config.cross_compile(True),
        mock.patch.object(gpu_utils, "_compute_capability", lambda device=None: capability),
        mock.patch.object(jax.extend.backend, "get_default_device", lambda: there),
    ):
        yield


@contextlib.contextmanager
def abstract_mesh(device_kind: str, capability: float, context: int = 1) -> Iterator[None]:
    """A mesh of such devices, cut over `context`, to trace and lower for."""
    device = jax.sharding.AbstractDevice(device_kind=device_kind, num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh(
        tuple(context if axis == "context" else 1 for axis in sharding.AXES), sharding.AXES,
        (jax.sharding.AxisType.Auto,) * len(sharding.AXES), abstract_device=device,
    )  # fmt: skip
    with lowering(device_kind, capability), jax.sharding.use_abstract_mesh(mesh):
        yield
