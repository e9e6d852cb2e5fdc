"""The faults: every place of a module where one operator, number, name or statement can be another."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_PAIRS = (
    "Lt LtE, Gt GtE, Eq NotEq, In NotIn, Is IsNot, And Or, Add Sub, Mult Div, BitAnd BitOr, LShift RShift"
)
_EACH = [tuple(getattr(ast, name) for name in pair.split()) for pair in _PAIRS.split(", ")]
OPERATORS: dict[Any, Any] = {a: b for pair in _EACH for a, b in (pair, pair[::-1])} | {
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
_SWAPPED = (("min", "max"), ("any", "all"), ("minimum", "maximum"))
NAMES = {a: b for pair in _SWAPPED for a, b in (pair, pair[::-1])}


@dataclass(frozen=True)
class Fault:
    """One change of a module's syntax tree."""

    line: int
    # The source line, without its indentation.
    code: str
    # What is changed in it, as a person reads it.
    change: str
    # First line, with decorators, of the function in whose body it lies; None outside functions.
    function: int | None
    # Place of the node in `ast.walk`.
    node: int

    @property
    def key(self) -> str:
        """Name it in results."""
        return f"{self.line}: {self.code}: {self.change} #{self.node}"


def faults(source: str) -> list[Fault]:
    """List every fault that a module can have: at most one a node."""
    tree, lines = ast.parse(source), source.splitlines()
    bodies = _bodies(tree)
    found = []
    for place, node in _places(tree):
        if change := _text(node):
            line = getattr(node, "lineno", 1)
            function = next((first for first, start, end in bodies if start <= line <= end), None)
            found.append(Fault(line, lines[line - 1].strip(), change, function, place))
    return sorted(found, key=lambda fault: (fault.line, fault.node))


def mutated(source: str, fault: Fault) -> ast.Module:
    """Return the module with the fault in it."""
    tree = ast.parse(source)
    _change(dict(_places(tree))[fault.node])
    return ast.fix_missing_locations(tree)


def _bodies(tree: ast.Module) -> list[tuple[int, int, int]]:
    """Return of every function that is in no other its first line, and the lines of its body."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [
        (
            min([node.lineno, *(line.lineno for line in node.decorator_list)]),
            node.body[0].lineno,
            node.end_lineno or 0,
        )
        for parent in (tree, *classes)
        for node in parent.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _places(tree: ast.Module) -> list[tuple[int, ast.AST]]:
    """Return what can be changed: no annotation, docstring or prose, and nothing that only logs."""
    nodes = list(ast.walk(tree))
    skipped = {id(inner) for node in nodes for part in _left_alone(node) for inner in ast.walk(part)}
    return [(place, node) for place, node in enumerate(nodes) if id(node) not in skipped]


def _left_alone(node: ast.AST) -> Iterator[ast.AST]:
    for name in ("annotation", "returns"):
        if isinstance(found := getattr(node, name, None), ast.AST):
            yield found
    match node:
        case ast.JoinedStr() | ast.Expr(value=ast.Constant()):
            yield node
        case ast.Constant(value=str() as text) if " " in text:
            yield node
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield from node.decorator_list
        case ast.keyword(arg="strict"):
            yield node  # of zip: a check, of nothing that a client or an archive decides
        case ast.Assign(targets=[ast.Name(id="__all__" | "logger")]):
            yield node
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript()) if name[0].isupper():
            yield node  # an alias of a type
        case ast.Expr() if ast.unparse(node).startswith("logger."):
            yield node


def _text(node: ast.AST) -> str | None:
    """Say what `_change` makes of a node, None where it makes nothing."""
    match node:
        case ast.Compare():
            return f"{_name(node.ops[0])} -> {OPERATORS[type(node.ops[0])].__name__}"
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in OPERATORS:
            return f"{_name(node.op)} -> {OPERATORS[type(node.op)].__name__}"
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return f"without {_name(node.op)}"
        case ast.Constant(value=bool() | int() | float()):
            return f"{node.value} -> {_other(node.value)}"
        case ast.Constant(value=str() | bytes()) if node.value:
            return f"other text than {node.value!r}"
        case ast.If() | ast.IfExp() | ast.While():
            return f"if not {ast.unparse(node.test)[:60]}"
        case ast.Return(value=ast.AST()):
            return "return None"
        case ast.Expr(value=ast.Call()) | ast.Raise():
            return f"without {ast.unparse(node)[:60]}"
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in NAMES:
            return f"{name} -> {NAMES[name]}"
    return None


def _change(node: Any) -> None:
    match node:
        case ast.Compare():
            node.ops[0] = OPERATORS[type(node.ops[0])]()
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp():
            node.op = OPERATORS[type(node.op)]()
        case ast.UnaryOp(op=ast.USub()):
            node.op = ast.UAdd()
        case ast.UnaryOp():
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
        case ast.Constant():
            node.value = _other(node.value)
        case ast.If() | ast.IfExp() | ast.While():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Return() | ast.Expr():
            node.value = ast.Constant(None)
        case ast.Raise():
            object.__setattr__(node, "__class__", ast.Pass)
        case ast.Name():
            node.id = NAMES[node.id]
        case ast.Attribute():
            node.attr = NAMES[node.attr]


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 10 if value else 1.0
    return "XX" + value if isinstance(value, str) else b"XX" + value


def _name(operator: ast.AST) -> str:
    return type(operator).__name__
