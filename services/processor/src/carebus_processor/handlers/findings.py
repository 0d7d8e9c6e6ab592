"""Values outside their range: laboratory results by their own reference range, vital signs by NEWS2.

Vital signs of adults are flagged outside the band that scores 0 in the National Early Warning Score 2 (Royal
College of Physicians, London, 2017, chart 1; oxygen saturation on scale 1). NEWS2 leaves out diastolic pressure:
below 60 mmHg counts as hypotension (NHLBI), 90 mmHg and above as hypertension (WHO).
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Final, NamedTuple

from carebus_common.contracts.processed import Flag

__all__ = ["VITAL_SIGNS", "abnormal_vital_signs", "lab_result_outside_range"]


class Band(NamedTuple):
    """The inclusive band of values that are not flagged."""

    low: float | None
    high: float | None
    unit: str


VITAL_SIGNS: Final = {
    "respiratoryRate": Band(12, 20, "/min"),
    "oxygenSaturation": Band(96, None, "%"),
    "systolicBloodPressure": Band(111, 219, "mm[Hg]"),
    "diastolicBloodPressure": Band(60, 89, "mm[Hg]"),
    "heartRate": Band(51, 90, "/min"),
    "bodyTemperature": Band(36.1, 38.0, "Cel"),
}


def abnormal_vital_signs(data: dict[str, Any]) -> tuple[Flag, ...]:
    """One flag for each vital sign of `data` outside its band, in the order of `VITAL_SIGNS`."""
    flags = []
    for name, band in VITAL_SIGNS.items():
        value = _number(data.get(name))
        if value is not None and (direction := _outside(value, band.low, band.high)):
            flags.append(
                Flag(
                    kind="vital-signs",
                    code=name,
                    value=value,
                    unit=band.unit,
                    low=band.low,
                    high=band.high,
                    direction=direction,
                )
            )
    return tuple(flags)


def lab_result_outside_range(data: dict[str, Any]) -> tuple[Flag, ...]:
    """A flag if the numeric `value` is outside `referenceRange` {low, high}, both inclusive and optional."""
    value = _number(data.get("value"))
    bounds = data.get("referenceRange")
    if value is None or not isinstance(bounds, dict):
        return ()
    low, high = _number(bounds.get("low")), _number(bounds.get("high"))
    direction = _outside(value, low, high)
    if direction is None:
        return ()
    code, unit = data.get("code"), data.get("unit")
    return (
        Flag(
            kind="lab-result",
            code=code[:64] if isinstance(code, str) else "unknown",
            value=value,
            unit=unit[:32] if isinstance(unit, str) else None,
            low=low,
            high=high,
            direction=direction,
        ),
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if isfinite(value) else None


def _outside(value: float, low: float | None, high: float | None) -> Any:
    if low is not None and value < low:
        return "low"
    if high is not None and value > high:
        return "high"
    return None
