"""The search for settings finds what trying all of them finds, with a fraction of the compiles."""

import dataclasses
import json
import random
from typing import Any

import make_preflight_goldens as goldens_maker
import pytest

from jaxterm.preflight import analysis, chips, memory_plans, search

# Of a 14B block, as jaxterm/remat.py tells them: bytes kept, and the share of a step that computing
# the tensor again takes.
COSTS = {
    "q": (336, 0.02), "k": (67, 0.004), "v": (67, 0.004), "attention": (341, 0.11),
    "middle": (336, 0.02), "gate": (1141, 0.05), "up": (1141, 0.05), "stream": (336, 0.0),
}  # fmt: skip
_FIELDS: Any = {each.name: 0 for each in dataclasses.fields(analysis.Preflight)}
NOTHING = analysis.Preflight(**_FIELDS)
ALL_KEPT = sum(num_bytes for num_bytes, _ in COSTS.values())


@dataclasses.dataclass(frozen=True)
class Pod:
    """What a step costs, in closed form; a mesh that cuts rows keeps less and sends more."""

    capacity: float
    always: float  # bytes, whatever is kept
    links: float  # seconds on a mesh of fsdp alone
    host_link: float

    def tried(self, mesh: search.Mesh, plan: search.MemoryPlan) -> search.Tried:
        return search.Tried(f"{mesh} {plan}", mesh, plan, (), self.measure(mesh, plan), "")

    def measure(self, mesh: search.Mesh, plan: search.MemoryPlan) -> analysis.Preflight:
        cut, rows = mesh.context * mesh.tensor, mesh.rows_at_a_time
        kept = {*plan.kept, "stream"} - {*plan.offload}
        memory = self.always + rows / cut * sum(COSTS[each][0] for each in kept)
        memory += 300 * rows / plan.mlp_chunks + rows * plan.loss_chunk_tokens / 10
        memory += 500 * (plan.state_memory == "device")
        links = self.links * cut / rows
        passes = self.least_seconds(plan)
        return dataclasses.replace(
            NOTHING,
            peak_bytes=int(memory),
            capacity_bytes=int(self.capacity),
            host_capacity_bytes=1,
            compute_seconds=passes,
            collective_seconds=links,
            step_seconds=max(passes, links),
        )

    def least(self, mesh: search.Mesh, plan: search.MemoryPlan) -> float:
        del mesh
        return self.least_seconds(plan)

    def least_seconds(self, plan: search.MemoryPlan) -> float:
        again = sum(share for each, (_, share) in COSTS.items() if each not in plan.kept)
        host = sum(COSTS[each][0] for each in plan.offload) / self.host_link
        return max(1 / 3, host) + max(2 / 3 + again, host)


def meshes() -> list[search.Mesh]:
    """As candidate_meshes orders them, of 16 devices and 128 rows."""
    cuts = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4))
    return [
        search.Mesh(16 // (context * tensor), context, tensor, 8 * context * tensor // rows, rows)
        for context, tensor in cuts
        for rows in (1, 2, 4)
    ]


def first_with_room(pod: Pod, mesh: search.Mesh) -> search.Tried:
    """By trying one after another, the last where none has room."""
    tried = [pod.tried(mesh, plan) for plan in search.MEMORY_PLANS]
    return next((each for each in tried if each.has_room), tried[-1])


@pytest.mark.parametrize("seed", range(200))
def test_a_search_finds_what_trying_all_finds(seed):
    rng = random.Random(seed)
    pod = Pod(
        capacity=rng.uniform(0.2, 2.5) * ALL_KEPT,
        always=rng.uniform(0.0, 0.3) * ALL_KEPT,
        links=rng.choice((0.1, 0.3, 0.9, 1.3)),
        host_link=rng.choice((1e3, 1e4)),
    )
    asked = []

    def compile_one(mesh, plan):
        asked.append((mesh, plan))
        return pod.tried(mesh, plan)

    best = search.explore(meshes(), compile_one, pod.least)[0]
    # On each mesh the first plan with room is what is wanted: a later one may be as good as it.
    every = [first_with_room(pod, mesh) for mesh in meshes()]
    wanted = min(every, key=lambda each: each.rank)
    assert best.has_room == wanted.has_room
    worth_a_compile = 1.02  # times the time of the best
    assert best.rank[1] <= worth_a_compile * wanted.rank[1] or not wanted.has_room
    assert len(set(asked)) == len(asked) <= len(meshes()) * len(search.MEMORY_PLANS) / 5


def test_where_the_best_is_known_little_is_compiled():
    pod = Pod(capacity=1.6 * ALL_KEPT, always=0.1 * ALL_KEPT, links=0.1, host_link=1e3)
    asked = []

    def compile_one(mesh, plan):
        asked.append((mesh, plan))
        return pod.tried(mesh, plan)

    best = search.explore(meshes(), compile_one, pod.least)[0]
    num_asked = len(asked)
    asked.clear()
    first = (best.mesh, best.plan)
    assert search.explore(meshes(), compile_one, pod.least, first)[0] == best
    assert asked[0] == first and len(asked) < num_asked


def test_each_plan_keeps_less_on_the_device_than_the_one_before():
    pod = Pod(capacity=1, always=0, links=0, host_link=1)
    peaks = [pod.measure(meshes()[0], plan).peak_bytes for plan in search.MEMORY_PLANS]
    assert peaks == sorted(peaks, reverse=True)


def test_the_least_time_of_a_plan_is_what_compiled_steps_compute():
    """The closed form against the FLOPs of the compiled programs."""
    known = json.loads(goldens_maker.PATH.read_text())
    for name, run, topology in goldens_maker.published():
        chip, compute = chips.chip_of(topology), run.compute
        plan = memory_plans.MemoryPlan(compute.remat, compute.remat_keep)
        least = memory_plans.least_seconds(run, plan, chip, known[name]["num_devices"])
        assert least == pytest.approx(known[name]["step_flops"] / chip.flops, rel=0.005), name


def test_what_the_host_cannot_hold_has_no_room():
    pod = Pod(capacity=1e9, always=0, links=0, host_link=1)
    found = pod.measure(meshes()[0], search.MEMORY_PLANS[0])
    assert search.Tried("", meshes()[0], search.MEMORY_PLANS[0], (), found, "").has_room
    found = dataclasses.replace(found, host_bytes=100, host_capacity_bytes=100)
    assert not search.Tried("", meshes()[0], search.MEMORY_PLANS[0], (), found, "").has_room


def test_a_pod_on_which_nothing_fits_is_ranked_all_the_same():
    pod = Pod(capacity=1, always=100, links=0, host_link=1)
    ranking = search.explore(meshes(), pod.tried, pod.least)
    assert ranking and not any(each.has_room for each in ranking)
