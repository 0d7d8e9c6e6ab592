"""The `carebus` command with stand-ins for the services: `python stand_in_carebus.py STAND_IN ARGUMENTS...`."""

from __future__ import annotations

import sys
from dataclasses import replace

from carebus_local import services

if __name__ == "__main__":
    stand_in = sys.argv.pop(1)
    command = (sys.executable, stand_in)
    services.SERVICES = tuple(replace(service, command=command) for service in services.SERVICES)

    from carebus_cli.main import run

    run()
