"""Every task family: its check refuses the untouched folder, its solver earns the reward."""

import pathlib
import random
import re

import pytest
import sandboxes

from data_pipeline.recorder import isolation, record, session

# The parameters' names say where the shells run.
PARAMETERS = [
    pytest.param(one, id=f"{one.name}-{sandboxes.SANDBOX}", marks=sandboxes.needs_tools(one))
    for one in sandboxes.FAMILIES.values()
]
every_family = pytest.mark.parametrize("one", PARAMETERS)


def play(one, number, *, flaw, slip=False):
    how = session.Manner(flaw=flaw, slip=slip, thinks=True, stop_after=None, garble=None)
    return session.play(one, number, seed=3, sandbox=sandboxes.SANDBOX, manner=how)


@every_family
def test_the_untouched_folder_earns_less_than_one(one):
    for seed in range(2):
        task = one.make(random.Random(seed))
        with isolation.make_world(task.files, sandbox=sandboxes.SANDBOX) as world:
            assert 0.0 <= task.check(world) < 1.0


@every_family
def test_solved_sessions_earn_one_and_overlooked_mistakes_do_not(one):
    solved = [play(one, 0, flaw="none"), play(one, 1, flaw="recover", slip=True)]
    assert [row["reward"] for row in solved] == [1.0, 1.0]
    assert all(row["complete"] for row in solved)
    failed = play(one, 2, flaw="fail")
    assert failed["reward"] < 1.0 and failed["complete"]
    for row in (*solved, failed):
        assert 2 <= record.num_turns(row) <= 12
        assert record.num_chars(row) <= 1.15 * record.MAX_CHARS  # the recorder redraws longer ones


@every_family
def test_parameters_differ_and_are_fixed_by_the_random_source(one):
    tasks = [one.make(random.Random(seed)) for seed in (1, 2, 3, 1)]
    assert tasks[0].files == tasks[3].files and tasks[0].instruction == tasks[3].instruction
    assert len({str((sorted(t.files.items()), t.instruction)) for t in tasks[:3]}) >= 2


@every_family
def test_instructions_are_sentences_about_app(one):
    task = one.make(random.Random(4))
    assert "/app" in task.instruction and task.instruction.endswith(".")
    assert not re.search(r"  |\{|\bNone\b", task.instruction.replace("{0}", ""))
    assert task.brief and not task.brief.endswith(".")
    assert task.instruction.isascii()
    assert all(not pathlib.PurePath(name).is_absolute() for name in task.files)
