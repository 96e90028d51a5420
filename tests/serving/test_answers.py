"""What the server answers: to OpenAI's client, and as compared with the evaluation of the same model without a server."""

import json
import math

import httpx
import openai
import pytest
import torch
from pictures import data_url

from ift_components.config import load_config
from ift_components.data.images import ImageTransform
from ift_components.data.prompts import Text, prompt_tokens
from ift_components.evaluation.engine import Engine, Sampling
from ift_components.evaluation.predictors.own import answer_tokens
from ift_components.evaluation.run import Evaluation
from ift_components.evaluation.settings import EvalSettings
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.build import build_for_inference
from ift_components.models.tiny import TINY_CHECKPOINT

NODE = {"_component_": "ift_components.models.tiny_llama3_2_vision"}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(
        base_url=f"{server}/v1", api_key="none", http_client=httpx.Client(trust_env=False), max_retries=0
    )


@pytest.fixture(scope="module")
def engine():
    model = build_for_inference(NODE, str(TINY_CHECKPOINT), torch.device("cpu"), torch.float32)
    return Engine(model, tiny_vision_transform())


def state(engine, item, room=40):
    transform = tiny_vision_transform()
    pixels = ImageTransform(transform)(item.picture()).unsqueeze(0)
    return engine.start(engine.encode(pixels), [prompt_tokens(transform, Text(item.prompt))], room)


def test_openais_client_whole_and_streamed(client, engine, items, body):
    expected = engine.generate(state(engine, items[0]), 24)[0]
    request = body(data_url(items[0].picture()), items[0].prompt, max_tokens=24)
    assert [model.id for model in client.models.list()] == ["tuned", "adapted"]
    whole = client.chat.completions.create(**request)
    assert whole.choices[0].message.content == expected
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert len(chunks) > 4
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    short = client.chat.completions.create(**{**request, "max_tokens": 1})
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 1)


def test_logprobs_are_the_models(client, engine, items, body):
    logprobs = state(engine, items[1]).logits[0].log_softmax(dim=-1)
    request = body(data_url(items[1].picture()), items[1].prompt, logprobs=True, top_logprobs=5)
    first = client.chat.completions.create(**request).choices[0].logprobs.content[0]
    values, tokens = logprobs.topk(5)
    assert first.logprob == pytest.approx(float(values[0]), abs=1e-4)
    assert [top.logprob for top in first.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
    decode = tiny_vision_transform().tokenizer.decode
    assert [top.token for top in first.top_logprobs] == [decode([t], truncate_at_eos=False) for t in tokens.tolist()]


def test_sampling_follows_the_seed(client, engine, items, body):
    request = body(data_url(items[0].picture()), items[0].prompt, temperature=1.5, top_p=0.95, max_tokens=24)
    expected = [engine.generate(state(engine, items[0]), 24, Sampling(1.5, 0.95, [seed]))[0] for seed in (1, 2)]
    answers = [client.chat.completions.create(**request, seed=seed).choices[0].message.content for seed in (1, 2, 1)]
    assert answers == [*expected, expected[0]]
    assert expected[0] != expected[1]


@pytest.fixture(params=["tuned", "adapted"])
def model(request, adapter):
    """The name of a served model, and the overrides with which it is evaluated directly."""
    return request.param, [f"adapter_dir={adapter}"] if request.param == "adapted" else []


def test_scores_are_those_of_the_direct_evaluation(server, prepared, world, tmp_path, model):
    name, weights = model
    common = [f"data={prepared}", "scoring=generate", "bootstrap=100", "max_new_tokens=30", "image_control=false"]
    direct = Evaluation(
        load_config("tiny_eval.yaml", [*common, *weights, f"output_dir={tmp_path / 'a'}"], EvalSettings), world
    ).run()
    component = "predictor._component_=ift_components.evaluation.predictors.ServerPredictor"
    served = [component, f"predictor.base_url={server}/v1", f"predictor.model={name}", "checkpoint_dir=null"]
    config = load_config("tiny_eval.yaml", [*common, *served, f"output_dir={tmp_path / 'b'}"], EvalSettings)
    through = Evaluation(config, world).run()
    assert through["questions"] == 32
    assert through["unanswered"] == 0
    assert through["attributes"] == direct["attributes"]
    assert lines(tmp_path / "b") == lines(tmp_path / "a")


def test_each_model_answers_for_itself_about_one_image(client, items, body):
    request = body(data_url(items[0].picture()), items[0].prompt, max_tokens=24)
    tuned, adapted, again = (
        client.chat.completions.create(**{**request, "model": model}).choices[0].message.content
        for model in ("tuned", "adapted", "tuned")
    )
    assert tuned == again != adapted


def lines(folder):
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return {(row["task"], row["id"]): row["generated"] for row in rows}


def test_options_probabilities(server, engine, items):
    """Against the probabilities of whole continuations, each fed alone."""
    item = next(item for item in items if len(item.options) > 2)
    request = {"model": "tuned", "image": data_url(item.picture()), "question": item.prompt.split("\n")[0]}
    reply = httpx.post(f"{server}/v1/options", json={**request, "options": list(item.options)}, trust_env=False).json()
    assert reply["prompt"] == item.prompt
    prefix, ways = answer_tokens(tiny_vision_transform())
    ways = [way for way in ways if way[0] < len(item.options)]
    sums = [0.0] * len(item.options)
    for label, head in {(label, decisive(ways, label, tokens)) for label, tokens in ways}:
        after, logprob = state(engine, item), 0.0
        engine.feed(after, torch.tensor([prefix]))
        for token in head:
            logprob += float(after.logits[0].log_softmax(-1)[token])
            engine.feed(after, torch.tensor([[token]]))
        sums[label] += math.exp(logprob)
    assert reply["mass"] == pytest.approx(sum(sums), rel=1e-3)
    assert [row["probability"] for row in reply["options"]] == pytest.approx([s / sum(sums) for s in sums], abs=1e-4)


def decisive(ways, label, tokens):
    """The shortest beginning of a way that no way of another label has."""
    for length in range(1, len(tokens) + 1):
        head = tuple(tokens[:length])
        if all(other == label for other, longer in ways if tuple(longer[:length]) == head):
            return head
    raise AssertionError


def test_questions_about_one_image_share_its_encoder_pass(server, counted, image, body):
    before = counted("ift_encoded_images_total"), counted("ift_cached_images_total")
    for text in ("One?", "Two?", "Three?"):
        assert httpx.post(f"{server}/v1/chat/completions", json=body(image, text), trust_env=False).status_code == 200
    assert counted("ift_encoded_images_total") - before[0] <= 1
    assert counted("ift_cached_images_total") - before[1] >= 2


def test_a_narrowed_batch_goes_on_as_if_alone(items):
    """Rows leave evenly, unevenly, and down to one; what is left answers as without the others."""
    model, transform = tiny_llama3_2_vision().eval(), tiny_vision_transform()
    engine = Engine(model, transform)
    chosen = [*items[:2], *items[4:6], *items[8:10]]
    pictures = torch.stack([ImageTransform(transform)(item.picture()) for item in chosen[::2]])
    prompts = [prompt_tokens(transform, Text(item.prompt)) for item in chosen]
    encoded = engine.encode(pictures)
    running = engine.start(encoded, prompts, 8)
    rows = list(range(6))
    fed = [[] for _ in rows]
    for keep in ([0, 1, 4, 5], [0, 2, 3], [1]):
        tokens = running.logits.argmax(-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            fed[row].append(token)
        rows = [rows[index] for index in keep]
        engine.narrow(running, keep)
        engine.feed(running, tokens[keep].unsqueeze(1))
        for place, row in enumerate(rows):
            alone = engine.start(engine.encode(pictures[row // 2][None]), [prompts[row]], 8)
            for token in fed[row]:
                engine.feed(alone, torch.tensor([[token]]))
            torch.testing.assert_close(running.logits[place], alone.logits[0], atol=2e-5, rtol=1e-5)
    assert len(encoded.features) == 3
    assert all(layer.k_cache.shape[0] == 3 for layer in encoded.keys_values)
