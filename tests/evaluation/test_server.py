"""The server predictor against a real local server that behaves in every way a server can."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from ift_components.config import load_config
from ift_components.errors import ConfigError, UserError
from ift_components.evaluation.predictors import ServerPredictor, Work
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.settings import EvalSettings


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port_file = tmp_path_factory.mktemp("server") / "port"
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("fake_server.py")), str(port_file)])
    deadline = time.monotonic() + 30
    while not port_file.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port_file.read_text()}/v1"
    process.terminate()
    process.wait()


def ask(server, model, items, **options):
    predictor = ServerPredictor(server, model, **{"backoff": 0.01, "retries": 2, **options})
    return {work.item.id: answer for work, answer in predictor.answer([Work(item) for item in items])}


def seen(server):
    return httpx.get(server, trust_env=False).json()


def test_answers_and_concurrency(server, items):
    answers = ask(server, "good", items[:16], concurrency=4, max_side=32)
    assert len(answers) == 16
    for item in items[:16]:
        assert answers[item.id].generated == f"The correct answer is {'AB'[len(item.prompt) % 2]}. 32x32 \u2705"
    assert seen(server)["seen"]["good"] == 16
    assert 2 <= seen(server)["most"] <= 4


def test_passing_trouble_is_tried_again(server, items):
    answers = ask(server, "flaky", items[:2], concurrency=1, retries=4)
    assert len(answers) == 2
    assert seen(server)["seen"]["flaky"] == 6


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "html",
            r"no answer to '.*' in 3 attempts; the last: a reply that is no chat completion \(text/html\): <html>",
        ),
        ("nothing", r"in 3 attempts; the last: a reply that is no chat completion \(application/json\)"),
        ("null", "in 3 attempts; the last: a reply without text"),
        ("slow", r"in 3 attempts; the last: no reply within 0.3 s"),
    ],
)
def test_lasting_trouble_stops_with_a_clear_error(server, items, model, message):
    with pytest.raises(UserError, match=message):
        ask(server, model, items[:1], timeout=0.3)
    assert seen(server)["seen"][model] == 3


def test_no_server_at_all(items):
    with pytest.raises(UserError, match=r"gave no answer .* no connection"):
        ask("http://127.0.0.1:9/v1", "good", items[:1])


def test_keys_come_from_the_environment(server, items, monkeypatch):
    with pytest.raises(UserError, match=r"refuses the request with status 401: .*invalid api key"):
        ask(server, "key", items[:1])
    monkeypatch.setenv("EVAL_TEST_KEY", "secret")
    assert len(ask(server, "key", items[:1], api_key_env="EVAL_TEST_KEY")) == 1
    with pytest.raises(ConfigError, match="environment variable EVAL_TEST_KEY_2 is not set"):
        ServerPredictor(server, "key", api_key_env="EVAL_TEST_KEY_2")


def test_a_whole_evaluation_keeps_what_it_got(server, prepared, world, tmp_path):
    """The server refuses from the sixth question on: five lines are kept, and another start asks only for the rest."""
    component = "predictor._component_=ift_components.evaluation.predictors.ServerPredictor"
    given = [component, f"predictor.base_url={server}", "predictor.model=refuses", "predictor.concurrency=1"]
    given += [
        "checkpoint_dir=null",
        f"data={prepared}",
        f"output_dir={tmp_path / 'out'}",
        "scoring=generate",
        "bootstrap=100",
        "limit=12",
    ]
    cfg = load_config("tiny_eval.yaml", given, EvalSettings)
    with pytest.raises(UserError, match=r"refuses the request with status 400: .*takes no images"):
        Evaluation(cfg, world).run()
    kept = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(kept) == 5
    with pytest.raises(UserError, match="refuses"):
        Evaluation(cfg, world).run()
    assert seen(server)["seen"]["refuses"] == 7
    assert json.loads(kept[0])["generated"].endswith("\u2705")
    good = load_config(
        "tiny_eval.yaml", [*given, "predictor.model=good", f"output_dir={tmp_path / 'good'}"], EvalSettings
    )
    results = Evaluation(good, world).run()
    assert results["questions"] == 12
    assert results["parsers"]["paper"]["unparsed"] == 12  # the authors' parser takes nothing after the letter
    assert results["parsers"]["strict"]["unparsed"] == 0
    assert results["weights"] == {"predictor": "server", "base_url": server, "model": "good", "sha256": None}


def test_values_are_checked(server):
    with pytest.raises(ConfigError, match="does not start with http"):
        ServerPredictor("localhost:8000", "m")
    with pytest.raises(ConfigError, match="concurrency: 0 is below 1"):
        ServerPredictor(server, "m", concurrency=0)
