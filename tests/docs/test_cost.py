"""The arithmetic that docs/cost.md shows is right."""

import ast
import operator
import re
from pathlib import Path

import pytest

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value(node: ast.expr) -> float:
    """The value of an expression of numbers and + - * /."""
    if isinstance(node, ast.BinOp):
        return float(OPERATORS[type(node.op)](value(node.left), value(node.right)))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, (int, float))
    return float(node.value)


def test_every_line_of_arithmetic_holds(root: Path) -> None:
    text = (root / "docs" / "cost.md").read_text()
    blocks = re.findall(r"```arithmetic\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 15
    for line in lines:
        left, _, right = line.partition(" = ")
        stated = float(right.split()[0])
        # Three figures are shown.
        assert value(ast.parse(left, mode="eval").body) == pytest.approx(stated, rel=5e-3), line
