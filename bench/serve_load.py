"""Clients of a server, in a process of their own: `python serve_load.py PORT BODIES`, then a line `CLIENTS REQUESTS`
after the other on standard input, each answered with a line of JSON.

BODIES is a safetensors file of uint8 tensors, each the body of a request. Every client has one connection and sends its
next request when the last one is answered; every answer is checked for its last line.
"""

import asyncio
import json
import sys
import time

from safetensors.numpy import load_file

HEAD = (
    "POST /v1/invert HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    "Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n"
)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> dict:
    """One request on a connection that stays open; what its last line says."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert b" 200 " in head.split(b"\r\n")[0], head
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    body = await reader.readexactly(int(length.partition(b":")[2]))
    return json.loads(body.split(b"\n")[-2])


async def load(port: int, requests: list[bytes], clients: int, count: int) -> dict:
    """`count` requests by so many clients: seconds for all, and those of each."""
    left, took, certified = iter(range(count)), [], 0

    async def client() -> None:
        nonlocal certified
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in left:
            start = time.perf_counter()
            last = await ask(reader, writer, requests[number % len(requests)])
            certified += last["certified"]
            took.append(time.perf_counter() - start)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return {"seconds": time.perf_counter() - start, "took": sorted(took), "certified": certified}


def main() -> None:
    port, path = int(sys.argv[1]), sys.argv[2]
    bodies = [body.tobytes() for body in load_file(path).values()]
    requests = [HEAD.format(len(body)).encode() + body for body in bodies]
    for line in sys.stdin:
        clients, count = map(int, line.split())
        print(json.dumps(asyncio.run(load(port, requests, clients, count))), flush=True)


if __name__ == "__main__":
    main()
