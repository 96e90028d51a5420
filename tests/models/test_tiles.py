"""Pictures of several tiles: cut as transformers cuts them, and none of them changed by what shares its batch."""

import pytest
import torch
from PIL import Image
from torchtune.models.clip import CLIPImageTransform

from ift_components.data.dataset import Sample, collate
from ift_components.data.images import CachedCanvases, ImageTransform, stack_images
from ift_components.data.prompts import Slots, Text, prompt_tokens, response_tokens
from ift_components.errors import ConfigError
from ift_components.evaluation.engine import Engine
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.adapters import initialise_added
from ift_components.models.forward import ResponseLoss, encode_images
from ift_components.models.pictures import RESIZING
from ift_components.models.tile_padding import TileSequence, own_image_tokens, set_tile_padding
from ift_components.models.trainable import Tuning, apply_tuning

TILE, K = 84, 3
GRIDS = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
SIZES = {  # width and height of pictures that are cut into each grid, and of some odd ones
    (1, 1): [(84, 84), (40, 84), (1, 1), (3, 80)],
    (1, 2): [(150, 80), (1000, 500), (85, 84)],
    (1, 3): [(230, 61), (900, 400)],
    (1, 4): [(300, 60), (700, 20), (500, 1)],
    (2, 1): [(80, 150), (500, 1000)],
    (2, 2): [(230, 230), (85, 85), (640, 480)],
    (3, 1): [(61, 230)],
    (4, 1): [(20, 500), (1, 500)],
}
MIXED = [(230, 230), (84, 84), (300, 60), (61, 230)]  # 4, 1, 4 and 3 tiles


def noise(width, height, seed=0):
    generator = torch.Generator().manual_seed(seed + 1000 * width + height)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())


@pytest.fixture(scope="module")
def transform():
    return tiny_vision_transform()


@pytest.fixture(scope="module")
def grids(transform):
    """Four pictures of different grids."""
    return [ImageTransform(transform, tiles=4)(noise(*size)) for size in MIXED]


def opened(layout, tiles=4):
    """A model with random weights and every gate open, so that each part of the encoder matters."""
    model = tiny_llama3_2_vision(num_layers=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.encoder.clip.named_parameters():
            if name.endswith(("pos_embed.gate", "embedding.gate")):
                parameter.fill_(0.4)
            elif "pos_embed" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return set_tile_padding(model, layout, tiles)


@pytest.mark.parametrize("resize", RESIZING)
@pytest.mark.parametrize("grid", GRIDS)
def test_tiles_are_those_of_transformers(transform, grid, resize):
    transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
    reference = transform.transform_image
    processor = transformers.MllamaImageProcessor(
        size={"height": TILE, "width": TILE}, max_image_tiles=4, resample=int(RESIZING[resize]),
        image_mean=list(reference.mean), image_std=list(reference.std),
    )  # fmt: skip
    for size in SIZES[grid]:
        theirs = processor(images=[[noise(*size)]], return_tensors="pt")
        ours, ratio = stack_images([ImageTransform(transform, resize, tiles=4)(noise(*size))])
        assert tuple(ratio[0, 0].tolist()) == grid
        assert theirs["aspect_ratio_ids"].item() == GRIDS.index(grid) + 1
        assert theirs["aspect_ratio_mask"].sum() == ours.shape[2] == grid[0] * grid[1]
        torch.testing.assert_close(ours, theirs["pixel_values"][:, :, : ours.shape[2]], atol=2e-6, rtol=0)


def test_torchtunes_own_transform_cuts_alike_but_rounds_later(transform):
    """Where it differs: pixels by up to a level of 255, and thin pictures, at which it fails."""
    reference = transform.transform_image
    its = CLIPImageTransform(image_mean=reference.mean, image_std=reference.std, tile_size=TILE, dtype=torch.float32)
    level = 1 / 255 / min(reference.std)
    for grid, sizes in SIZES.items():
        for size in sizes:
            if 1 in size and max(size) > 1:
                with pytest.raises(RuntimeError, match="sizes should be greater than 0"):
                    its({"image": noise(*size)})
                continue
            theirs = its({"image": noise(*size)})
            assert tuple(theirs["aspect_ratio"].tolist()) == grid
            ours = ImageTransform(transform, tiles=4)(noise(*size)).flatten(0, 1)
            assert (theirs["image"] - ours).abs().max() < 1.01 * level


def test_a_turned_photo_is_put_upright_before_it_is_cut(transform):
    photo = noise(230, 61)
    exif = photo.getexif()
    exif[0x0112] = 6
    turned = photo.copy()
    turned.info["exif"] = exif.tobytes()
    turned.getexif()[0x0112] = 6
    assert ImageTransform(transform, tiles=4)(turned).shape[:2] == (3, 1)


@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_without_padding_a_picture_alone_is_torchtunes(transform, grid):
    pixels, ratio = stack_images([ImageTransform(transform, tiles=4)(noise(*SIZES[grid][0]))])
    expected = encode_images(opened("none", tiles=1), pixels, ratio)
    torch.testing.assert_close(encode_images(opened("none"), pixels, ratio), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["none", "meta"])
@torch.no_grad()
def test_what_becomes_of_a_picture_does_not_depend_on_the_batch(grids, layout):
    model = opened(layout)
    pixels, ratio = stack_images(grids)
    together, own = encode_images(model, pixels, ratio), own_image_tokens(model, ratio)
    assert own.sum(dim=1).tolist() == [4 * 37, 37, 4 * 37, 3 * 37]
    for row, grid in enumerate(grids):
        alone = encode_images(model, *stack_images([grid]))
        torch.testing.assert_close(together[row, own[row]], alone[0], atol=1e-5, rtol=0)
    # torchtune's own encoder lets a picture see the tiles that fill it up.
    theirs = encode_images(opened("none", tiles=1), pixels, ratio)[1, :37]
    assert (theirs - encode_images(opened("none", tiles=1), *stack_images(grids[1:2]))[0]).abs().max() > 1e-2


SAMPLES = {
    "proxy": (Slots(K), ["round cell, Neutrophil"]),
    "packed": (Slots(K), ["a, bb, ccc", "ccc, a", "label"]),
    "text": (Text("What is the colour?"), ["It is blue, I think."]),
    "proxy again": (Slots(K), ["label"]),
}
TUNINGS = {
    "full": {"encoder": "full", "fusion": "full", "decoder": "frozen"},
    "virtual tokens": dict.fromkeys(("encoder", "fusion", "decoder"), "ptuning_v2"),
}


@pytest.mark.parametrize("layout", ["none", "meta"])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_losses_and_gradients_are_those_of_the_samples_alone(transform, grids, layout, tuning):
    """With proxy and text prompts and packed responses, every source's loss is that of its sample in a batch of one."""
    model = opened(layout)
    apply_tuning(model, Tuning.parse(TUNINGS[tuning]))
    initialise_added(model, 0)
    module, proxy = ResponseLoss(model), torch.randn(K, 128, generator=torch.Generator().manual_seed(3))
    proxy.requires_grad_()
    samples = [
        Sample(
            name, prompt_tokens(transform, prompt), [response_tokens(transform, text) for text in texts], image, name
        )
        for (name, (prompt, texts)), image in zip(SAMPLES.items(), grids, strict=True)
    ]
    trained = [p for p in model.parameters() if p.requires_grad] + [proxy]
    losses = module(collate(samples, transform, list(SAMPLES)), proxy)
    gradients = torch.autograd.grad(losses.sum(), trained)
    expected = [torch.zeros_like(p) for p in trained]
    for number, sample in enumerate(samples):
        alone = module(collate([sample], transform, list(SAMPLES)), proxy)[number]
        torch.testing.assert_close(losses[number], alone, atol=1e-5, rtol=1e-5)
        own = torch.autograd.grad(alone, trained, materialize_grads=True)
        expected = [a + b for a, b in zip(expected, own, strict=True)]
    for gradient, sum_of_all in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, sum_of_all, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["none", "meta"])
@torch.inference_mode()
def test_answers_are_those_of_the_question_alone(transform, grids, layout):
    """Two prompts an image, of different lengths, with the proxy's vectors in one: logits in every step, and texts."""
    engine = Engine(opened(layout), transform, proxy=torch.randn(K, 128))
    prompts = [prompt_tokens(transform, Slots(K)), prompt_tokens(transform, Text("What is it, and where?"))]

    def ask(images, rows):
        image = engine.encode(images)
        first = engine.start(image, rows, 3)
        logits = [first.logits]
        for token in (7, 9):
            engine.feed(first, torch.full((len(rows), 1), token))
            logits.append(first.logits)
        return torch.stack(logits), engine.generate(engine.start(image, rows, 8), 8)

    logits, texts = ask(grids, prompts[:1] * 4)
    more, more_texts = ask(grids, [prompts[1]] * 8)  # two rows an image share its keys and values
    for number, grid in enumerate(grids):
        alone, text = ask([grid], prompts[:1])
        torch.testing.assert_close(logits[:, number], alone[:, 0], atol=1e-5, rtol=0)
        assert texts[number] == text[0]
        alone, text = ask([grid], prompts[1:])
        for row in (2 * number, 2 * number + 1):
            torch.testing.assert_close(more[:, row], alone[:, 0], atol=1e-5, rtol=0)
            assert more_texts[row] == text[0]


@pytest.mark.parametrize("layout", ["none", "meta"])
@torch.inference_mode()
def test_images_kept_apart_and_joined_again_answer_alike(transform, grids, layout):
    """As a server keeps them: encoded together, each kept alone without what filled it up, and joined with others later."""
    engine = Engine(opened(layout), transform)
    prompt = prompt_tokens(transform, Text("What is it?"))
    together = engine.encode(grids)
    expected = engine.start(together, [prompt] * 4, 4).logits
    kept = [together.select([number]) for number in range(4)]
    assert [one.features.shape[1] for one in kept] == [4 * 37, 37, 4 * 37, 3 * 37]
    assert all(one.mask is None and one.keys_values[0].size == one.features.shape[1] for one in kept)
    order = [3, 1, 0]
    joined = type(together).join([kept[number] for number in order])
    running = engine.start(joined, [prompt] * 3, 4)
    torch.testing.assert_close(running.logits, expected[order], atol=1e-5, rtol=0)
    engine.narrow(running, [1])
    engine.feed(running, torch.tensor([[7]]))
    alone = engine.start(engine.encode(grids[1:2]), [prompt], 4)
    engine.feed(alone, torch.tensor([[7]]))
    torch.testing.assert_close(running.logits, alone.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("virtual", [0, 5])
@pytest.mark.parametrize(
    "sequence", [TileSequence((3, 1, 3, 2), 2, 4, 5, True), TileSequence((3, 1, 3, 2), 2, 3, 0, False)]
)
def test_attention_is_that_of_four_whole_tiles(sequence, virtual):
    """An empty tile and a token that pads, each attended to once for every one that Meta's layout has."""
    from ift_components.models.tile_padding import _attend  # noqa: PLC0415 (private: what the sequence stands for)

    length = sequence.slots * (sequence.tokens + (sequence.filling > 0))
    query = torch.randn(4, 2, length, 8)
    key, value = torch.randn(2, 4, 2, virtual + length, 8)
    attended = _attend(query, key, value, sequence, 0.0, is_causal=False)
    seen = sequence.dense(length, virtual + length, query.device)
    often = torch.ones(4, virtual + length)
    for row, own in enumerate(sequence.own if sequence.filling else ()):
        tiles = virtual + sequence.slots * sequence.tokens
        often[row, tiles - sequence.tokens : tiles] = 4 - own
        often[row, tiles : tiles + own] = sequence.filling
        often[row, -1] = (4 - own) * sequence.filling
    for row, own in enumerate(sequence.own):
        for place in range(length if sequence.filling else own * sequence.tokens):
            real = place < own * sequence.tokens
            weights = (key[row] @ query[row, :, place].unsqueeze(-1)).squeeze(-1) / 8**0.5
            weights = weights.exp() * seen[row, place] * (often[row] if real else 1)
            expected = (weights.unsqueeze(-1) * value[row]).sum(1) / weights.sum(-1, keepdim=True)
            torch.testing.assert_close(attended[row, :, place], expected, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(attended).all()


def test_cached_canvases_keep_their_grid(transform, tmp_path):
    picture = ImageTransform(transform, tiles=4)
    images = [noise(*sizes[0]) for sizes in SIZES.values()]
    for attempt in range(2):
        cache = CachedCanvases(tmp_path, "some", len(images), picture)
        for number, image in enumerate(images):
            kept = cache.get(number, (lambda image=image: image) if attempt == 0 else None)
            assert torch.equal(kept, picture(image))
    assert len(list(tmp_path.iterdir())) == 2
    CachedCanvases(tmp_path, "some", len(images), ImageTransform(transform))  # squashed: a file of its own
    assert len(list(tmp_path.iterdir())) == 4


def test_what_cannot_be_is_refused(transform):
    with pytest.raises(
        ValueError, match=r"images of \[tiles down, tiles across, 3, h, w\], got one of \[1, 3, 84, 84\]"
    ):
        stack_images([torch.zeros(1, 3, 84, 84)])
    model = opened("none")
    with pytest.raises(ValueError, match="got 1 images of 2 tiles and ratios"):
        encode_images(model, torch.zeros(1, 1, 2, 3, 84, 84), torch.ones(1, 1, 2, dtype=torch.int))
    with pytest.raises(ConfigError, match="tiles: 4 needs torchtune's own encoder, fresh; got TiledClip"):
        set_tile_padding(model, "none", 4)
    fewer = tiny_llama3_2_vision(num_layers=2)
    fewer.encoder.clip.pre_tile_pos_embed.embedding = torch.nn.Parameter(torch.zeros(2, 2, 1, 96))
    with pytest.raises(ConfigError, match=r"tiles: 4 needs an encoder built for 4 tiles \(max_num_tiles: 4\)"):
        set_tile_padding(fewer, "none", 4)
