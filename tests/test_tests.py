"""The tests themselves: each assertion can fail, and none leans on time."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import pairwise

import pytest

from tests.helpers import ROOT

WAITERS = {"tests/helpers.py", "tests/webui/real/webui.py", "tests/webui/real/test_block_jobs.py"}
"""Files whose functions wait for a condition and look from time to time."""


def is_fixed(value: ast.expr) -> bool:
    """Whether it is the same whatever the code under test does: a literal, or a NAMED constant without a call."""
    return isinstance(value, ast.Constant) or (isinstance(value, ast.Name) and value.id.isupper())


def holds_always(test: ast.expr) -> bool:
    """Whether an asserted expression is true whatever happens."""
    if isinstance(test, (ast.Tuple, ast.List, ast.Dict, ast.GeneratorExp, ast.ListComp, ast.Lambda, ast.JoinedStr)):
        return True  # a non-empty container or an object: meant was what is in it
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return any(map(holds_always, test.values))
    if isinstance(test, ast.Compare):
        sides = [test.left, *test.comparators]
        called = any(isinstance(part, ast.Call) for part in ast.walk(test))  # f() == f() tells that f is repeatable
        same = any(ast.dump(one) == ast.dump(other) for one, other in pairwise(sides))
        order = all(isinstance(operator, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for operator in test.ops)
        return (same and not called) or (order and all(map(is_fixed, sides))) or is_a_length_of_any_size(test)
    return False


def is_a_length_of_any_size(test: ast.Compare) -> bool:
    """``len(x) >= 0``."""
    left, right = test.left, test.comparators[0]
    is_length = isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id == "len"
    return is_length and isinstance(test.ops[0], ast.GtE) and isinstance(right, ast.Constant) and right.value == 0


def idle_assertions(tree: ast.AST) -> Iterator[int]:
    """Lines of assertions that cannot fail."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and holds_always(node.test):
            yield node.lineno


def any_errors(tree: ast.AST) -> Iterator[int]:
    """Lines that take every error for the expected one, a misspelt name's as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises":
            kinds = {ast.unparse(kind) for kind in node.args[:1]}
            if kinds & {"Exception", "BaseException"} and "match" not in {word.arg for word in node.keywords}:
                yield node.lineno


def after_the_error(tree: ast.AST) -> Iterator[int]:
    """Lines of assertions that stand in a ``with pytest.raises`` behind what raises, and so are never reached."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any("pytest.raises" in ast.unparse(each.context_expr) for each in node.items):
            yield from (each.lineno for each in node.body[1:] if isinstance(each, ast.Assert))


def sleeps(tree: ast.AST) -> Iterator[int]:
    """Lines that sleep, but for ``sleep(0)``, which only lets other threads go on."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("time.sleep", "sleep")
            and ast.unparse(node.args[0]) != "0"
        ):
            yield node.lineno


def own_limits(tree: ast.AST) -> Iterator[int]:
    """Lines that wait whole seconds of their own, where ``LIMIT`` is for all that must happen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("wait", "join"):
            given = [*node.args, *(word.value for word in node.keywords)]
            numbers = [each.value for each in given if isinstance(each, ast.Constant)]
            if any(isinstance(each, (int, float)) and each >= 1 for each in numbers):
                yield node.lineno


def measured_seconds(tree: ast.AST) -> Iterator[int]:
    """Lines of assertions that compare a clock, or what was taken from one: machines are as slow as they like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare):
            orders = any(isinstance(operator, (ast.Lt, ast.LtE)) for operator in node.test.ops)
            if orders and any(clock in ast.unparse(node.test) for clock in ("monotonic()", "perf_counter()", "time()")):
                yield node.lineno


@pytest.mark.parametrize("find", [idle_assertions, any_errors, after_the_error])
def test_every_assertion_can_fail(find: Callable[[ast.AST], Iterator[int]]) -> None:
    assert found(find) == []


@pytest.mark.parametrize("find", [sleeps, own_limits, measured_seconds])
def test_no_test_leans_on_time(find: Callable[[ast.AST], Iterator[int]]) -> None:
    assert found(find, WAITERS) == []


def found(find: Callable[[ast.AST], Iterator[int]], but: Collection[str] = ()) -> list[str]:
    return [f"{name}:{line}" for name, tree in trees().items() if name not in but for line in find(tree)]


@cache
def trees() -> dict[str, ast.Module]:
    """Every file of the tests, by its name."""
    paths = [path for path in sorted((ROOT / "tests").rglob("*.py")) if "cases" not in path.parts]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@pytest.mark.parametrize(
    ("find", "code"),
    [
        (idle_assertions, "assert (x == 1, 'said')"),
        (idle_assertions, "assert True"),
        (idle_assertions, "assert x.y == x.y"),
        (idle_assertions, "assert MOST >= 24"),
        (idle_assertions, "assert x or True"),
        (idle_assertions, "assert len(x) >= 0"),
        (idle_assertions, "assert (each > 0 for each in x)"),
        (any_errors, "with pytest.raises(Exception): f()"),
        (after_the_error, "with pytest.raises(ValueError):\n    f()\n    assert x"),
        (sleeps, "time.sleep(2)"),
        (own_limits, "jobs.wait(run, 60)"),
        (measured_seconds, "assert time.monotonic() - began < 5"),
    ],
)
def test_each_kind_is_found(find: Callable[[ast.AST], Iterator[int]], code: str) -> None:
    assert len(list(find(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code", ["assert x == 1", "assert f(1) == f(1)", "assert a < 1 or b", "assert 'zorp' not in SHAPES", "sleep(0)"]
)
def test_what_can_fail_is_left_alone(code: str) -> None:
    finds = (idle_assertions, any_errors, after_the_error, sleeps, own_limits, measured_seconds)
    assert [list(find(ast.parse(code))) for find in finds] == [[]] * len(finds)
