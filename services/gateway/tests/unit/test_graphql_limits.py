"""Depth, size, aliases and cost, on operations small enough to count by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest
from graphql import DocumentNode, OperationDefinitionNode, parse

from carebus_common.errors import InvalidRequest
from carebus_gateway.graphql.limits import Limits, check_cost, check_shape, cost_of


def operation(text: str) -> tuple[DocumentNode, OperationDefinitionNode]:
    document = parse(text)
    found = next(d for d in document.definitions if isinstance(d, OperationDefinitionNode))
    return document, found


def cost(text: str, **variables: Any) -> int:
    return cost_of(*operation(text), variables)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{ claim(id: 1) { total status } }", 10),
        ("{ claim(id: 1) { lines { amount } } }", 11),
        ("{ claims { pageInfo { endCursor } } }", 10),
        # 10 + 20 * node
        ("{ claims { edges { cursor node { total } } } }", 30),
        ("{ claims(first: 50) { edges { node { total } } } }", 60),
        # 10 + 50 * (node + patient + summary)
        ("{ claims(first: 50) { edges { node { patient { summary { flagTotal } } } } } }", 610),
        # 10 + 5 * (node + audit + 3 * (node + actor))
        ("{ claims(first: 5) { edges { node { audit(first: 3) { edges { node { actor { id } } } } } } } }", 95),
        ("{ patient(id: 1) { patientId } }", 1),
        ("{ a: claim(id: 1) { total } b: claim(id: 2) { total } }", 20),
        ("{ __typename }", 0),
        ("{ __schema { types { name fields { name } } } }", 100),
        ("{ claims(first: 7) { ...page } } fragment page on ClaimConnection { edges { node { total } } }", 17),
        ("{ claims(first: 7) { ... on ClaimConnection { edges { node { total } } } } }", 17),
    ],
)
def test_the_cost_is_what_the_formula_says(text: str, expected: int) -> None:
    assert cost(text) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 40),
        ({"n": 50}, 60),
        ({"n": -5}, 11),
        ({"n": 10**12}, 210),
        ({"n": None}, 30),
        ({"n": "many"}, 30),
        ({"n": True}, 30),
    ],
)
def test_a_variable_counts_within_its_bounds_whatever_it_is(variables: dict[str, Any], expected: int) -> None:
    text = "query q($n: Int! = 30) { claims(first: $n) { edges { node { total } } } }"
    assert cost(text, **variables) == expected


def test_a_literal_beyond_all_bounds_counts_as_the_bound() -> None:
    assert cost("{ claims(first: 99999999999999999999) { edges { node { total } } } }") == 210


def test_an_operation_over_the_limit_is_refused_with_what_it_costs() -> None:
    with pytest.raises(InvalidRequest, match="cost 30, of 29 at most"):
        check_cost(*operation("{ claims { edges { node { total } } } }"), {}, Limits(cost=29))
    check_cost(*operation("{ claims { edges { node { total } } } }"), {}, Limits(cost=30))


def nested(levels: int) -> str:
    return "{ a " * levels + "}" * levels


@pytest.mark.parametrize(
    "text",
    [
        "{ a { b { c { d } } } }",
        "{ a { ...f } } fragment f on T { b { ...g } } fragment g on T { c { d } }",
        "{ a { ... on T { b { ... on T { c { d } } } } } }",
    ],
)
def test_depth_counts_fields_and_not_fragments(text: str) -> None:
    check_shape(parse(text), Limits(depth=3))
    with pytest.raises(InvalidRequest, match="depth 3, of 2 at most"):
        check_shape(parse(text), Limits(depth=2))


def test_introspection_may_go_deeper() -> None:
    check_shape(parse("{ __schema " + nested(12) + " }"), Limits(depth=1))
    with pytest.raises(InvalidRequest, match="size 13"):
        check_shape(parse("{ __schema " + nested(12) + " }"), Limits(nodes=12))


def test_aliases_count_wherever_they_are() -> None:
    text = "{ a: x b: x ...f ...f } fragment f on T { c: y { d: z } }"
    check_shape(parse(text), Limits(aliases=6))
    with pytest.raises(InvalidRequest, match="aliases 6"):
        check_shape(parse(text), Limits(aliases=5))


def test_fragments_that_multiply_are_counted_without_being_written_out() -> None:
    """Thirty fragments, each of which spreads the next one ten times: 10^30 fields, and no time at all."""
    spreads = [" ".join([f"...f{number + 1}"] * 10) for number in range(30)]
    text = "{ ...f0 } " + " ".join(f"fragment f{n} on T {{ {spread} }}" for n, spread in enumerate(spreads))
    text += " fragment f30 on T { x }"
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="size"):
        check_shape(parse(text), Limits())
    assert time.monotonic() - began < 2


def test_a_fragment_that_spreads_itself_is_left_to_validation() -> None:
    check_shape(parse("{ ...f } fragment f on T { a { ...f } }"), Limits())
