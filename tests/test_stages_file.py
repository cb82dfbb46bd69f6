"""The TOML file of a curriculum of one's own."""

import textwrap

import pytest

from data_pipeline.planning import stage_specs, stages_file


def read(tmp_path, text):
    path = tmp_path / "stages.toml"
    path.write_text(textwrap.dedent(text))
    return stages_file.read(path)


def test_the_example_of_the_documentation(tmp_path):
    shown = stages_file.__doc__.split("reads.\n")[1].split("`temperature")[0]
    first, second, third = read(tmp_path, shown)
    assert first == stage_specs.StageSpec(
        name="adapters", sources=("math", "code", "swe"), epochs=1
    )
    assert second == stage_specs.StageSpec(
        name="synthetic", sources=("easy", "medium"), tokens=2_000_000_000,
        weights={"easy": 1, "medium": 3}, replay=0.1,
    )  # fmt: skip
    assert third == stage_specs.StageSpec(
        name="long", row_length=65_536, global_batch_size=64, epochs=0.5, order="easy_to_hard",
        by="turns",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "must hold tables"),
        ("[[stage]]\n[other]", r"must hold tables .* it has \['other', 'stage'\]"),
        ("stage = 3", "must hold tables"),
        ("[[stage]", "cannot be read"),
        ("[[stage]]\nepoch = 1", "stage 0: unknown setting 'epoch'"),
        ("[[stage]]\nepochs = true", "stage 0: epochs=True must be of type int or float or dict"),
        ("[[stage]]\n[[stage]]\nepochs = 0", "stage 1: epochs=0 must be positive"),
        ("[[stage]]\ntokens = -3", "tokens=-3 must be positive"),
        ("[[stage]]\norder = 'up'", "order='up' must be one of shuffle, in_order, easy_to_hard"),
        ("[[stage]]\nsources = 'a'", "sources='a' must be of type list"),
        ("[[stage]]\nsources = [1]", r"sources=\[1\] must be names"),
        ("[[stage]]\n[[stage]]\nreplay = -0.1", "replay=-0.1 must not be negative"),
        ("[[stage]]\nreplay = 0.1", "stage 0: replay has no earlier stage to draw from"),
        ("[stage]\nepochs = 1", "in double brackets"),
        ("stage = [1]", "in double brackets"),
        ("[[stage]]\nrow_length = 1", "row_length=1 must be at least 2"),
        ("[[stage]]\ntemperature = 0.001", "temperature=0.001 must be at least 1"),
        ("[[stage]]\nepochs = inf", "epochs=inf must be at most"),
        ("[[stage]]\nepochs = nan", "epochs=nan must be at most"),
        ("[[stage]]\nweights = {a = nan}", r"weights.a=nan must be in \[0"),
        ("[[stage]]\nglobal_batch_size = 99999999999999999999", "must be at most"),
        ("[[stage]]\nby = 'turns'", "by='turns' is of order"),
        ("[[stage]]\ntokens = 3\nepochs = 1", "give tokens or epochs"),
        ("[[stage]]\ntemperature = 2\nweights = {a = 1}", "give one of weights, mixture"),
        ("[[stage]]\nweights = {a = 'x'}", "weights.a='x' must be a number"),
        ("[[stage]]\nweights = {a = 0}", "weights are all 0"),
        ("[[stage]]\nname = 'x'\n[[stage]]\nname = 'x'", "two stages have one name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, fault):
    with pytest.raises(ValueError, match=fault):
        read(tmp_path, text)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--stages=.*nothing\.toml: cannot be read"):
        stages_file.read(tmp_path / "nothing.toml")
