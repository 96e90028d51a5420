"""Starting a server: what is refused, keys, privacy, logs."""

import json
import shutil

import httpx
import pytest

from ift_components.config import load_config
from ift_components.errors import ConfigError
from ift_components.serving.samples import load_samples
from ift_components.serving.settings import ServeSettings, check_settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["host=0.0.0.0"], "host: 0.0.0.0 can be reached from other machines; set api_key_env"),
        (["host=0.0.0.0", "api_key_env=NO_SUCH_KEY"], "environment variable NO_SUCH_KEY is not set"),
        (["others.tuned={}"], "others.tuned: is the first model's name"),
        (["others.b.tile_padding=some"], "others.b.tile_padding: 'some' is not one of none, meta, paper"),
        (["queue_limit=0"], "queue_limit: 0 is below 1"),
        (["checkpoint_dir=null"], "checkpoint_dir: give the checkpoint"),
        (["port=70000"], "port: 70000 is not between"),
    ],
)
def test_settings(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(load_config("tiny_serve.yaml", overrides, ServeSettings))


def test_an_address_that_is_taken_is_an_error_of_one_line(server, tune, tmp_path):
    port = server.rpartition(":")[2]
    result = tune("ift_serve_recipe", "--config", "tiny_serve.yaml", f"port={port}", cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert f"error: port: 127.0.0.1:{port} cannot be listened at (Address already in use)" in result.stderr


@pytest.fixture(scope="module")
def private(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("private") / "prepared"
    shutil.copytree(prepared, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "private": True}))
    return folder


def test_private_samples_are_for_this_machine_alone(private, prepared):
    here = load_samples(str(private), "test", 5, is_local=True)
    assert len(here.images) == 5
    assert [picture[:4] for picture in here.pictures] == [b"\x89PNG"] * 5
    elsewhere = load_samples(str(private), "test", 5, is_local=False)
    assert elsewhere.images == []
    assert elsewhere.pictures == []
    assert "private" in elsewhere.note
    assert elsewhere.attributes == here.attributes
    assert len(load_samples(str(prepared), "test", 5, is_local=False).images) == 5


def test_a_server_for_others_needs_its_key_and_logs_nothing(serve, private, image, body):
    """And a request is logged when that is asked for."""
    options = ["host=0.0.0.0", "api_key_env=SERVE_KEY", f"samples={private}"]
    address, process = serve(*options, environment={"SERVE_KEY": "secret-key"})
    key = {"authorization": "Bearer secret-key"}
    whispered = "whispered words"
    with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
        assert client.get("/").status_code == 200
        for path in ("/v1/models", "/metrics", "/page", "/samples/0"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer secret"}).status_code == 401
        assert client.post("/v1/chat/completions", json=body(image)).status_code == 401
        assert client.get("/samples/0", headers=key).status_code == 404
        assert client.get("/page", headers=key).json()["samples"] == []
        assert client.post("/v1/chat/completions", json=body(image, whispered), headers=key).status_code == 200
        assert client.post("/v1/chat/completions", json=body(whispered, whispered), headers=key).status_code == 400
        assert (
            client.post("/v1/chat/completions", json=body(image, whispered, n=whispered), headers=key).status_code
            == 400
        )
        metrics = client.get("/metrics", headers=key).text
    process.terminate()
    assert process.wait(20) in (0, -15)
    logged = (process.folder / "out").read_text() + (process.folder / "err").read_text()
    assert whispered not in logged + metrics
    assert "secret-key" not in logged
    assert 'ift_requests_total{endpoint="chat",status="400"} 2.0' in metrics
    address, process = serve("samples=null", "log_requests=true")
    assert httpx.post(f"{address}/v1/chat/completions", json=body(image, whispered), trust_env=False).status_code == 200
    process.terminate()
    process.wait(20)
    line = json.loads((process.folder / "err").read_text().splitlines()[-1])
    assert whispered in line["prompt"]
    assert line["status"] == 200
