"""The server predictor against a real local server that behaves in every way a server can."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from launching import launch

from ift_components.config import load_config
from ift_components.errors import ConfigError, UserError
from ift_components.evaluation.predictors import ServerPredictor, Work
from ift_components.evaluation.records import Item, Prediction
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.settings import EvalSettings

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


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
        ("html", r"gave no answer in 3 attempts; the last: a reply that is no chat completion \(text/html\): <html>"),
        ("nothing", r"in 3 attempts; the last: a reply that is no chat completion \(application/json\)"),
        ("slow", r"in 3 attempts; the last: no reply within 0.3 s"),
    ],
)
def test_a_server_that_never_answered_stops_with_a_clear_error(server, items, model, message):
    with pytest.raises(UserError, match=message):
        ask(server, model, items[:1], timeout=0.3)
    assert seen(server)["seen"][model] == 3


def test_no_server_at_all(items):
    with pytest.raises(UserError, match=r"gave no answer .* no connection"):
        ask("http://127.0.0.1:9/v1", "good", items[:1])


def test_a_wrong_model_stops_at_once(server, items):
    with pytest.raises(UserError, match=r"refuses every request for 'gone' with status 404: .*no such model"):
        ask(server, "gone", items[:8], concurrency=1)
    assert seen(server)["seen"]["gone"] == 1


def test_a_dripping_server_meets_a_total_deadline(server, items):
    """Every byte comes in time, the reply never does."""
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"no reply within 0.5 s"):
        ask(server, "drips", items[:1], timeout=0.5, retries=1)
    assert time.monotonic() - begin < 3


def test_refusals_and_lasting_trouble_are_unanswered_questions(server, items):
    refused = ask(server, "null", items[:2])
    assert {a.unanswered for a in refused.values()} == {"a reply without text (content_filter)"}
    assert {(a.generated, a.passing) for a in refused.values()} == {(None, False)}
    answers = list(ask(server, "dies", items[:7], concurrency=1, retries=0).values())
    assert [answer.generated is None for answer in answers] == [False] * 5 + [True] * 2
    assert answers[5].unanswered.startswith("no answer in 1 attempts; the last: status 503")
    assert answers[5].passing


def test_ctrl_c_is_heard_at_once(server):
    """A process whose requests all hang ends within two seconds."""
    script = f"""
from ift_components.chat import ChatClient, Request
client = ChatClient({server!r}, "drips", where="predictor", timeout=60)
image = {{"type": "image_url", "image_url": {{"url": "data:image/png;base64,{PIXEL}"}}}}
content = [image, {{"type": "text", "text": "?"}}]
body = {{"messages": [{{"role": "user", "content": content}}], "seed": 0, "temperature": 0, "top_p": 1}}
print("go", flush=True)
try:
    list(client.ask(Request(number, lambda: body) for number in range(9)))
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    time.sleep(1)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"stopped\n"
    assert time.monotonic() - begin < 2
    assert process.wait(30) == 0


def eval_arguments(server, prepared, tmp_path):
    component = "predictor._component_=ift_components.evaluation.predictors.ServerPredictor"
    arguments = ["ift_eval_recipe", "--config", "tiny_eval.yaml", component, f"predictor.base_url={server}"]
    return [*arguments, "predictor.model=drips", "checkpoint_dir=null", "scoring=generate", f"data={prepared}"]


def judge_arguments(server, prepared, tmp_path):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    config = {"data": str(prepared), "unrelated": {}, "label": None}
    (evaluation / "run.json").write_text(json.dumps({"config": config, "fingerprint": {"data": str(prepared)}}))
    asked = Item("q", "free", "shapes", "i", prompt="What is seen?", reference="a disc", kind="open")
    answer = Prediction(asked, generated="a ring").scored({"correct": False, "recall": 0.0})
    (evaluation / "predictions.jsonl").write_text(json.dumps(answer.line()) + "\n")
    arguments = ["ift_judge_recipe", "--config", "judge.yaml", f"evaluations=[{evaluation}]"]
    judge = f"judge.servers.first.base_url={server}", "judge.servers.first.model=drips"
    return [*arguments, *judge, "judge.templates.free=description"]


@pytest.mark.parametrize("arguments", [eval_arguments, judge_arguments])
def test_ctrl_c_ends_a_recipe_within_two_seconds(server, prepared, tmp_path, arguments):
    """A command whose requests all hang; the same command can be given again."""
    command = [*arguments(server, prepared, tmp_path), f"output_dir={tmp_path / 'out'}"]
    streams = (tmp_path / "out.txt", tmp_path / "err.txt")
    before = seen(server)["seen"].get("drips", 0)
    process = launch(*command, cwd=tmp_path, streams=streams)
    deadline = time.monotonic() + 120
    while seen(server)["seen"].get("drips", 0) == before:
        assert process.running(), process.output
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    assert process.running(), process.output
    begin = time.monotonic()
    process.send(signal.SIGINT)
    assert process.wait().returncode not in (0, 2)
    assert time.monotonic() - begin < 2
    assert "KeyboardInterrupt" in process.output
    assert not list(tmp_path.rglob("results.json"))


def test_keys_come_from_the_environment_and_stand_in_no_message(server, items, monkeypatch):
    with pytest.raises(UserError, match=r"refuses every request .* status 401: .*invalid api key"):
        ask(server, "key", items[:1])
    monkeypatch.setenv("EVAL_TEST_KEY", "secret")
    assert len(ask(server, "key", items[:1], api_key_env="EVAL_TEST_KEY")) == 1
    with pytest.raises(UserError, match=r"bad Bearer \[key\]") as error:
        ask(server, "echoes-key", items[:1], api_key_env="EVAL_TEST_KEY")
    assert "secret" not in str(error.value)
    # However long the reply: a key that is cut in two where the message ends is a key still.
    for shown in range(20, 60, 2):
        monkeypatch.setattr("ift_components.chat._SHOWN", shown)
        with pytest.raises(UserError, match="status 401") as error:
            ask(server, "echoes-key", items[:1], api_key_env="EVAL_TEST_KEY")
        assert "secr" not in str(error.value)
    with pytest.raises(ConfigError, match="ftp://host:1/v1' does not start with"):
        ServerPredictor("ftp://me:pass@host:1/v1", "m")
    with pytest.raises(ConfigError, match="environment variable EVAL_TEST_KEY_2 is not set"):
        ServerPredictor(server, "key", api_key_env="EVAL_TEST_KEY_2")
    assert ServerPredictor("http://me:pass@host:1/v1/", "m").describe()["base_url"] == "http://host:1/v1"


@pytest.fixture
def config(server, prepared, tmp_path):
    """A function that gives the config of an evaluation by the server."""

    def make(model, *overrides, out="out"):
        component = "predictor._component_=ift_components.evaluation.predictors.ServerPredictor"
        base = [component, f"predictor.base_url={server}", f"predictor.model={model}", "predictor.concurrency=1"]
        base += ["predictor.retries=0", "checkpoint_dir=null", f"data={prepared}", f"output_dir={tmp_path / out}"]
        base += ["scoring=generate", "bootstrap=100", "limit=12", "image_control=false"]
        return load_config("tiny_eval.yaml", [*base, *overrides], EvalSettings)

    return make


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_refused_questions_are_counted_and_capped(config, server, world, tmp_path):
    """The server refuses from the sixth question on."""
    with pytest.raises(UserError, match=r"max_unanswered: more than 3 questions .*status 400: .*takes no images"):
        Evaluation(config("refuses", "max_unanswered=3"), world).run()
    rows = lines(tmp_path / "out")
    assert [row.get("unanswered") is None for row in rows] == [True] * 5 + [False] * 3
    results = Evaluation(config("refuses", "max_unanswered=20"), world).run()
    assert (results["questions"], results["unanswered"], results["parsers"]["strict"]["unparsed"]) == (12, 7, 7)
    assert seen(server)["seen"]["refuses"] == 13  # the ninth was asked twice: its first refusal was over the cap
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["sessions"]) == 2


def test_passing_trouble_is_asked_again_by_the_same_command(config, server, world, tmp_path):
    first = Evaluation(config("recovers"), world).run()
    assert first["unanswered"] == 7
    assert sum(row.get("passing", False) for row in lines(tmp_path / "out")) == 7
    assert Evaluation(config("recovers"), world).run()["unanswered"] == 0
    assert seen(server)["seen"]["recovers"] == 12 + 7


def test_a_whole_evaluation(config, server, world, tmp_path):
    results = Evaluation(config("good"), world).run()
    assert results["questions"] == 12
    assert results["parsers"]["paper"]["unparsed"] == 12  # the authors' parser takes nothing after the letter
    assert results["parsers"]["strict"]["unparsed"] == 0
    assert results["weights"] == {"predictor": "server", "base_url": server, "model": "good", "sha256": None}
    assert 0 < results["answers_per_second"] < 12 / results["wall_seconds"] * 1.01


def test_sampling_reaches_the_server(config, server, world):
    overrides = ["temperature=0.7", "top_p=0.9", "seed=3", "n_runs=5", "limit=2"]
    results = Evaluation(config("sampled", *overrides), world).run()
    requests = [r for r in seen(server)["requests"] if r["model"] == "sampled"]
    assert len(requests) == 10
    assert len({request["seed"] for request in requests}) == 10
    assert {(r["temperature"], r["top_p"]) for r in requests} == {(0.7, 0.9)}
    assert results["runs"]["consistency"]["inconsistent"] > 0
    Evaluation(config("sampled", *overrides, "seed=4", out="other"), world).run()
    again = [r["seed"] for r in seen(server)["requests"] if r["model"] == "sampled"][10:]
    assert not {r["seed"] for r in requests} & set(again)
    with pytest.raises(ConfigError, match=r"predictor.temperature: how answers are drawn is set for every predictor"):
        Evaluation(config("sampled", "predictor.temperature=0.7", out="third"), world).run()


def test_values_are_checked(server):
    with pytest.raises(ConfigError, match="does not start with http"):
        ServerPredictor("localhost:8000", "m")
    with pytest.raises(ConfigError, match="concurrency: 0 is below 1"):
        ServerPredictor(server, "m", concurrency=0)
