"""A small OpenAI-compatible server as a process of its own (fake_server.py PORT_FILE); the model decides what it does."""

import base64
import io
import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

LOCK = threading.Lock()
SEEN: Counter[str] = Counter()
REQUESTS: list[dict] = []
STATE = {"now": 0, "most": 0}
HTML = b"<html><body>Bad gateway</body></html>"


def look(request):
    """Read the request as a real server would; return the prompt and the image's size."""
    (message,) = request["messages"]
    picture, text = message["content"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return text["text"], Image.open(io.BytesIO(base64.b64decode(data))).size


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, status, body, kind="application/json", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply(200, json.dumps({"seen": SEEN, "most": STATE["most"], "requests": REQUESTS}).encode())

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = request["model"]
        prompt, size = look(request) if model != "drips" else ("", ())
        with LOCK:
            REQUESTS.append({key: request.get(key) for key in ("model", "seed", "temperature", "top_p")})
            SEEN[model] += 1
            number = SEEN[model]
            STATE["now"] += 1
            STATE["most"] = max(STATE["most"], STATE["now"])
        try:
            self.answer(model, number, prompt, size, request.get("seed"))
        finally:
            with LOCK:
                STATE["now"] -= 1

    def drip(self):
        """Send a byte now and then: no single read takes long, and the reply never ends."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(600):
            time.sleep(0.1)
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                return
        return

    def answer(self, model, number, prompt, size, seed):  # noqa: PLR0911, PLR0912 (one return a way to behave)
        if model == "key" and self.headers.get("Authorization") != "Bearer secret":
            return self.reply(401, b'{"error": "invalid api key"}')
        if model == "html":
            return self.reply(200, HTML, "text/html")
        if model == "nothing":
            return self.reply(200, b"")
        if model == "null":
            return self.reply(200, b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}')
        if model == "refuses" and number > 5:
            return self.reply(400, b'{"error": "this model takes no images"}')
        if (model == "dies" and number > 5) or (model == "recovers" and 5 < number <= 12):
            return self.reply(503, HTML, "text/html")
        if model == "gone":
            return self.reply(404, b'{"error": "no such model"}')
        if model == "echoes-key":
            return self.reply(401, json.dumps({"error": f"bad {self.headers.get('Authorization')}"}).encode())
        if model == "drips":
            return self.drip()
        if model == "slow":
            time.sleep(1.5)
        if model == "flaky" and number <= 4:  # overloaded, broken, a web page, a lost connection; then well
            if number == 1:
                return self.reply(429, b"{}", Retry_After="0")
            if number == 2:
                return self.reply(503, HTML, "text/html")
            if number == 3:
                return self.reply(200, HTML, "text/html")
            return self.connection.close()
        time.sleep(0.05)
        if model == "sampled":
            text = f"The correct answer is {'ABCD'[seed % 4]}."
            return self.reply(200, json.dumps({"choices": [{"message": {"content": text}}]}).encode())
        text = f"The correct answer is {'AB'[len(prompt) % 2]}. {size[0]}x{size[1]} \u2705"
        return self.reply(200, json.dumps({"choices": [{"message": {"content": text}}]}).encode())


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port_file = Path(sys.argv[1])
    port_file.with_suffix(".tmp").write_text(str(server.server_port))
    port_file.with_suffix(".tmp").rename(port_file)
    server.serve_forever()
