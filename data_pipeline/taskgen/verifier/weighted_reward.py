"""Runs test_outputs.py with pytest and writes the reward: a copy lies in the tests/ of each task.

reward.txt is the sum of the weights of the tests that passed over the sum of all; tests.json says
how each ended. Both are written again after every test, so a run that is cut off counts what passed
until then. It runs in any image: Python >= 3.8, pytest >= 6.2, nothing else.
"""

import collections
import json
import math
import os
import pathlib
import sys

_TESTS = pathlib.Path(__file__).resolve().parent
_OFFERED = "/opt/verifier"  # where the local sandbox has pytest; an image has its own
_ARGUMENTS = (
    str(_TESTS / "test_outputs.py"),
    "-q", "-ra", "--tb=short", "--color=no", "-p", "no:cacheprovider",
    # No settings, plugins or conftest.py that somebody put on the way to the tests.
    "-c", os.devnull, f"--rootdir={_TESTS}", "--noconftest", "--import-mode=importlib",
)  # fmt: skip


class Reward:
    """A pytest plugin that keeps the two files up to date."""

    def __init__(self, folder, weights):
        """Write to `folder`; functions without a weight in `weights` weigh 1."""
        self._folder = pathlib.Path(folder)
        self._weight_of = weights
        self._tests = {}  # node id -> {name, outcome, weight}
        self._problem = ""

    def pytest_collectreport(self, report):
        """Remember why the tests could not be read."""
        if report.failed:
            self._problem = str(report.longrepr)[-2000:]

    def pytest_collection_finish(self, session):
        """Take in the tests; the cases of a parametrized one share its weight equally."""
        functions = {item.nodeid: _function(item.nodeid) for item in session.items}
        num_cases = collections.Counter(functions.values())
        for node_id, function in functions.items():
            weight = self._weight_of.get(function, self._weight_of.get(function.split("::")[-1], 1))
            self._tests[node_id] = {
                "name": node_id.partition("::")[2],
                "outcome": "not run",
                "weight": weight / num_cases[function],
            }
        self.write()

    def pytest_runtest_logreport(self, report):
        """A test passes where its setup, itself and its teardown do; skipped is not passed."""
        test = self._tests.get(report.nodeid)
        if test is None:
            return
        if report.failed or report.skipped:
            test["outcome"] = "failed" if report.failed else "skipped"
        elif report.when == "call" and test["outcome"] == "not run":
            test["outcome"] = "passed"
        if report.when == "teardown":
            self.write()

    def write(self):
        """Write both files, each whole or not at all."""
        tests = list(self._tests.values())
        total = math.fsum(test["weight"] for test in tests)
        passed = math.fsum(test["weight"] for test in tests if test["outcome"] == "passed")
        reward = passed / total if total else 0.0
        told = {"reward": reward, "tests": tests, "problem": self._problem}
        self._put("tests.json", json.dumps(told, indent=1) + "\n")
        self._put("reward.txt", "%r\n" % reward)  # noqa: UP031

    def _put(self, name, text):
        temporary = self._folder / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self._folder / name)


def _function(node_id):
    """`test_outputs.py::TestX::test_y[case]` -> `TestX::test_y`."""
    return node_id.partition("::")[2].partition("[")[0]


def main(folder):
    """Run the tests; returns pytest's exit status."""
    weights_file = _TESTS / "weights.json"
    weights = json.loads(weights_file.read_text("utf-8")) if weights_file.exists() else {}
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(name, None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if os.path.isdir(_OFFERED):
        sys.path.insert(0, _OFFERED)
    reward = Reward(folder, weights)
    reward.write()
    import pytest

    return int(pytest.main(list(_ARGUMENTS), plugins=[reward]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
