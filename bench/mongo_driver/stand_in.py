"""A server that speaks enough of MongoDB's wire protocol to answer at once, or after a time: the rest is the driver.

    python stand_in.py PORT MILLISECONDS

The embedded store takes longer for a call than either driver; this takes what it is told. It stores nothing: an
insert or update succeeds, and a find returns as many of the documents below as its limit says, in one batch.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Any

import bson
import uvloop
from measure import document

HEADER = struct.Struct("<iiii")
OP_MSG, OP_REPLY, OP_QUERY = 2013, 1, 2004
DELAY = int(sys.argv[2]) / 1000
HELLO = {
    "ismaster": True,
    "isWritablePrimary": True,
    "helloOk": True,
    "maxBsonObjectSize": 16 << 20,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 25,
    "ok": 1.0,
}


class Connection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.held = b""

    def data_received(self, data: bytes) -> None:
        self.held += data
        while len(self.held) >= 16:
            length, request_id, _, op = HEADER.unpack_from(self.held)
            if len(self.held) < length:
                return
            message, self.held = self.held[:length], self.held[length:]
            if op == OP_QUERY:
                self.reply(request_id, OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(HELLO))
            elif not DELAY:
                self.reply(request_id, OP_MSG, struct.pack("<ib", 0, 0) + answer(message))
            else:
                body = struct.pack("<ib", 0, 0) + answer(message)
                asyncio.get_running_loop().call_later(DELAY, self.reply, request_id, OP_MSG, body)

    def reply(self, request_id: int, op: int, body: bytes) -> None:
        self.transport.write(HEADER.pack(16 + len(body), 0, request_id, op) + body)


def answer(message: bytes) -> bytes:
    size = struct.unpack_from("<i", message, 21)[0]
    # Lazily: a batch of documents need not be decoded to be confirmed.
    command = bson.decode(message[21 : 21 + size])
    name = next(iter(command))
    if name == "find":
        return FOUND.get(command.get("limit", 0)) or FOUND.setdefault(command["limit"], found(command["limit"]))
    if name == "insert":
        return WRITTEN
    if name == "update":
        return WRITTEN
    return bson.encode(HELLO)


def found(limit: int) -> bytes:
    batch = [document(number) for number in range(limit)]
    return bson.encode({"cursor": {"id": 0, "ns": "bench.rows", "firstBatch": batch}, "ok": 1.0})


FOUND: dict[int, bytes] = {}
WRITTEN = bson.encode({"n": 1, "nModified": 1, "ok": 1.0})


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
