"""Settings every test runs under: eight CPU devices, no silent broadcasting, goldens on request."""

import os
import pathlib
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)

# Grain's workers read an absl flag and refuse outside an absl app.
flags.FLAGS.mark_as_parsed()


# A file is run by one process: begun last, a long one would be waited for.
_LONGEST_FIRST = (
    "test_train.py", "test_lora_run.py", "test_lora.py", "test_recorder_command.py",
    "test_train_refusals.py", "test_readme.py", "test_compile.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]):
    order = {name: i for i, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_addoption(parser: pytest.Parser):
    parser.addoption(
        "--update-goldens",
        action="store_true",
        help="write tests/goldens/ from what the tests see (numbers need the `oracle` group)",
    )


@pytest.fixture(scope="session")
def update_goldens(request) -> bool:
    return request.config.getoption("--update-goldens")


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    return pathlib.Path(__file__).parent / "goldens"


@pytest.fixture
def expect_golden(update_goldens, goldens) -> Callable[[str, str], None]:
    """Compares a text with tests/goldens/NAME, or writes it there under --update-goldens."""

    def expect(name: str, text: str) -> None:
        if update_goldens:
            (goldens / name).write_text(text)
        assert text == (goldens / name).read_text()

    return expect


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data beside the checkout; tests that need it skip without it."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.name}/ beside the checkout")
    return folder
