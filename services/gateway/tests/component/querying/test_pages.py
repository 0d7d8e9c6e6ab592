"""Cursor connections over pages that have one cursor each."""

from __future__ import annotations

from typing import Any

import pytest

from .kit import Claims, claim_id, code, data

PAGE = """query ($first: Int! = 20, $after: String) { claims(first: $first, after: $after) {
    edges { cursor node { claimId } } pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""


async def test_pages_follow_each_other_to_the_end(front: Any, claims: Claims) -> None:
    seen, after, pages = [], None, 0
    while True:
        page = (await data(front, PAGE, {"first": 20, "after": after}))["claims"]
        assert page["pageInfo"]["hasPreviousPage"] == (after is not None)
        seen += [edge["node"]["claimId"] for edge in page["edges"]]
        pages, after = pages + 1, page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert seen == [claim_id(number) for number in range(50)]
    assert len(front.claims.requests) == pages == 3


@pytest.mark.parametrize("place", range(20))
async def test_one_goes_on_from_any_edge(front: Any, claims: Claims, place: int) -> None:
    second = (await data(front, PAGE, {"after": (await data(front, PAGE))["claims"]["pageInfo"]["endCursor"]}))[
        "claims"
    ]

    page = (await data(front, PAGE, {"first": 4, "after": second["edges"][place]["cursor"]}))["claims"]

    expected = [claim_id(number) for number in range(21 + place, 25 + place)]
    assert [edge["node"]["claimId"] for edge in page["edges"]] == expected
    further = (await data(front, PAGE, {"first": 2, "after": page["pageInfo"]["endCursor"]}))["claims"]
    assert further["edges"][0]["node"]["claimId"] == claim_id(25 + place)


async def test_the_last_edge_is_followed_by_nothing(front: Any, claims: Claims) -> None:
    last = (await data(front, PAGE, {"first": 200}))["claims"]
    assert not last["pageInfo"]["hasNextPage"]

    page = (await data(front, PAGE, {"after": last["pageInfo"]["endCursor"]}))["claims"]

    assert (page["edges"], page["pageInfo"]["hasNextPage"], page["pageInfo"]["endCursor"]) == ([], False, None)


async def test_an_edge_that_is_gone_is_told_and_not_skipped(front: Any, claims: Claims) -> None:
    cursor = (await data(front, PAGE, {"first": 5}))["claims"]["edges"][2]["cursor"]
    del claims.claims[2]

    assert await code(front, PAGE, {"after": cursor}) == (200, "invalid-request")


@pytest.mark.parametrize("after", ["", "x", "e.", "e.bnVsbA", "e.W251bGwsMV0", "e.ä", "e." + "A" * 5000, "p" * 3000])
async def test_a_cursor_of_nobody_is_refused(front: Any, claims: Claims, after: str) -> None:
    assert await code(front, PAGE, {"after": after}) == (200, "invalid-request")
    assert not front.claims.requests


@pytest.mark.parametrize("first", [0, -1, 201])
async def test_a_page_has_bounds(front: Any, claims: Claims, first: int) -> None:
    assert await code(front, PAGE, {"first": first}) == (200, "invalid-request")
    assert not front.claims.requests
