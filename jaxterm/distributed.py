"""Several processes as one run: joining them, doing a thing once, stopping together.

Every process runs the same program. Process 0 writes what is written once (folders of the start,
metrics, summaries); the others wait for its word. A TPU pod, GKE, SLURM and Open MPI are
recognised by jax, which looks for more than a variable: TPU_WORKER_HOSTNAMES off a TPU is no pod.
Elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID.
"""

import itertools
import os
import signal
import types
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from jax._src.clusters import ClusterEnv  # jax names what it recognises nowhere else
from jax.experimental import multihost_utils

_UNSET = -1  # jax's own default of jax_num_cpu_devices

_DONE, _FAILED = "done", "failed"
_LONGEST_WORK_MS = 7 * 24 * 3600 * 1000
_calls_of_once = itertools.count()  # the same in all processes: they call in the same order


def start(num_cpu_devices: int = 1) -> None:
    """Join the other processes of the run, if the environment says that there are any.

    Args:
        num_cpu_devices: of this process where it computes on its CPU; JAX_NUM_CPU_DEVICES wins.
    """
    if jax.config.jax_num_cpu_devices == _UNSET and num_cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    if jax.distributed.is_initialized() or not _is_in_a_cluster():
        return
    num_processes, process_id = (
        int(os.environ[name]) if name in os.environ else None
        for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    )
    jax.distributed.initialize(num_processes=num_processes, process_id=process_id)


def _is_in_a_cluster() -> bool:
    """Whether jax.distributed would find a run to join: it takes its absence for an error."""
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return True
    recognised = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
    return any(kind.is_env_present() for kind in recognised)


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def once(name: str, work: Callable[[], None]) -> None:
    """Do `work` in process 0 while the others wait for its end; `name` says what it is.

    The word goes through jax's coordination service: a collective on the devices would give up
    after half an hour on CPUs, and tokenising a corpus takes longer.

    Raises:
        ValueError: in the other processes, when `work` raised in process 0, whatever it raised: all
            end at once instead of waiting for each other.
    """
    if jax.process_count() == 1:
        work()
        return
    key = f"jaxterm/once/{next(_calls_of_once)}/{name}"
    client = ocp.multihost.get_jax_distributed_client()
    if not is_first():
        if client.blocking_key_value_get(key, _LONGEST_WORK_MS) != _DONE:
            raise ValueError(f"{name} failed in process 0; see its output")
        return
    outcome = _FAILED
    try:
        work()
        outcome = _DONE
    finally:
        client.key_value_set(key, outcome)


class StopSignal:
    """Whether the run was asked to stop (SIGTERM, SIGINT), agreed on by all processes.

    On a preempted pod every process must save the same step: jax's coordination service makes them
    agree on one. In a single process a second signal ends it at once.
    """

    def __enter__(self) -> "StopSignal":
        self._received = False
        self._previous = {}
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def asked(self, step: int) -> bool:
        """Whether to save and stop now, after `step` steps."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True
        signal.signal(number, self._previous[number])
