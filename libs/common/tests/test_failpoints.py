"""Failpoints strike where they are told to, and nowhere else."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from carebus_common import failpoints
from carebus_common.failpoints import NAMES, FailpointsRefused, armed

PROGRAM = """
from carebus_common.failpoints import failpoint
for n in range(1, 11):
    print(n, flush=True)
    failpoint("before-emit")
"""


def run(**environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environ, timeout=30, check=False
    )


def test_without_the_variable_a_failpoint_is_an_empty_function() -> None:
    assert failpoints.failpoint is failpoints._pass_by
    assert armed({"CAREBUS_FAILPOINTS": "  "}) is None


def test_a_process_dies_by_sigkill_at_the_pass_it_was_told_and_says_so() -> None:
    ended = run(CAREBUS_FAILPOINTS="after-emit=crash@n1, before-emit=crash@n3", CAREBUS_ENVIRONMENT="test")
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.split() == ["1", "2", "3"]
    assert ended.stderr == "failpoint before-emit: crash at pass 3\n"


def test_a_probability_of_one_strikes_at_once_and_of_zero_never() -> None:
    certain = run(CAREBUS_FAILPOINTS="before-emit=crash@1", CAREBUS_ENVIRONMENT="development")
    assert (certain.returncode, certain.stdout) == (-signal.SIGKILL, "1\n")
    never = run(CAREBUS_FAILPOINTS="before-emit=crash@0", CAREBUS_ENVIRONMENT="development")
    assert (never.returncode, len(never.stdout.split())) == (0, 10)


def test_a_stopped_process_goes_on_when_it_is_told_to() -> None:
    environ = {"CAREBUS_FAILPOINTS": "before-emit=stop@n2", "CAREBUS_ENVIRONMENT": "test"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=-1, stderr=-1, text=True, env=environ)
    assert process.stderr is not None
    assert process.stderr.readline() == "failpoint before-emit: stop at pass 2\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, len(output.split())) == (0, 10)


@pytest.mark.parametrize("environment", [None, "production", "", "Test"])
def test_a_process_that_is_not_said_to_be_a_test_does_not_start(environment: str | None) -> None:
    environ = {"CAREBUS_FAILPOINTS": "before-emit=crash@n3"}
    ended = run(**environ, **({} if environment is None else {"CAREBUS_ENVIRONMENT": environment}))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "CAREBUS_ENVIRONMENT" in ended.stderr


@pytest.mark.parametrize(
    "text", ["before-emit", "before-emit=crash", "no-such=crash@1", "before-emit=nap@1", "a=b@n0,"]
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(FailpointsRefused, match="not understood"):
        armed({"CAREBUS_FAILPOINTS": text, "CAREBUS_ENVIRONMENT": "test"})


def test_an_armed_process_may_be_armed_with_something_else() -> None:
    strike = armed({"CAREBUS_FAILPOINTS": "before-emit=crash@n2", "CAREBUS_ENVIRONMENT": "test"})
    assert strike is not None
    strike("before-emit")
    strike.rules = ""
    strike("before-emit")
    strike.rules = "before-emit=crash@n2"
    strike("before-emit")
    with pytest.raises(FailpointsRefused, match="not understood"):
        strike.rules = "nonsense"
    assert strike.rules == "before-emit=crash@n2"


def test_an_armed_process_knows_every_failpoint_by_name() -> None:
    strike = armed({"CAREBUS_FAILPOINTS": "before-emit=crash@0", "CAREBUS_ENVIRONMENT": "test"})
    assert strike is not None
    for name in NAMES:
        strike(name)
    with pytest.raises(FailpointsRefused, match="no such failpoint"):
        strike("misspelt")
