"""The engine against torchtune's own forward, and forced choice against free generation."""

import pytest
import torch

from ift_components.data.images import ImageTransform
from ift_components.data.prompts import Slots, Text, prompt_tokens, response_tokens
from ift_components.errors import ConfigError
from ift_components.evaluation.engine import Engine, Sampling, _draw
from ift_components.evaluation.items import question_items, report_items
from ift_components.evaluation.parsing import parse_paper
from ift_components.evaluation.predictors.base import Sampling as Drawing
from ift_components.evaluation.predictors.base import Work
from ift_components.evaluation.predictors.own import OwnPredictor, answer_tokens
from ift_components.models import tiny_llama3_2_vision
from ift_components.proxy import random_theta


def reference_logits(model, transform, picture, tokens):
    """Logits of the last position by torchtune's own model: one row, a dense mask, no cache."""
    rows = torch.tensor([tokens])
    encoder = {"images": picture.unsqueeze(0), "aspect_ratio": torch.ones(1, 1, 2, dtype=torch.int)}
    sees = (rows == transform.tokenizer.image_id).cumsum(dim=1) > 0
    patches = model.encoder.clip.get_image_tokens_per_tile()
    mask = sees.unsqueeze(-1).expand(-1, -1, patches)
    return model(rows, encoder_input=encoder, encoder_mask=mask)[0, -1].float()


def reference_greedy(model, transform, picture, tokens, count):
    """Greedy text by the reference, every token from scratch."""
    tokens, start = list(tokens), len(tokens)
    for _ in range(count):
        token = int(reference_logits(model, transform, picture, tokens).argmax())
        if token in transform.stop_tokens:
            break
        tokens.append(token)
    return transform.tokenizer.decode(tokens[start:], truncate_at_eos=False, skip_special_tokens=True)


@torch.inference_mode()
def test_logits_and_text_are_torchtunes(items, transform):
    """Two images, three prompts of different lengths each: shared keys and values, left padding, cached steps."""
    model = tiny_llama3_2_vision().eval()
    engine = Engine(model, transform)
    chosen = [*items[:3], *items[4:7]]
    assert len({item.image_id for item in chosen}) == 2
    pictures = [ImageTransform(transform)(item.picture()) for item in chosen]
    prompts = [prompt_tokens(transform, Text(item.prompt + " really?" * n)) for n, item in enumerate(chosen)]
    state = engine.start(engine.encode(torch.stack([pictures[0], pictures[3]])), prompts, 12)
    for row, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        torch.testing.assert_close(
            state.logits[row], reference_logits(model, transform, picture, prompt), atol=2e-5, rtol=1e-5
        )
    texts = engine.generate(state, 12)
    for text, picture, prompt in zip(texts, pictures, prompts, strict=True):
        assert text == reference_greedy(model, transform, picture, prompt, 12)


@torch.inference_mode()
def test_images_matter_and_stay_apart(trained, items, transform):
    """A prompt's logits depend on its own image and on no other of the batch."""
    engine = Engine(trained, transform)
    pictures = torch.stack([ImageTransform(transform)(item.picture()) for item in items[::4][:3]])
    prompt = prompt_tokens(transform, Text(items[0].prompt))
    together = engine.start(engine.encode(pictures), [prompt] * 6, 1).logits
    alone = engine.start(engine.encode(pictures[1:2]), [prompt], 1).logits
    torch.testing.assert_close(together[2], alone[0], atol=1e-5, rtol=0)
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_one_encoder_pass_an_image(trained, items, transform, monkeypatch):
    seen = []
    forward = trained.encoder.forward
    monkeypatch.setattr(
        trained.encoder, "forward", lambda images, ratio: seen.append(len(images)) or forward(images, ratio)
    )
    for batch_size in (3, 8, 64):  # 3 splits an image's four questions
        seen.clear()
        predictor = OwnPredictor(trained, transform, batch_size=batch_size)
        assert len(list(predictor.answer([Work(item) for item in items]))) == 32
        assert sum(seen) == 8


def test_forced_choice_agrees_with_generation_wherever_it_is_well_formed(trained, items, transform):
    predictor = OwnPredictor(trained, transform, batch_size=16, scoring="both")
    answers = {work.item.id: answer for work, answer in predictor.answer([Work(item) for item in items])}
    assert len(answers) == 32
    read = {item.id: parse_paper(answers[item.id].generated, item.options) for item in items}
    formed = [item for item in items if read[item.id] is not None]
    brackets = [item for item in formed if "[" in answers[item.id].generated]
    assert 10 <= len(formed) < 32  # some are well formed in either form, and some are not
    assert 2 <= len(brackets) < len(formed)
    assert len({read[item.id] for item in formed}) > 1
    for item in formed:
        assert answers[item.id].forced == read[item.id], answers[item.id]
    assert all(0 <= answers[item.id].forced < len(item.options) for item in items)
    alone = OwnPredictor(trained, transform, batch_size=16, scoring="logits")
    logits = {work.item.id: answer for work, answer in alone.answer([Work(item) for item in items])}
    assert {key: answer.forced for key, answer in logits.items()} == {key: a.forced for key, a in answers.items()}
    assert all(answer.generated is None for answer in logits.values())


def test_answers_do_not_depend_on_the_batch(trained, items, transform):
    works = [Work(item, run) for item in items[:12] for run in range(3)]
    by_size = []
    for batch_size in (1, 7, 36):
        predictor = OwnPredictor(trained, transform, batch_size=batch_size)
        answers = predictor.answer(works, Drawing(temperature=1.5, top_p=0.9, seed=3))
        by_size.append({(work.item.id, work.run): answer.generated for work, answer in answers})
    assert by_size[0] == by_size[1] == by_size[2]
    by_run = [tuple(by_size[0][item.id, run] for item in items[:12]) for run in range(3)]
    assert len(set(by_run)) == 3
    other = OwnPredictor(trained, transform, batch_size=12).answer(works, Drawing(temperature=1.5, top_p=0.9, seed=4))
    assert {(w.item.id, w.run): a.generated for w, a in other} != by_size[0]


def test_sampling_follows_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(40_000, 4)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))

    def shares(**settings):
        return torch.bincount(_draw(logits, Sampling(**settings), uniform), minlength=4) / 40_000

    torch.testing.assert_close(shares(temperature=1.0), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.01, rtol=0)
    torch.testing.assert_close(
        shares(temperature=1.0, top_p=0.7), torch.tensor([0.625, 0.375, 0, 0]), atol=0.01, rtol=0
    )
    sharp = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    torch.testing.assert_close(shares(temperature=0.5), sharp / sharp.sum(), atol=0.01, rtol=0)
    assert shares(temperature=1.0, top_p=0.01)[0] == 1


def test_a_model_that_never_stops_is_stopped(items, transform):
    """Random weights never end their turn: the text has `max_new_tokens` tokens."""
    engine = Engine(tiny_llama3_2_vision(), transform)
    picture = ImageTransform(transform)(items[0].picture()).unsqueeze(0)
    state = engine.start(engine.encode(picture), [prompt_tokens(transform, Text(items[0].prompt))], 30)
    engine.generate(state, 30)
    assert state.length == state.prompt_length + 29  # the last token needs no pass of its own


@torch.inference_mode()
def test_proxy_stands_in_its_slots(transform, items):
    model = tiny_llama3_2_vision()
    proxy = random_theta(8, 128, seed=0)
    picture = ImageTransform(transform)(items[0].picture()).unsqueeze(0)
    text = prompt_tokens(transform, Text(items[0].prompt))
    slots = prompt_tokens(transform, Slots(8))

    def logits(engine, prompts):
        return engine.start(engine.encode(picture), prompts, 1).logits

    with_proxy, other = Engine(model, transform, proxy), Engine(model, transform, proxy + 1)
    mixed = logits(with_proxy, [text, slots, slots])
    torch.testing.assert_close(mixed[1], mixed[2])
    assert (mixed[1] - logits(other, [slots])[0]).abs().max() > 1e-3
    torch.testing.assert_close(mixed[0], logits(other, [text])[0], atol=1e-5, rtol=0)


def test_letters_keep_the_answers_beginning(transform):
    prefix, ways = answer_tokens(transform)
    assert transform.tokenizer.decode(prefix, truncate_at_eos=False) == "The correct answer is"
    for index, tokens in ways:
        assert (
            transform.tokenizer.decode(tokens, truncate_at_eos=False).strip(" .[]*")
            == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index]
        )
    assert response_tokens(transform, "The correct answer is [B].")[: len(prefix)] == prefix


def test_too_long_questions_and_missing_proxies_are_refused(trained, transform, prepared):
    predictor = OwnPredictor(trained, transform, batch_size=4)
    long = question_items(prepared, "test", "shapes", max_new_tokens=1000)
    with pytest.raises(
        ConfigError, match=r"max_seq_len: 1024 tokens do not hold '.*' and its answer \(1\d\d\d tokens\)"
    ):
        predictor.check(long)
    reports = report_items(prepared, "test", "shapes", "", max_new_tokens=10)
    with pytest.raises(ConfigError, match="there is no proxy instruction"):
        predictor.check(reports)
