"""What a task's tests say, read from their syntax tree; nothing of them runs."""

import ast
import dataclasses
import functools
import warnings
from collections.abc import Iterator

_LISTS = (ast.List, ast.Tuple, ast.Set, ast.Dict)
_TALK = ("fail", "print", "skip", "xfail")  # calls whose arguments only a reader sees
_WRITERS = (
    "write_text",
    "write_bytes",
    "write",
    "writelines",
    "copy",
    "copyfile",
    "dump",
    "to_csv",
)
HOLE = "{}"  # stands where a text is not known before it runs


@dataclasses.dataclass(frozen=True)
class TestsCode:
    """A parsed test file.

    Attributes:
        functions: the tests that pytest will find, `test_x` or `TestY::test_x`, in their order.
        texts: the strings that take part in the tests, with HOLE where they go on with a value; no
            docstring, and no message of a failure.
        lists: the constants of each list, tuple, set or dict, as one text.
        writes: whether the tests write files.
    """

    functions: tuple[str, ...]
    texts: tuple[str, ...]
    lists: tuple[str, ...]
    writes: bool


@functools.lru_cache(maxsize=64)  # a reply's reader and the validation both ask
def parse(tests: str) -> TestsCode:
    """Parse a test file.

    Raises:
        ValueError: it is no Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d"
            tree = ast.parse(tests)
        nodes = list(_walk(tree))
        lists = tuple(_constants(node) for node in nodes if isinstance(node, _LISTS))
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"cannot be parsed ({error})") from error
    writes = any(isinstance(n, ast.Call) and _called(n) in _WRITERS for n in nodes)
    return TestsCode(tuple(_functions(tree)), tuple(_texts(nodes)), lists, writes)


def _functions(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            yield node.name
        elif isinstance(node, ast.ClassDef) and _is_test_class(node):
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name.startswith("test"):
                    yield f"{node.name}::{each.name}"


def _is_test_class(node: ast.ClassDef) -> bool:
    bases = {getattr(base, "attr", getattr(base, "id", "")) for base in node.bases}
    return node.name.startswith("Test") or "TestCase" in bases


def _walk(root: ast.AST) -> Iterator[ast.AST]:
    """The nodes, without those that say something only to who reads the tests or their failures."""
    left = [root]
    while left:
        node = left.pop()
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _called(node) in _TALK):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        yield node
        message = node.msg if isinstance(node, ast.Assert) else None
        children = [child for child in ast.iter_child_nodes(node) if child is not message]
        left.extend(reversed(children))


def _called(node: ast.Call) -> str:
    """The name of the function or method that is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _texts(nodes: list[ast.AST]) -> Iterator[str]:
    parts: set[ast.AST] = set()  # of longer texts
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            yield "".join(_text_of(value) for value in node.values)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            if node not in parts:
                yield _text_of(node)
            parts.update((node.left, node.right))
        elif node not in parts and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text_of(node.left) + _text_of(node.right)
    return HOLE


def _constants(node: ast.AST) -> str:
    return " ".join(str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant))
