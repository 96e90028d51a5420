"""A server of two miniatures in a process of its own, as a user starts it."""

import os
import re
import subprocess
import time

import httpx
import pytest
from launching import tune_command
from pictures import data_url
from PIL import Image

from ift_components.evaluation.items import question_items


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """A function that starts a server by `tune run` and returns its address and its process."""
    processes = []

    def start(*overrides, environment=None):
        folder = tmp_path_factory.mktemp("server")
        command = tune_command("ift_serve_recipe", "--config", "tiny_serve.yaml", "port=0", *overrides)
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen(
                command, cwd=folder, stdout=out, stderr=err,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )  # fmt: skip
        processes.append(process)
        process.folder = folder
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://\S+", (folder / "out").read_text())):
            assert process.poll() is None, (folder / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = found.group().replace("//0.0.0.0:", "//127.0.0.1:")
        while True:  # the socket is bound, the loop may not run yet
            try:
                httpx.get(f"{address}/health", timeout=60, trust_env=False).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.05)
        return address, process

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(20)


@pytest.fixture(scope="session")
def adapter(tune, prepared, tmp_path_factory):
    """An adapter with which the miniature answers otherwise."""
    out = tmp_path_factory.mktemp("lora")
    options = [f"data={prepared}", f"output_dir={out / 'run'}", "max_steps=3", "batch_size=8", "optimizer.lr=0.03"]
    tune("ift_recipe", "--config", "tiny_lora.yaml", *options, "num_workers=0", cwd=out)
    return out / "run" / "adapter"


@pytest.fixture(scope="session")
def server(serve, prepared, adapter):
    """A server's address; `tuned` is the shipped checkpoint, `adapted` an adapter on it."""
    overrides = [
        f"samples={prepared}",
        f"others.adapted.adapter_dir={adapter}",
        "queue_limit=80",
        "max_pixels=4000000",
        "max_body_bytes=3000000",
    ]
    return serve(*overrides, "body_seconds=2", "split=test", "image_cache=4")[0]


@pytest.fixture(scope="session")
def items(prepared):
    return question_items(prepared, "test", "shapes", max_new_tokens=24)


@pytest.fixture(scope="session")
def image():
    """A picture as a data URL."""
    return data_url(Image.effect_noise((90, 60), 80).convert("RGB"))


@pytest.fixture(scope="session")
def body():
    """A function that makes a request's body."""

    def make(image, text="What is this?", **more):
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
        return {"model": "tuned", "messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}

    return make


@pytest.fixture
def counted(server):
    """A function that reads a counter of the server's metrics."""

    def read(name):
        lines = httpx.get(f"{server}/metrics", trust_env=False).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(re.escape(name) + r"[ {]", line))

    return read
