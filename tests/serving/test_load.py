"""Many clients, slow ones, dead ones and hostile ones."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import struct
import time
import zlib
from urllib.parse import urlsplit

import httpx
import pytest
from pictures import data_url
from PIL import Image

JSON = {"content-type": "application/json"}


def post(server, path="/v1/chat/completions", **options):
    return httpx.post(f"{server}{path}", trust_env=False, timeout=30, **options)


def is_well(server, body, image):
    """Tell whether the server still answers, and holds no place for those who came before."""
    deadline = time.monotonic() + 40
    while "ift_requests_under_way 0.0" not in httpx.get(f"{server}/metrics", trust_env=False).text:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return post(server, json=body(image)).status_code == 200


def test_64_clients_at_once(server, counted, items, body):
    """Every client gets the answer that it gets alone; they share batches."""
    requests = [body(data_url(items[n % 32].picture()), items[n % 32].prompt, max_tokens=12) for n in range(64)]
    alone = [post(server, json=request).json()["choices"][0]["message"] for request in requests[:8]]
    before = counted("ift_batch_size_count"), counted("ift_batch_size_sum")

    async def everyone():
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            return await asyncio.gather(*(client.post(f"{server}/v1/chat/completions", json=r) for r in requests))

    replies = asyncio.run(everyone())
    assert [reply.status_code for reply in replies] == [200] * 64
    messages = [reply.json()["choices"][0]["message"] for reply in replies]
    assert messages[:8] == alone
    assert messages[:32] == messages[32:]
    batches = counted("ift_batch_size_count") - before[0]
    assert counted("ift_batch_size_sum") - before[1] == 64
    assert batches <= 32


def raw(server, content, head=b""):
    """Open a connection and send a request's bytes."""
    parts = urlsplit(server)
    connection = socket.create_connection((parts.hostname, parts.port))
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + head + b"\r\n" + content
    )  # fmt: skip
    return connection


def test_a_full_queue_answers_429(server, image, body):
    connections = []
    for n in range(80):
        content = json.dumps(body(image, f"Number {n}?", max_tokens=256, temperature=2.0)).encode()
        connections.append(raw(server, content, f"Content-Length: {len(content)}\r\n".encode()))
    deadline = time.monotonic() + 20
    while (refused := post(server, json=body(image))).status_code == 200 and time.monotonic() < deadline:
        pass
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    for connection in connections:
        connection.close()
    assert is_well(server, body, image)


def test_killed_clients_free_their_places(server, counted, image, body):
    before = counted("ift_cancelled_requests_total"), counted("ift_generated_tokens_total")
    connections = []
    for n in range(40):
        content = json.dumps(body(image, f"Write {n}", max_tokens=256, stream=n % 2 == 0, temperature=2.0)).encode()
        connections.append(raw(server, content, f"Content-Length: {len(content)}\r\n".encode()))
    time.sleep(0.3)
    for connection in connections:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as by kill -9
        connection.close()
    assert is_well(server, body, image)
    assert counted("ift_cancelled_requests_total") - before[0] > 10
    assert counted("ift_generated_tokens_total") - before[1] < 40 * 256
    assert counted("ift_rows_running") == 0


def test_slow_readers_hold_nobody_up(server, image, body):
    slow = []
    for n in range(20):
        content = json.dumps(
            body(image, f"Slowly {n}", max_tokens=24, stream=True, logprobs=True, top_logprobs=20)
        ).encode()
        connection = raw(server, content, f"Content-Length: {len(content)}\r\n".encode())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.append(connection)
    assert is_well(server, body, image)
    for connection in slow:
        connection.close()
    assert is_well(server, body, image)


def test_slow_writers_are_cut_off(server, image, body):
    connection = raw(server, b'{"model":', b"Content-Length: 1000\r\n")
    connection.settimeout(10)
    begin = time.monotonic()
    assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert 1.5 < time.monotonic() - begin < 6
    connection.close()
    assert is_well(server, body, image)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Invalid JSON"),
        (b"\x00\xff", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b'{"a":' * 100_000, "Invalid JSON"),
        (b'{"model": "tuned"}', "messages: Field required"),
        (b'{"model": 1e999999, "messages": []}', "model: Input should be a valid string"),
    ],
)
def test_malformed_bodies(server, content, message):
    reply = post(server, content=content, headers=JSON)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "gone"}, 404, "model: 'gone' is not one of tuned, adapted"),
        ({"max_tokens": 0}, 400, "max_tokens: Input should be greater"),
        ({"max_tokens": 100_000}, 400, "expected at most 1024 in all and 256 of answer"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 2}, 400, "n: Input should be 1"),
        ({"stop": ["."]}, 400, "stop"),
        ({"tools": []}, 400, "tools: is not supported"),
        ({"messages": [{"role": "user", "content": "no image"}]}, 400, "0 images, expected exactly one"),
        ({"messages": [{"role": "robot", "content": ""}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x" * 100_000}]}, 400, "0 images"),
    ],
)
def test_requests_that_ask_for_what_cannot_be(server, image, body, change, status, message):  # noqa: PLR0917
    reply = post(server, json={**body(image), **change})
    assert reply.status_code == status
    assert message in reply.json()["error"]["message"]


def bomb(side):
    """A small PNG file that says, truly, that it holds side x side pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = zlib.compress(b"\x00" * (side // 8 + 1) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def png(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


def animated():
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), (90 * n, 0, 0)) for n in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/a.png", "addresses and paths are not opened"),
        ("file:///etc/passwd", "addresses and paths are not opened"),
        ("/etc/passwd", "addresses and paths are not opened"),
        ("data:text/html;base64,AAAA", "expected data:image"),
        ("data:image/png;base64,!!!!", "not base64"),
        ("data:image/png;base64,", "cannot be decoded"),
        (png(b"\x89PNG\r\n\x1a\nrubbish"), "cannot be decoded"),
        (png(bomb(20_000)), "400000000 pixels"),
        (png(bomb(9_000)), "has 9000x9000 pixels, expected at most 4,000,000"),
        (png(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be decoded"),
        (png(animated()), "is animated"),
    ],
)  # fmt: skip
def test_what_is_no_image_and_bombs(server, body, url, message):
    begin = time.monotonic()
    reply = post(server, json=body(url))
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]
    assert time.monotonic() - begin < 2


def test_bodies_are_bounded_however_they_come(server, image, body):
    def drips():
        for _ in range(40):
            yield b" " * 100_000

    for options in ({"content": b" " * 4_000_000}, {"content": drips()}):
        with contextlib.suppress(httpx.WriteError):  # the server stops reading and closes
            assert post(server, headers=JSON, **options).status_code == 413
    assert is_well(server, body, image)


def test_other_web_pages_cannot_use_the_server(server, image, body):
    request = json.dumps(body(image))
    assert post(server, content=request, headers={"content-type": "text/plain"}).status_code == 415
    assert post(server, content=request, headers={**JSON, "host": "evil.example"}).status_code == 403
    reply = httpx.get(server, trust_env=False)
    assert "access-control-allow-origin" not in reply.headers
    assert "default-src 'none'" in reply.headers["content-security-policy"]
