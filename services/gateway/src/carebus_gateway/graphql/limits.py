"""How large an operation may be: depth, size, aliases and cost. Pure.

Depth counts fields that have a selection, one within another. Size counts fields and aliases with every fragment
written out where it is spread. Both are known from the text alone, before anything is done with it; each fragment is
looked at once, however often it is spread.

    cost(operation)  = the sum of the costs of its fields
    cost(field)      = weight + times * the sum of the costs of what is selected within it
    weight           = 10 for a field that may ask the claims service (CALLS), 1 for another that has a selection,
                       0 for `edges`, `pageInfo` and fields without a selection, 100 for `__schema` and `__type`
    times            = the connection's `first` for its `edges`, else 1

Introspection (`__schema`, `__type`) has no depth and costs its weight only; graphql-core's own rule bounds how deep it
goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
)

from carebus_common.errors import InvalidRequest

__all__ = ["CALLS", "CONNECTIONS", "DEFAULT_FIRST", "MAX_FIRST", "Limits", "check_cost", "check_shape", "cost_of"]

CONNECTIONS: Final = frozenset({"claims", "history", "audit"})
CALLS: Final = CONNECTIONS | {"claim", "summary"}
DEFAULT_FIRST: Final = 20
MAX_FIRST: Final = 200

_FREE: Final = frozenset({"edges", "pageInfo"})
_CALL: Final = 10
_INTROSPECTION: Final = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """`tokens` bounds the text, `nodes` the fields once fragments are written out."""

    depth: int = 8
    cost: int = 2000
    aliases: int = 20
    nodes: int = 500
    tokens: int = 1000


@dataclass(frozen=True, slots=True)
class _Shape:
    depth: int = 0
    nodes: int = 0
    aliases: int = 0

    def beside(self, other: _Shape) -> _Shape:
        return _Shape(max(self.depth, other.depth), self.nodes + other.nodes, self.aliases + other.aliases)


def check_shape(document: DocumentNode, limits: Limits) -> None:
    """Raises InvalidRequest if an operation of the document, valid or not, is too deep or too large."""
    walk = _ShapeWalk(_fragments(document))
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            shape = walk.of(definition.selection_set)
            _check("depth", shape.depth, limits.depth)
            _check("size", shape.nodes, limits.nodes)
            _check("aliases", shape.aliases, limits.aliases)


def check_cost(
    document: DocumentNode, operation: OperationDefinitionNode, variables: Mapping[str, Any], limits: Limits
) -> None:
    """Raises InvalidRequest if the operation, of a valid document, costs too much with these variables."""
    _check("cost", cost_of(document, operation, variables), limits.cost)


def cost_of(document: DocumentNode, operation: OperationDefinitionNode, variables: Mapping[str, Any]) -> int:
    """What an operation of a valid document costs; `first` beyond its bounds counts as the nearest bound."""
    defaults = {
        definition.variable.name.value: int(definition.default_value.value)
        for definition in operation.variable_definitions or ()
        if isinstance(definition.default_value, IntValueNode)
    }
    return _CostWalk(_fragments(document), {**defaults, **variables}).of(operation.selection_set, 1)


def _check(what: str, found: int, limit: int) -> None:
    if found > limit:
        rule = f"{what} at most {limit}"
        raise InvalidRequest(
            f"The query is too large: {what} {found}, of {limit} at most.",
            details=[{"path": "$.query", "rule": rule}],
        )


def _fragments(document: DocumentNode) -> dict[str, FragmentDefinitionNode]:
    return {
        definition.name.value: definition
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }


class _ShapeWalk:
    """A fragment that spreads itself counts once: validation refuses it afterwards."""

    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode]) -> None:
        self._fragments = fragments
        self._known: dict[str, _Shape] = {}

    def of(self, selections: SelectionSetNode | None) -> _Shape:
        shape = _Shape()
        for selection in selections.selections if selections else ():
            if isinstance(selection, FieldNode):
                shape = shape.beside(self._of_field(selection))
            elif isinstance(selection, InlineFragmentNode):
                shape = shape.beside(self.of(selection.selection_set))
            elif isinstance(selection, FragmentSpreadNode):
                shape = shape.beside(self._of_fragment(selection.name.value))
        return shape

    def _of_field(self, field: FieldNode) -> _Shape:
        alias = int(field.alias is not None)
        below = self.of(field.selection_set)
        leaf = field.selection_set is None or field.name.value.startswith("__")
        return _Shape(0 if leaf else below.depth + 1, below.nodes + 1, below.aliases + alias)

    def _of_fragment(self, name: str) -> _Shape:
        if name not in self._known:
            self._known[name] = _Shape()
            fragment = self._fragments.get(name)
            self._known[name] = self.of(fragment.selection_set) if fragment else _Shape()
        return self._known[name]


class _CostWalk:
    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode], variables: Mapping[str, Any]) -> None:
        self._fragments = fragments
        self._variables = variables
        self._known: dict[tuple[str, int], int] = {}

    def of(self, selections: SelectionSetNode | None, first: int) -> int:
        """`first` is that of the connection which is selected from; elsewhere no matter."""
        cost = 0
        for selection in selections.selections if selections else ():
            if isinstance(selection, FieldNode):
                cost += self._of_field(selection, first)
            elif isinstance(selection, InlineFragmentNode):
                cost += self.of(selection.selection_set, first)
            elif isinstance(selection, FragmentSpreadNode):
                cost += self._of_fragment(selection.name.value, first)
        return cost

    def _of_field(self, field: FieldNode, first: int) -> int:
        name = field.name.value
        if name.startswith("__"):
            return _INTROSPECTION if field.selection_set else 0
        if field.selection_set is None:
            return 0
        if name in _FREE:
            return (first if name == "edges" else 1) * self.of(field.selection_set, 1)
        below = self.of(field.selection_set, self._first(field) if name in CONNECTIONS else 1)
        return (_CALL if name in CALLS else 1) + below

    def _of_fragment(self, name: str, first: int) -> int:
        known = self._known.get((name, first))
        if known is None:
            known = self._known[name, first] = self.of(self._fragments[name].selection_set, first)
        return known

    def _first(self, field: FieldNode) -> int:
        given: Any = DEFAULT_FIRST
        for argument in field.arguments or ():
            if argument.name.value != "first":
                continue
            if isinstance(argument.value, IntValueNode):
                given = int(argument.value.value) if len(argument.value.value) < 10 else MAX_FIRST
            elif isinstance(argument.value, VariableNode):
                given = self._variables.get(argument.value.name.value, DEFAULT_FIRST)
        return min(max(given, 1), MAX_FIRST) if type(given) is int else DEFAULT_FIRST
