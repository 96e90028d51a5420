"""The methods against a few lines of plain torch, and that the mapped model is the model that answers."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchtune.modules.transforms.vision_utils.tile_crop import tile_crop

from ift_components.data.wording import multiple_choice_prompt
from ift_components.errors import ConfigError
from ift_components.evaluation.engine import Engine
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.forward import Recorder
from ift_components.models.prompts_by_layer import add_ptuning_v2
from ift_components.models.tile_padding import set_tile_padding
from ift_components.saliency import METHODS, Mapper, overlay, relevance_map
from ift_components.saliency.image_tokens import ImageTokens, canvas_of, tapped, tiles_of
from ift_components.saliency.mapper import decisive_tokens
from ift_components.saliency.walk import Trace, log_odds

PROMPT = multiple_choice_prompt("What is the cell size?", ["big", "small"])
ANSWER = "The correct answer is B."
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))


def make_mapper(layout="none", **options):
    model = set_tile_padding(tiny_llama3_2_vision(**options), layout)
    return Mapper(model.requires_grad_(requires_grad=False), tiny_vision_transform())


@pytest.fixture(scope="module")
def mapper():
    return make_mapper()


class ByHand(Recorder):
    """Attends by hand with weights that keep their gradients."""

    def __init__(self):
        self.weights = {}

    def hidden(self, layer, h):
        pass

    def attention(self, layer, query, key, value, mask, *, is_causal, attend):
        scores = query @ key.mT / query.shape[-1] ** 0.5
        if is_causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        self.weights[layer] = scores.softmax(-1)
        return self.weights[layer] @ value


def walked(mapper, recorder=None, *, grad=False):
    pixels, asked = mapper.pixels(PICTURE), mapper.walk.ask(PROMPT, ANSWER)
    leaf = pixels.clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        return mapper.walk.logits(leaf.unsqueeze(0), asked, recorder), asked, leaf


@pytest.mark.parametrize("layout", ["none", "meta"])
@pytest.mark.parametrize("grad", [False, True])
def test_recording_leaves_the_logits_as_they_are_to_the_bit(layout, grad):
    mapper = make_mapper(layout)
    trace = Trace()
    with tapped(mapper.walk.model):
        recorded = walked(mapper, trace, grad=grad)[0]
    assert torch.equal(recorded, walked(mapper)[0])
    assert len(trace.passes) == 4 + 1 + 6 + 3
    mapper.explain(PICTURE, PROMPT, ANSWER, "relevance")
    assert torch.equal(walked(mapper)[0], recorded)


def test_the_answer_is_the_engines():
    mapper = make_mapper()
    engine = Engine(mapper.walk.model, tiny_vision_transform())
    prompt = mapper.walk.ask(PROMPT, ANSWER)
    state = engine.start(engine.encode([mapper.pixels(PICTURE)]), [prompt.tokens[: prompt.start]], 20)
    first = state.logits[0]
    torch.testing.assert_close(walked(mapper)[0][0, 0], first, atol=1e-4, rtol=1e-4)
    assert mapper.answer(PICTURE, PROMPT, 20) == engine.generate(state, 20)[0]


def test_weights_and_their_gradients_are_those_of_plain_attention(mapper):
    by_hand, trace = ByHand(), Trace()
    logits, asked, _ = walked(mapper, by_hand, grad=True)
    own_logits, _, _ = walked(mapper, trace, grad=True)
    names = [name for name, weights in by_hand.weights.items() if weights.requires_grad]
    wanted = torch.autograd.grad(log_odds(logits, asked)[0, 4], [by_hand.weights[name] for name in names])
    of_attended = torch.autograd.grad(log_odds(own_logits, asked)[0, 4], [trace.passes[n].attended for n in names])
    assert set(by_hand.weights) - set(names) == {"decoder.layers.0.attn"}  # before the first that sees the image
    for name, gradient, of_output in zip(names, wanted, of_attended, strict=True):
        done = trace.passes[name]
        torch.testing.assert_close(done.weights(), by_hand.weights[name][0].detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(done.gradient(of_output), gradient[0], atol=1e-5, rtol=1e-3)


def test_log_odds_are_those_of_the_probability(mapper):
    logits, asked, _ = walked(mapper)
    p = logits.double().softmax(-1).gather(2, torch.tensor(asked.answer).view(1, -1, 1)).squeeze(2)
    torch.testing.assert_close(log_odds(logits, asked).double(), (p / (1 - p)).log(), atol=1e-4, rtol=1e-4)


def rollout_by_hand(model, weights, shares, length, first):
    """The product over layers, one after the other, of the matrices of plain attention; `first` sees the image."""
    gates = {n: abs(float(m.scale.tanh())) for n, m in model.named_modules() if type(m).__name__ == "TanhGate"}

    def step(mix, attention, g):
        return (mix + g * attention @ mix) / (1 + g)

    mix = torch.eye(37)
    sources = []
    for i in range(4):
        if i in (1, 2):
            sources.append(mix)
        mix = step(mix, weights(f"encoder.clip.layers.{i}.attn"), 1.0)
    mix = step(mix, weights("encoder.projection.layers.0.attn"), gates["encoder.projection.layers.0.sa_scale"])
    sources.insert(0, mix)
    image = sum(shares[:, k : k + 1] * source for k, source in enumerate(sources))
    text = torch.zeros(length, 37)
    for i in range(6):
        if i % 2:
            g = gates[f"decoder.layers.{i}.fusion_layer.ca_scale"]
            fused = (text + g * weights(f"decoder.layers.{i}.fusion_layer.attn") @ image) / (1 + g)
            text = torch.where(torch.arange(len(text)).unsqueeze(1) >= first, fused, text)
        text = step(text, weights(f"decoder.layers.{i}" + (".layer.attn" if i % 2 else ".attn")), 1.0)
    return text


@torch.no_grad()
def test_rollout_is_the_product_of_attention_and_residual(mapper):
    by_hand = ByHand()
    with tapped(mapper.walk.model) as taps:
        _, asked, _ = walked(mapper, by_hand)
    first = asked.tokens.index(mapper.walk.image_id)
    weights = by_hand.weights
    length = len(asked.tokens) - 1
    text = rollout_by_hand(mapper.walk.model, lambda name: weights[name][0].mean(0), taps.shares, length, first)
    made = mapper.explain(PICTURE, PROMPT, ANSWER, "rollout", tokens=[2, 4])
    rows = text[[asked.start + 1, asked.start + 3], 1:]
    torch.testing.assert_close(torch.from_numpy(made.signed).flatten(1), rows, atol=1e-5, rtol=1e-4)
    assert (text.sum(1) <= 1 + 1e-5).all()


@torch.no_grad()
def test_shares_of_tapped_layers_are_those_of_their_summands(mapper):
    model, inputs = mapper.walk.model, []
    handle = model.encoder.projection.output.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with tapped(model) as taps:
        walked(mapper)
    handle.remove()
    x, weight = inputs[0].reshape(37, -1), model.encoder.projection.output.weight
    last = x[:, :96] @ weight[:, :96].T
    first_tap, second_tap = (x[:, 96 + k :: 2] @ weight[:, 96 + k :: 2].T for k in (0, 1))  # interleaved
    output = model.encoder.projection.output
    torch.testing.assert_close(last + first_tap + second_tap + output.bias, output(x), atol=1e-4, rtol=1e-4)
    norms = torch.stack([part.norm(dim=1) for part in (last, first_tap, second_tap)], dim=1)
    torch.testing.assert_close(taps.shares, norms / norms.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_closed_gates_leave_nothing_to_map():
    mapper = make_mapper(init_gate=0.0)
    for method in ("rollout", "relevance", "integrated_gradients"):
        assert mapper.explain(PICTURE, PROMPT, ANSWER, method).grid.sum() == 0
    made = mapper.cross_attention(mapper.pixels(PICTURE), mapper.walk.ask(PROMPT, ANSWER))
    assert made.gates == [0.0, 0.0, 0.0]


def test_gates_weigh_the_layers(mapper):
    raw = mapper.cross_attention(mapper.pixels(PICTURE), mapper.walk.ask(PROMPT, ANSWER))
    assert raw.layers == [1, 3, 5]
    assert raw.weights.shape == (3, 4, 6, 36)
    assert ((raw.weights.sum(-1) < 1) & (raw.weights.sum(-1) > 0.8)).all()  # what is missing goes to the class token
    raw.gates[:] = [0.0, 0.3, 0.1]
    expected = 0.75 * raw.weights[1].mean(0) + 0.25 * raw.weights[2].mean(0)
    torch.testing.assert_close(raw.select(), expected)
    torch.testing.assert_close(raw.select(3, 2), raw.weights[1, 2])


def test_integrated_gradients_add_up_to_what_the_picture_changes(mapper):
    pytest.importorskip("captum")
    pixels, asked = mapper.pixels(PICTURE), mapper.walk.ask(PROMPT, ANSWER)
    signed = METHODS["integrated_gradients"].relevance(mapper.walk, pixels, asked, [4], steps=64)
    with torch.no_grad():
        both = log_odds(mapper.walk.logits(torch.stack([pixels, pixels * 0]), asked), asked)[:, 4]
    change = float(both[0] - both[1])
    assert float(signed.sum()) == pytest.approx(change, abs=0.05 * abs(change) + 0.01)


def test_virtual_tokens_have_no_place_on_the_map():
    model = tiny_llama3_2_vision()
    for part in ("encoder", "fusion"):
        add_ptuning_v2(model, part, {"tokens": 3})
    for name, parameter in model.named_parameters():
        if "adapter" in name:
            torch.nn.init.normal_(parameter)
    mapper = Mapper(model.requires_grad_(requires_grad=False), tiny_vision_transform())
    for method in METHODS:
        grid = mapper.explain(PICTURE, PROMPT, ANSWER, method).grid
        assert grid.shape == (6, 6)
        assert np.isfinite(grid).all()
        assert grid.sum() == pytest.approx(1, abs=1e-5)


def test_tiles_and_canvas():
    canvas = torch.arange(3 * 4 * 6).view(3, 4, 6).float()
    tiles = tiles_of(canvas, 2, 3)
    assert torch.equal(tiles.flatten(0, 1), tile_crop(canvas, 2))
    assert torch.equal(canvas_of(tiles), canvas)
    model = tiny_llama3_2_vision()
    tokens = ImageTokens.of(model, torch.zeros(2, 1, 3, 84, 84))
    assert (tokens.count, tokens.rows, tokens.columns) == (74, 12, 6)
    assert tokens.patches[:7].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert tokens.patches[36] == 38  # after the second tile's class token
    across = ImageTokens.of(model, torch.zeros(1, 2, 3, 84, 84))
    assert across.patches[:13].tolist() == [1, 2, 3, 4, 5, 6, 38, 39, 40, 41, 42, 43, 7]


@pytest.mark.parametrize(
    ("pieces", "chosen"),
    [
        (["The", " correct", " answer", " is", " B", "."], (4,)),
        (["The correct answer is", " [", "C", "]."], (2,)),
        (["B", "."], (0,)),
        (["A", " round", " cell"], (0, 1, 2)),
        (["The", " nucleus"], (0, 1)),
    ],
)
def test_the_letter_decides(pieces, chosen):
    assert decisive_tokens(pieces) == chosen


def test_what_is_unknown_is_an_error_of_one_line(mapper):
    def message(**options):
        with pytest.raises(ConfigError) as caught:
            mapper.explain(
                PICTURE, PROMPT, options.pop("answer", ANSWER), options.pop("method", "attention"), **options
            )
        return str(caught.value)

    assert message(method="gradcam").startswith("method: 'gradcam' is not one of attention, rollout, relevance")
    assert message(layer=2) == "layer: 2 does not attend to the image; those that do: 1, 3, 5"
    assert message(head=4) == "head: 4 does not exist; expected 0 to 3"
    assert message(method="rollout", head=1).startswith("head: only method 'attention' has a head to choose")
    assert message(tokens=[6]) == "tokens: [6] of an answer of 6 tokens; expected 0 to 5"
    assert message(answer="  ").startswith("answer: it is empty")
    assert "the model takes 1024" in message(answer="word " * 2000)


def test_overlay_is_red_where_the_map_is_high():
    grid = np.zeros((6, 6), np.float32)
    grid[0, 5] = 1
    made = np.asarray(overlay(Image.new("RGB", (84, 84), "white"), grid, side=84)).astype(int)
    high, low = made[3, 80], made[80, 3]
    assert high[0] > max(high[1:]) + 30
    assert (low == 255).all()
    grid = relevance_map(tiny_llama3_2_vision(), tiny_vision_transform(), PROMPT, PICTURE, ANSWER, method="rollout")
    assert grid.shape == (6, 6)
    assert grid.sum() == pytest.approx(1, abs=1e-5)
