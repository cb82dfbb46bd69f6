"""An output folder that is replaced, with a kill before every single change of the file system."""

import itertools
import sys

import pytest

from data_pipeline import manifest

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Killed(BaseException):
    """Nothing that runs between `begin` and `complete` catches it: as good as a SIGKILL."""


class Killer:
    """While armed, kills before the change of the file system with this number."""

    def __init__(self):
        self.left = None
        sys.addaudithook(self._count)

    def _count(self, event, args):
        is_write = event == "open" and isinstance(args[1], str) and args[1][0] in "wx"
        if self.left is not None and (event in _CHANGES or is_write):
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Killed

    def kills(self, number, work):
        """Whether `work` came as far as that change."""
        self.left = number
        try:
            work()
        except Killed:
            return True
        finally:
            self.left = None
        return False


@pytest.fixture(scope="module")
def killer():
    return Killer()


def stage_of(output, setting):
    return manifest.Stage("plan", output, {"in": "00"}, {"setting": setting})


def work(output, setting, *, is_bad=False):
    """A stage that leaves a file and a folder."""
    stage = stage_of(output, setting)
    if manifest.begin(stage, overwrite=True):
        return
    with manifest.discard_on_error(stage):
        (output / "deep").mkdir(exist_ok=True)
        for name in ("a", "deep/b"):
            (output / f"{name}.tmp").write_text(setting)
            (output / f"{name}.tmp").replace(output / name)
        if is_bad:
            raise ValueError("bad input")
        manifest.complete(stage, {})


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if not p.is_dir()}


def is_any_whole(place, whole):
    """Whether some folder holds all of the old output, or of the new with its manifest."""
    for folder in place.iterdir():
        found = contents(folder)
        if "manifest.json" in found:
            found.pop("unfinished.json", None)
        if found in (whole["old"], whole["new"]):
            return True
    return False


@pytest.fixture
def whole(tmp_path):
    """What each setting leaves."""
    wholes = {}
    for setting in ("old", "new", "other"):
        work(tmp_path / "whole" / setting, setting)
        wholes[setting] = contents(tmp_path / "whole" / setting)
    return wholes


@pytest.mark.parametrize("second_kill", [None, 0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("then", ["again", "bad", "other"])
def test_no_kill_loses_the_old_output(tmp_path, killer, whole, then, second_kill):
    for number in itertools.count():
        place = tmp_path / str(number)
        output = place / "out"
        work(output, "old")
        was_killed = killer.kills(number, lambda output=output: work(output, "new"))
        assert is_any_whole(place, whole), number
        if second_kill is not None:
            killer.kills(second_kill, lambda output=output: work(output, "new"))
            assert is_any_whole(place, whole), number
        if then == "bad" and not (output / "manifest.json").exists():
            with pytest.raises(ValueError, match="bad input"):
                work(output, "new", is_bad=True)
            assert contents(output) == whole["old"]
        elif then == "other":
            work(output, "other")
            assert contents(output) == whole["other"]
        else:
            work(output, "new")
            assert contents(output) == whole["new"]
        if not was_killed:
            break
        assert list(place.iterdir()) == [output]  # nothing is left beside it
    assert number > 10


def test_no_kill_while_a_bad_run_is_undone_loses_the_old_output(tmp_path, killer, whole):
    def fail(output):
        with pytest.raises(ValueError, match="bad input"):
            work(output, "new", is_bad=True)

    for number in itertools.count():
        place = tmp_path / str(number)
        work(place / "out", "old")
        was_killed = killer.kills(number, lambda place=place: fail(place / "out"))
        assert is_any_whole(place, whole), number
        work(place / "out", "old")
        assert contents(place / "out") == whole["old"]
        if not was_killed:
            break
    assert number > 10


def test_a_kill_at_the_very_start_is_no_obstacle(tmp_path, killer, whole):
    for number in itertools.count():
        output = tmp_path / str(number) / "out"
        was_killed = killer.kills(number, lambda output=output: work(output, "new"))
        work(output, "new")
        assert contents(output) == whole["new"]
        if not was_killed:
            break
    assert number > 5


def test_a_link_to_a_folder_stays_a_link(tmp_path, whole):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for setting in ("old", "new"):
        work(tmp_path / "out", setting)
        assert contents(tmp_path / "disk") == whole[setting]
    with pytest.raises(ValueError, match="bad input"):
        work(tmp_path / "out", "other", is_bad=True)
    assert contents(tmp_path / "disk") == whole["new"] and (tmp_path / "out").is_symlink()


def test_the_working_folder_is_not_replaced(tmp_path, whole, monkeypatch):
    work(tmp_path / "out", "old")
    monkeypatch.chdir(tmp_path / "out")
    with pytest.raises(ValueError, match="is the working folder, which cannot be replaced"):
        work(tmp_path / "out", "new")
    assert contents(tmp_path / "out") == whole["old"]


def test_discard_removes_only_its_own(tmp_path, whole):
    work(tmp_path / "out", "old")
    manifest.discard(tmp_path / "out", stage="tokenize")
    assert contents(tmp_path / "out") == whole["old"]
    manifest.discard(tmp_path / "out", stage="plan")
    manifest.discard(tmp_path / "out", stage="plan")
    assert not (tmp_path / "out").exists()
