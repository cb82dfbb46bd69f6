"""Laws of the stages of a curriculum: who comes, how often, in which order."""

from collections import Counter

import numpy as np
import pytest

from data_pipeline.planning import curriculum, stage_specs

NAMES = ("a", "b", "c")


def examples(seed=0, num=300, difficulties=("",)):
    rng = np.random.default_rng(seed)
    return curriculum.Examples(
        num_tokens=rng.integers(1, 1000, num),
        num_turns=rng.integers(2, 30, num),
        sources=rng.choice(NAMES, num, p=(0.6, 0.3, 0.1)),
        difficulties=rng.choice(difficulties, num),
        chosen=np.arange(num),
    )


def only_pass(spec, given, **kwargs):
    [stage] = curriculum.make_stages([spec], given, seed=1, **kwargs)
    [order] = stage.passes
    return order


def tokens_by_source(given, order):
    return {n: given.num_tokens[order][given.sources[order] == n].sum() for n in NAMES}


@pytest.mark.parametrize("name", ["mixed", "in_order", "short_to_long", "easy_to_hard"])
def test_whole_epochs_are_permutations(name):
    given = examples()
    [stage] = curriculum.make_stages(stage_specs.presets(name, epochs=3), given, seed=1)
    assert len(stage.passes) == 3
    for order in stage.passes:
        assert sorted(order) == list(range(300))
    if name == "mixed":
        assert any(
            (one != two).any() for one, two in zip(stage.passes, stage.passes[1:], strict=False)
        )


@pytest.mark.parametrize("epochs", [0.25, 1.5, 2.1])
def test_a_part_of_an_epoch_is_that_share_of_each_source(epochs):
    given = examples()
    [stage] = curriculum.make_stages(stage_specs.presets("mixed", epochs=epochs), given, seed=1)
    drawn = np.concatenate(stage.passes)
    assert set(Counter(drawn.tolist()).values()) <= {int(epochs), int(epochs) + 1}
    whole, found = tokens_by_source(given, given.chosen), tokens_by_source(given, drawn)
    for name in NAMES:
        assert abs(found[name] - epochs * whole[name]) <= 500  # half of the longest example


@pytest.mark.parametrize("by", ["length", "turns", "difficulty"])
def test_easy_to_hard_ascends_and_ties_keep_their_order(by):
    ranks = ("easy", "medium", "hard")
    given = examples(difficulties=ranks)
    spec = stage_specs.StageSpec(name="s", order="easy_to_hard", by=by)
    order = only_pass(spec, given, difficulty_order=ranks)
    keys = {
        "length": given.num_tokens, "turns": given.num_turns,
        "difficulty": np.array([ranks.index(d) for d in given.difficulties]),
    }[by]  # fmt: skip
    expected = sorted(range(300), key=lambda i: (keys[i], i))
    assert order.tolist() == expected


def test_an_unknown_difficulty_is_named():
    given = examples(difficulties=("easy", "brutal", ""))
    spec = stage_specs.StageSpec(name="s", order="easy_to_hard", by="difficulty")
    with pytest.raises(ValueError, match=r"'s': the difficulties \['', 'brutal'\] are not in"):
        only_pass(spec, given, difficulty_order=("easy", "hard"))


@pytest.mark.parametrize("tokens", [5_000, 400_000])
def test_a_budget_with_weights_is_kept_everywhere(tokens):
    given = examples()
    weights = {"a": 1, "b": 1, "c": 2}
    order = only_pass(stage_specs.StageSpec(name="s", tokens=tokens, weights=weights), given)
    for name, found in tokens_by_source(given, order).items():
        assert abs(found - tokens * weights[name] / 4) <= 500
    # Each source is spread evenly: at every tenth of the stage so is what has come of it.
    ends = np.cumsum(given.num_tokens[order])
    for share in np.arange(1, 10) / 10:
        come = tokens_by_source(given, order[: np.searchsorted(ends, share * ends[-1])])
        for name, found in come.items():
            assert abs(found - share * tokens * weights[name] / 4) <= 2500
    # No example comes once more before all of its source have come as often.
    for name in NAMES:
        counts: Counter = Counter()
        own = np.flatnonzero(given.sources == name).tolist()
        for example in (e for e in order.tolist() if given.sources[e] == name):
            counts[example] += 1
            assert counts[example] - min(counts[e] for e in own) <= 1


def test_temperature_is_t5s():
    given = examples()
    spec = stage_specs.StageSpec(name="s", tokens=1_000_000, temperature=2.0)
    found = tokens_by_source(given, only_pass(spec, given))
    roots = {n: size**0.5 for n, size in tokens_by_source(given, given.chosen).items()}
    for name in NAMES:
        assert abs(found[name] - 1_000_000 * roots[name] / sum(roots.values())) <= 500


def test_epochs_by_source():
    given = examples()
    spec = stage_specs.StageSpec(name="s", epochs={"a": 0, "b": 1, "c": 2})
    counts = Counter(only_pass(spec, given).tolist())
    for example, source in enumerate(given.sources):
        assert counts[example] == {"a": 0, "b": 1, "c": 2}[source]
    bad = stage_specs.StageSpec(name="s", epochs={"a": 1})
    with pytest.raises(ValueError, match=r"'s': epochs are given for \['a'\], and its sources are"):
        only_pass(bad, given)


@pytest.mark.parametrize("epochs", [1, 2])
def test_replay_adds_a_share_of_what_came_before(epochs):
    given = examples()
    first = stage_specs.StageSpec(name="first", sources=("a",))
    second = stage_specs.StageSpec(name="second", sources=("b", "c"), replay=0.2, epochs=epochs)
    stages = curriculum.make_stages([first, second], given, seed=1)
    assert set(given.sources[stages[0].passes[0]]) == {"a"}
    assert len(stages[1].passes) == epochs
    drawn = np.concatenate(stages[1].passes)
    found = tokens_by_source(given, drawn)
    assert abs(found["a"] - 0.2 * (found["b"] + found["c"])) <= 500
    replayed = [e for e in drawn.tolist() if given.sources[e] == "a"]
    assert len(set(replayed)) == len(replayed)
    # ... evenly: each half of a pass holds about half of it.
    order = stages[1].passes[0]
    of_half = [tokens_by_source(given, half)["a"] for half in np.array_split(order, 2)]
    assert 0.6 < of_half[0] / of_half[1] < 1.7


def test_replay_takes_only_what_was_trained():
    given = examples()
    first = stage_specs.StageSpec(name="first", epochs={"a": 0.2, "b": 0, "c": 1})
    second = stage_specs.StageSpec(name="second", sources=("a",), replay=5.0)
    one, two = curriculum.make_stages([first, second], given, seed=1)
    trained = set(one.passes[0].tolist())
    replayed = [e for e in two.passes[0].tolist() if given.sources[e] != "a"]
    assert replayed and set(replayed) <= trained


def test_an_absurd_repetition_is_named():
    given = examples()
    spec = stage_specs.StageSpec(name="s", tokens=10**12, weights={"a": 1, "b": 1, "c": 1})
    with pytest.raises(ValueError, match=r"'s' would pass [\d,]+ times over the source 'a'"):
        only_pass(spec, given)


def test_two_stages_part_the_sources():
    given = examples()
    specs = stage_specs.presets("two_stage", epochs=1, first_sources=("c",), sources=NAMES)
    first, second = curriculum.make_stages(specs, given, seed=1)
    assert set(given.sources[first.passes[0]]) == {"c"}
    assert sorted([*first.passes[0], *second.passes[0]]) == list(range(300))
    for bad in ((), ("z",), NAMES):
        with pytest.raises(ValueError, match="must name some, not all, of the sources"):
            stage_specs.presets("two_stage", epochs=1, first_sources=bad, sources=NAMES)


def test_a_subsample_is_a_seeded_share_of_each_source():
    given = examples()
    part = curriculum.subsample(given, 50_000, seed=3)
    share = 50_000 / given.num_tokens.sum()
    whole, found = tokens_by_source(given, given.chosen), tokens_by_source(given, part.chosen)
    for name in NAMES:
        assert abs(found[name] - share * whole[name]) <= 500
    assert part.chosen.tolist() == curriculum.subsample(given, 50_000, seed=3).chosen.tolist()
    assert part.chosen.tolist() != curriculum.subsample(given, 50_000, seed=4).chosen.tolist()
    order = only_pass(stage_specs.StageSpec(name="s"), part)
    assert sorted(order) == part.chosen.tolist()
    assert curriculum.subsample(given, 10**9, seed=3) is given
    assert set(given.sources[curriculum.subsample(given, 1, seed=3).chosen]) == set(NAMES)


def test_unknown_sources_are_named():
    with pytest.raises(ValueError, match=r"stage 's': sources=\['z'\] are not among"):
        only_pass(stage_specs.StageSpec(name="s", sources=("a", "z")), examples())
