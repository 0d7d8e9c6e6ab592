"""Run a command that dies with its supervisor: `python -I -S guard.py SUPERVISOR_PID COMMAND...`.

Started as a file, without site-packages, because it runs before every child and so should cost milliseconds.
On Linux the kernel kills the command when the supervisor's thread that started it ends, even by SIGKILL.
Elsewhere there is no such call, and the next start cleans up what was left (see `state.clean_up`).
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def guarded(command: Sequence[str]) -> list[str]:
    """The command that runs `command` guarded, as a child of this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    supervisor, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != supervisor:  # It died before the call above, which then never fires.
            sys.exit("the supervisor is gone")
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error.strerror}")


if __name__ == "__main__":
    main()
