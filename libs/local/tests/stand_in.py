"""A service's stand-in: answers /health on its ports, tells its environment, ends when told to.

GET /health, /health/live   200, or 503 once /sicken was asked
GET /env                    its CAREBUS_* variables and process id, as JSON
GET /sicken                 from now on it is not healthy
"""

from __future__ import annotations

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sick = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"{}"
        if self.path == "/sicken":
            sick.set()
        if self.path == "/env":
            found = {name: value for name, value in os.environ.items() if name.startswith("CAREBUS_")}
            body = json.dumps({"pid": os.getpid(), **found}).encode()
        if sick.is_set() and self.path == "/health":
            body = json.dumps({"error": {"details": [{"path": "store", "rule": "no answer in time"}]}}).encode()
        self.send_response(503 if sick.is_set() and self.path == "/health" else 200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


if __name__ == "__main__":
    print("stand-in ready", flush=True)
    management = Server(("127.0.0.1", int(os.environ["CAREBUS_MANAGEMENT_PORT"])), Handler)
    threading.Thread(target=management.serve_forever, daemon=True).start()
    Server(("127.0.0.1", int(os.environ["CAREBUS_PORT"])), Handler).serve_forever()
