"""What no JSON Schema can say, so that schemathesis takes a right answer for a wrong one: dropped here, one by one."""

from __future__ import annotations

from typing import Any, Final

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.graphql.checks import GraphQLClientError, GraphQLServerError
from schemathesis.openapi.checks import RejectedPositiveData

# Rules that a request may break though it follows the document, by the details of the 400.
BEYOND_SCHEMAS: Final = frozenset(
    {
        # Strict JSON in free-form objects. JSON Schema does not tell numbers apart by how they are written.
        "integer-beyond-64-bits",
        "number-overflow",
        "forbidden-key",
        "too-deep",
        # Cursors are sealed.
        "a cursor from a list's page.next",
        "a cursor of a list with the same filters",
        # Of two fields, or of a field and the clock.
        "not before `since`",
        "not before `from`",
        "not in the future",
        "the patient's hash, or a patientId together with organizationId",
        "not below `minTotal`",
        "one of `set`, `status`, `assignedProcessorId` and `payment`",
        # Of a header and the body.
        "the version that was read, here or as If-Match",
        "the same as If-Match",
        # Its shortest If-Match is `0`, whatever pattern the document has.
        'one ETag, such as "3"',
        # RFC 3339 knows times that UTC, within the years a store can keep, does not.
        "must lie within the years 1 to 9999 in UTC",
    }
)


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Batches of as many items as there may be keep the store busy for minutes; the services' own tests send those."""
    return not (isinstance(case.body, list) and len(case.body) > 500)


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: schemathesis.Case[Any], response: Response
) -> bool:
    """False drops the failure."""
    if isinstance(failure, RejectedPositiveData) and response.status_code == 400:
        if case.operation.label == "POST /graphql":
            return False  # a query follows GraphQL's schema, by which `graphql` is tried
        rules = {detail["rule"] for detail in response.json()["error"]["details"]}
        return not rules or not rules <= BEYOND_SCHEMAS
    if isinstance(failure, GraphQLClientError | GraphQLServerError):
        # GraphQL's schema knows neither bounds nor costs, and says of a refused field in a 200 what REST says with 4xx.
        codes = {error["extensions"]["code"] for error in response.json()["errors"]}
        return not codes <= {"invalid-request", "not-allowed", "not-found"}
    if isinstance(failure, AcceptedNegativeData) and response.status_code in (200, 207):
        return not refuses_an_item(response.json())
    return True


def refuses_an_item(answer: dict[str, Any]) -> bool:
    """A batch is refused item by item: the answer to the whole is a success, in which the offender has its error."""
    items = answer["data"]
    if isinstance(items, dict):
        items = items.get("results")
    return isinstance(items, list) and any(isinstance(item, dict) and "error" in item for item in items)
