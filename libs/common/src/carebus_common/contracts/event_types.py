"""What `data` holds in events of the known types.

A schema binds the fields it names: each may be absent or null, and if it is there it has to be of its kind. Whatever
else a sender puts into `data` is stored as it is, and so are events of types that are not known.

Names are camelCase on the wire, codes are of the system that `system` names (SNOMED CT, LOINC, RxNorm, CVX),
and units are UCUM.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, Strict, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from carebus_common.contracts.event import canonical_type

__all__ = ["DATA_SCHEMAS", "data_errors"]


def _measured(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("must be a number or text")  # noqa: TRY004 - pydantic collects ValueErrors only
    return value


def _found(value: Any) -> Any:
    return value if isinstance(value, bool) else _measured(value)


Text = Annotated[str, Strict(), Field(max_length=4000)]
Code = Annotated[str, Strict(), Field(max_length=256)]
Number = Annotated[float, Strict()]
NotNegative = Annotated[float, Strict(), Field(ge=0)]
Count = Annotated[int, Strict(), Field(ge=0)]
Found = Annotated[float | str | bool, PlainValidator(_found, json_schema_input_type=float | str | bool)]
Measured = Annotated[float | str, PlainValidator(_measured, json_schema_input_type=float | str)]


class _Data(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="allow", frozen=True)


class _Coded(_Data):
    """What most clinical entries share."""

    encounter_id: Code | None = None
    code: Code | None = None
    system: Code | None = None
    description: Text | None = None


class Admission(_Coded):
    """A stay opens. Its id is `stayId`, else `encounterId`, else the eventId."""

    stay_id: Code | None = None
    location: Text | None = None
    ward: Text | None = None
    unit: Text | None = None


class Transfer(_Coded):
    """The open stay moves to `to`, or to `location`."""

    to: Text | None = None
    location: Text | None = None
    ward: Text | None = None
    unit: Text | None = None


class Discharge(_Coded):
    """The open stay closes."""

    disposition: Text | None = None


class TreatmentInitiated(_Coded):
    """A treatment joins the open stay."""

    name: Text | None = None
    treatment: Text | None = None


class MedicationOrdered(_Coded):
    """An order joins the open stay."""

    name: Text | None = None
    medication: Text | None = None
    dispenses: Count | None = None


class ReferenceRange(_Data):
    """The inclusive bounds of what is normal; either may be open."""

    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _in_order(self) -> ReferenceRange:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low must not be above high")
        return self


class LabResult(_Coded):
    """A numeric `value` outside `referenceRange` is flagged; a text such as `Negative` is stored."""

    value: Measured | None = None
    unit: Code | None = None
    reference_range: ReferenceRange | None = None


class VitalSigns(_Coded):
    """Per minute, percent, mmHg and degrees Celsius; the abnormal ones are flagged."""

    respiratory_rate: NotNegative | None = None
    oxygen_saturation: Annotated[float, Strict(), Field(ge=0, le=100)] | None = None
    systolic_blood_pressure: NotNegative | None = None
    diastolic_blood_pressure: NotNegative | None = None
    heart_rate: NotNegative | None = None
    body_temperature: Number | None = None


class Observation(_Coded):
    """Any other measurement or finding."""

    value: Found | None = None
    unit: Code | None = None


class Encounter(_Coded):
    """A contact with the hospital that is no stay."""

    encounter_class: Code | None = None


class Condition(_Coded):
    """A diagnosis; `onset` and `abatement` are dates or RFC 3339 times."""

    onset: Code | None = None
    abatement: Code | None = None


class Procedure(_Coded):
    """A procedure that was performed."""


class Immunization(_Coded):
    """A vaccine that was given."""


DATA_SCHEMAS: Final[dict[str, type[BaseModel]]] = {
    "admission": Admission,
    "condition": Condition,
    "discharge": Discharge,
    "encounter": Encounter,
    "immunization": Immunization,
    "lab-result": LabResult,
    "medication-ordered": MedicationOrdered,
    "observation": Observation,
    "procedure": Procedure,
    "transfer": Transfer,
    "treatment-initiated": TreatmentInitiated,
    "vital-signs": VitalSigns,
}
_VALIDATORS: Final = {name: schema.__pydantic_validator__ for name, schema in DATA_SCHEMAS.items()}


def data_errors(event_type: str, data: dict[str, Any]) -> list[ErrorDetails]:
    """Pydantic's errors for `data` of an event of this type, their locations beginning with `data`; [] if it is fine.

    They hold the offending values, as pydantic's do: show them through `http.envelopes.problems_of` only.
    """
    validator = _VALIDATORS.get(canonical_type(event_type))
    if validator is None:
        return []
    try:
        validator.validate_python(data)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_context=False)
        for error in errors:
            error["loc"] = ("data", *error["loc"])
        return errors
    return []
