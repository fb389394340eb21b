"""Conditions on metadata, such as `price < 20 and category in ['chair', 'sofa']`.

A condition is read by Python's own grammar (`ast`) and never run. It holds

    and, or, not, parentheses
    == != < <= > >=     between a name and a literal, chained too: 10 <= price < 20
    in, not in          a name and a list of literals
    is None, is not None
    a name by itself    where it is true

A name is `price`, `metadata.source`, or `field('any name')`; a literal a number, a text, True or
False. Names are those that `facts` tells: columns of the index, and members of the JSON objects
that a back-fill keeps in the column `metadata`. A text that reads as a number, as every value of a
CSV file does, compares with numbers as that number. A date compares with a text in ISO 8601. A row
without a value fulfils no comparison and no `not` of one, as in SQL.
"""

import ast
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unified_embedding.errors import CodeIndexError, shown
from unified_embedding.index.records import SAID, Table, facts

Kind: TypeAlias = Literal["number", "text", "truth"]
Value: TypeAlias = int | float | str | bool
Test: TypeAlias = Callable[[Table], pa.ChunkedArray]

_LONGEST: Final = 1000
_EXAMPLE: Final = "write for instance: price < 20 and category == 'chair'"
_ARROW: Final = {"number": pa.float64(), "text": pa.string(), "truth": pa.bool_()}
_COMPARE: Final[dict[type[ast.cmpop], Callable[..., Any]]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_TURNED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


@dataclass(frozen=True)
class _Need:
    """What a comparison needs of a name: values of a kind, or (None) only that it is known."""

    name: str
    kind: Kind | None


class Where:
    """A parsed condition."""

    def __init__(self, text: str) -> None:
        """Parse. Raises CodeIndexError."""
        self._needs: list[_Need] = []
        self._text = text
        if len(text) > _LONGEST:
            raise CodeIndexError(f"a condition has at most {_LONGEST} characters, not {len(text)}")
        try:
            self._test = self._condition(ast.parse(text.strip(), mode="eval").body)
        except SyntaxError as error:
            raise CodeIndexError(
                f"{shown(text)} is no condition ({error.msg}); {_EXAMPLE}. A name that is no "
                "Python word is written field('max price')"
            ) from None
        except (ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, CodeIndexError):
                raise
            raise CodeIndexError(f"{shown(text)} cannot be read; {_EXAMPLE}") from None

    def masks(self, tables: Sequence[Table]) -> list[NDArray[np.bool_]]:
        """Which rows of each table fulfil it.

        Raises:
            CodeIndexError: a name that no row has, or values that a literal cannot be compared
                with.
        """
        filled = [table for table in tables if len(table)]
        for need in self._needs if filled else ():
            self._check(need, filled)
        try:
            return [
                pc.fill_null(self._test(table), False).to_numpy() if len(table) else _NONE
                for table in tables
            ]
        except (pa.ArrowException, OverflowError) as error:
            raise CodeIndexError(f"{shown(self._text)} cannot be compared ({error})") from error

    def _check(self, need: _Need, tables: Sequence[Table]) -> None:
        there = [_there(table, need.name) for table in tables]
        if not any(pc.any(known).as_py() for known in there):
            known = sorted({name for table in tables for name in _names(table)})
            raise CodeIndexError(f"no row has {shown(need.name)}; there are {', '.join(known)}")
        columns = [_column(table, need.name, need.kind) for table in tables if need.kind]
        if columns and all(column.null_count == len(column) for column in columns):
            words = {"number": "a number", "text": "a text", "truth": "true or false"}
            raise CodeIndexError(
                f"{shown(need.name)} is nowhere {words[need.kind or 'text']}; compare it with "
                "what it holds"
            )

    def _condition(self, node: ast.expr) -> Test:
        match node:
            case ast.BoolOp(op=op, values=values):
                join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
                tests = [self._condition(value) for value in values]
                return lambda table: functools.reduce(join, (test(table) for test in tests))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                test = self._condition(operand)
                return lambda table: pc.invert(test(table))
            case ast.Compare(left=left, ops=ops, comparators=rights):
                lefts = [left, *rights]
                pairs = [self._pair(*one) for one in zip(lefts, ops, rights, strict=False)]
                return lambda table: functools.reduce(pc.and_kleene, (p(table) for p in pairs))
            case _ if (name := _name(node)) is not None:
                return self._compare(name, ast.Eq, True)
        raise self._odd(node)

    def _pair(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Test:
        kind, name = type(op), _name(left)
        if name is None and _name(right) is not None and kind in _COMPARE:
            return self._pair(right, _TURNED.get(kind, kind)(), left)
        if name is None:
            raise self._odd(left)
        if isinstance(op, ast.Is | ast.IsNot):
            if not isinstance(right, ast.Constant) or right.value is not None:
                raise self._odd(right)
            self._needs.append(_Need(name, None))
            wanted = isinstance(op, ast.IsNot)
            return lambda table: pc.equal(_there(table, name), wanted)
        if isinstance(op, _MEMBER):
            if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
                raise self._odd(right)
            tests = [self._compare(name, ast.Eq, self._literal(one)) for one in right.elts]
            within: Test = lambda table: functools.reduce(pc.or_kleene, (t(table) for t in tests))  # noqa: E731
            return within if isinstance(op, ast.In) else lambda table: pc.invert(within(table))
        return self._compare(name, kind, self._literal(right))

    def _compare(self, name: str, op: type[ast.cmpop], value: Value) -> Test:
        kind: Kind = (
            "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
        )
        self._needs.append(_Need(name, kind))
        compare = _COMPARE[op]

        def test(table: Table) -> pa.ChunkedArray:
            column = _column(table, name, kind)
            if pa.types.is_temporal(column.type):
                return compare(column, pa.scalar(value).cast(column.type))
            if pa.types.is_integer(column.type) and isinstance(value, int):
                return compare(column, pa.scalar(value))
            return compare(column, pa.scalar(float(value) if kind == "number" else value))

        return test

    def _literal(self, node: ast.expr) -> Value:
        match node:
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.Constant(value=int() | float() | str() as value):
                return value
        raise self._odd(node)

    def _odd(self, node: ast.expr) -> CodeIndexError:
        part = ast.get_source_segment(self._text.strip(), node) or self._text
        return CodeIndexError(
            f"{shown(part)} cannot stand here: a condition compares a name with a number, a text, "
            f"True, False, or a list of them; {_EXAMPLE}"
        )


_MEMBER: Final = (ast.In, ast.NotIn)
_NONE: Final = np.zeros(0, np.bool_)


def _name(node: ast.expr) -> str | None:
    """`price`, `metadata.source` or `field('any name')`; None for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr):
            return None if (head := _name(value)) is None else f"{head}.{attr}"
        case ast.Call(
            func=ast.Name(id="field"), args=[ast.Constant(value=str() as name)], keywords=[]
        ):
            return name
    return None


def _names(table: Table) -> Iterable[str]:
    """The names of the first row; the rows of one corpus have the same."""
    return facts(table[0])


def _there(table: Table, name: str) -> pa.ChunkedArray:
    """Whether each row has a value."""
    if _is_column(table, name):
        return pc.is_valid(table.arrow.column(name))
    return _kept(table, name, "there", lambda value: value is not None, pa.bool_())


def _column(table: Table, name: str, kind: Kind) -> pa.ChunkedArray:
    """The values of a name that are of a kind; null where a row has none."""
    if not _is_column(table, name):
        return _kept(table, name, kind, _AS[kind], _ARROW[kind])
    column = table.arrow.column(name)
    own = column.type
    if pa.types.is_float16(own) or pa.types.is_decimal(own) or pa.types.is_uint64(own):
        column, own = column.cast(pa.float64(), safe=False), pa.float64()
    numeric = pa.types.is_integer(own) or pa.types.is_floating(own)
    textual = pa.types.is_string(own) or pa.types.is_large_string(own)
    if kind == "number" and textual:
        return _kept(table, name, kind, _number, _ARROW[kind])
    dated = pa.types.is_date(own) or pa.types.is_timestamp(own) or pa.types.is_time(own)
    fits = {"number": numeric, "text": textual or dated, "truth": pa.types.is_boolean(own)}
    if fits[kind]:
        return column
    return pa.chunked_array([pa.nulls(len(column), _ARROW[kind])])


def _kept(
    table: Table, name: str, kind: str, convert: Callable[[Any], Any], arrow: pa.DataType
) -> pa.ChunkedArray:
    """Values that had to be read one by one, kept with the table for the next search."""
    found = table.read.get((name, kind))
    if found is None:
        chunks = [pa.array(map(convert, chunk), arrow) for chunk in _values(table, name)]
        found = table.read[name, kind] = pa.chunked_array(chunks, arrow)
    return found


def _values(table: Table, name: str) -> Iterator[Iterator[Any]]:
    """A text column's values, or those of a member of the JSON objects, chunk by chunk."""
    if _is_column(table, name):
        yield from (iter(chunk.to_pylist()) for chunk in table.arrow.column(name).chunks)
    elif SAID in table.arrow.column_names:
        bare = name.removeprefix(f"{SAID}.")
        member = bare if bare in table.arrow.column_names else name
        for chunk in table.arrow.column(SAID).chunks:
            yield (_member(text, member) for text in chunk.to_pylist())
    else:
        yield iter([None] * len(table))


def _member(text: Any, name: str) -> Any:
    try:
        said = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return said.get(name) if isinstance(said, dict) else None


def _is_column(table: Table, name: str) -> bool:
    return name in table.arrow.column_names and name != SAID


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    underscored = isinstance(value, str) and "_" in value
    return number if math.isfinite(number) and not underscored else None


_AS: Final[dict[Kind, Callable[[Any], Any]]] = {
    "number": _number,
    "text": lambda value: value if isinstance(value, str) else None,
    "truth": lambda value: value if isinstance(value, bool) else None,
}
