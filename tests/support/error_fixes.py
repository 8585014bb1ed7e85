"""Read the fixes of all errors from the source of the packages, without raising any of them.

A fix is the third argument of a `RlaifError`. It is followed to what it may be: a text, one of two texts, a name that is
assigned nearby, what a function of ours returns, or a parameter, whose function is then read at each of its calls.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Fix:
    """A text that an error can have as its fix; `{}` stands for each value that is filled in."""

    path: Path
    text: str
    node: ast.expr

    def __str__(self) -> str:
        return f"{self.path}:{self.node.lineno}: {self.text}"


@dataclass(frozen=True)
class Scope:
    """A place in the source: a file, and the functions around the place, outermost first."""

    path: Path
    functions: tuple[Function, ...] = ()


@dataclass
class FixReader:
    """All fixes in some files."""

    sources: Mapping[Path, str]
    errors: frozenset[str]
    """Names of the error classes."""
    fixes: list[Fix] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    """Calls whose fix could not be followed to a text."""

    def __post_init__(self):
        self._trees = {path: ast.parse(source) for path, source in self.sources.items()}
        self._constants: dict[str, list[tuple[Scope, ast.expr]]] = defaultdict(list)
        self._functions: dict[str, list[tuple[Path, Function]]] = defaultdict(list)
        self._places: dict[tuple[Path | None, str], tuple[int, str]] = {
            (None, name): (2, "fix") for name in self.errors
        }
        for path, tree in self._trees.items():
            for target, value in assignments(tree.body):
                self._constants[target].append((Scope(path), value))
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    self._functions[node.name].append((path, node))
        self._read()

    def _read(self) -> None:
        # A parameter that becomes a fix makes the calls of its function places of fixes too, so until no new one appears.
        known = 0
        while known < len(self._places):
            known = len(self._places)
            self.fixes, self.opaque = [], []
            for path, tree in self._trees.items():
                self._visit(tree, Scope(path))

    def _visit(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, Function):
            scope = Scope(scope.path, (*scope.functions, node))
        if isinstance(node, ast.Call):
            self._read_call(node, scope)
        for child in ast.iter_child_nodes(node):
            self._visit(child, scope)

    def _read_call(self, call: ast.Call, scope: Scope) -> None:
        name = ast.unparse(call.func).split(".")[-1]
        place = self._places.get((None, name)) or self._places.get((scope.path, name))
        if place is None or any(isinstance(argument, ast.Starred) for argument in call.args):
            return
        index, keyword = place
        named = [argument.value for argument in call.keywords if argument.arg == keyword]
        for value in [*call.args[index : index + 1], *named]:
            texts = self._texts(value, scope)
            if texts is None:
                self.opaque.append(f"{scope.path}:{call.lineno}: {ast.unparse(value)}")
            else:
                self.fixes += texts

    def _texts(self, node: ast.expr, scope: Scope) -> list[Fix] | None:
        """Return the texts that an expression may be; none for one that is passed on, None if it cannot be followed."""
        if isinstance(node, ast.Constant):
            return [Fix(scope.path, str(node.value), node)]
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            return [Fix(scope.path, "".join(parts), node)]
        if isinstance(node, ast.Attribute) and node.attr == "fix":
            return []
        if isinstance(node, ast.Name):
            return self._texts_of_name(node.id, scope)
        if isinstance(node, ast.Call):
            return self._texts_of_call(node, scope)
        if isinstance(node, ast.BinOp):
            return self._texts_of_sum(node, scope)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
            return self._texts_of_item(node, scope)
        return self._all_texts([(scope, part) for part in alternatives(node)])

    def _texts_of_sum(self, node: ast.BinOp, scope: Scope) -> list[Fix] | None:
        first, second = self._texts(node.left, scope), self._texts(node.right, scope)
        if first is None or second is None:
            return None
        return [Fix(scope.path, one.text + other.text, node) for one, other in product(first, second)]

    def _texts_of_name(self, name: str, scope: Scope) -> list[Fix] | None:
        for depth in range(len(scope.functions), 0, -1):
            function = scope.functions[depth - 1]
            inside = Scope(scope.path, scope.functions[:depth])
            values = [(inside, value) for target, value in assignments(list(ast.walk(function))) if target == name]
            if values:
                return self._all_texts(values)
            parameters = [argument.arg for argument in function.args.args]
            if name in parameters:
                index = parameters.index(name) - (parameters[0] in ("self", "cls"))
                # A private name is one function of its own file; a public one may be called from anywhere.
                owner = scope.path if function.name.startswith("_") else None
                self._places.setdefault((owner, function.name), (index, name))
                return []
        constants = self._constants[name]
        nearest = [constant for constant in constants if constant[0].path == scope.path]
        return self._all_texts(nearest or constants)

    def _texts_of_call(self, call: ast.Call, scope: Scope) -> list[Fix] | None:
        """Return the texts that one of our functions may return, or that `get` on a literal dictionary may return."""
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Dict):
            return self._all_texts([(scope, value) for value in [*call.func.value.values, *call.args[1:]]])
        if joins_fixes(call):
            return []
        return self._all_texts(self._returned(call))

    def _texts_of_item(self, node: ast.Subscript, scope: Scope) -> list[Fix] | None:
        """Return the texts of one item of the tuples that one of our functions returns."""
        values = []
        for inside, value in self._returned(node.value):
            if not isinstance(value, ast.Tuple):
                return None
            values.append((inside, value.elts[node.slice.value]))
        return self._all_texts(values)

    def _returned(self, call: ast.Call) -> list[tuple[Scope, ast.expr]]:
        """Return the expressions that the functions of the called name return."""
        values = []
        for path, function in self._functions[ast.unparse(call.func).split(".")[-1]]:
            returns = [node for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
            values += [(Scope(path, (function,)), node.value) for node in returns]
        return values

    def _all_texts(self, values: list[tuple[Scope, ast.expr]]) -> list[Fix] | None:
        texts: list[Fix] = []
        for scope, value in values:
            more = self._texts(value, scope)
            if more is None:
                return None
            texts += more
        return texts if values else None


def joins_fixes(call: ast.Call) -> bool:
    """Return whether a call is `" ".join(x.fix for x in ...)`: sentences that are read at their own places."""
    if not isinstance(call.func, ast.Attribute) or ast.unparse(call.func) != "' '.join":
        return False
    elements = call.args[0]
    return isinstance(elements, ast.GeneratorExp) and ast.unparse(elements.elt).endswith(".fix")


def alternatives(node: ast.expr) -> list[ast.expr]:
    """Return the expressions of which one is the value of `node`; none for a kind of expression that is not followed."""
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
        return node.value.values
    return []


def assignments(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Yield (name, value) of every assignment among `nodes`; a target that is a tuple gets an item of the value each."""
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is None:
            continue
        if isinstance(targets[0], ast.Name):
            yield targets[0].id, value
        elif isinstance(targets[0], ast.Tuple):
            for index, target in enumerate(targets[0].elts):
                if isinstance(target, ast.Name):
                    yield target.id, item_of(value, index)


def item_of(value: ast.expr, index: int) -> ast.expr:
    """Return the expression of one item of a value."""
    if isinstance(value, ast.Tuple):
        return value.elts[index]
    return ast.copy_location(ast.Subscript(value, ast.Constant(index)), value)
