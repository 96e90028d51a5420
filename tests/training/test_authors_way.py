"""With four switches set, the loop is the authors' own: losses equal a hand-written one, which shares no code with ours.

Theirs: torchtune's forward with a dense mask, the embedding swapped by a hook; the assistant's header counts in the loss; the
batch's mean loss is backpropagated, but the proxy takes the gradient of the sum, unclipped and outside the norm; the momentum
copy is the weight itself until the first step is over; pictures are resized bilinearly.
"""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ift_components.data.images import ImageTransform
from ift_components.data.prepared import load_reports
from ift_components.errors import ConfigError
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.proxy import UpdateRule, random_theta
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, epoch_batches

SWITCHES = ["supervise_header=true", "proxy.raw_gradient=true", "proxy.alias=true", "resize=bilinear"]
K, M, CLIP, STEPS = 8, 0.9, 1.0, 4


def samples(prepared, ids, transform):
    """Prompts, whole sequences, masks of supervised tokens and pictures, made without this package's data code."""
    tokenizer = transform.tokenizer
    special = tokenizer.special_tokens
    start, end, turn = (special[f"<|{name}|>"] for name in ("start_header_id", "end_header_id", "eot_id"))

    def text(words):
        return tokenizer.encode(words, add_bos=False, add_eos=False)

    header = [start, *text("assistant"), end, *text("\n\n")]
    slots = [special["<|reserved_special_token_0|>"]] * K
    user = [special["<|begin_of_text|>"], start, *text("user"), end, *text("\n\n"), special["<|image|>"], *slots, turn]
    reports = {row["id"]: row for row in load_reports(prepared, "train")}
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (transform.transform_image.mean, transform.transform_image.std))
    for id_ in ids:
        picture = reports[id_]["image"].convert("RGB").resize((84, 84), Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(84, 84, 3).permute(2, 0, 1)
        yield [*user, *header, *text(reports[id_]["report"]), turn], len(user), (pixels / 255 - mean) / std


def theirs(prepared, steps, theta0, lr):
    """Return the losses of the hand-written loop over the given steps, each a list of sample ids."""
    transform, model = tiny_vision_transform(), tiny_llama3_2_vision()
    image_id, slot = transform.tokenizer.image_id, transform.tokenizer.special_tokens["<|reserved_special_token_0|>"]
    trained = [
        p for n, p in model.named_parameters() if n.startswith("encoder.") or "fusion_layer" in n or "fusion_emb" in n
    ]
    theta = theta0.clone().requires_grad_()
    momentum = theta.data
    optimizer = torch.optim.AdamW([{"params": [theta], "lr": lr["proxy"]}, {"params": trained}], lr=lr["model"])
    losses = []
    for ids in steps:
        rows = list(samples(prepared, ids, transform))
        width = max(len(tokens) for tokens, _, _ in rows)
        tokens = torch.tensor([row + [transform.pad_id] * (width - len(row)) for row, _, _ in rows])
        labels = torch.full_like(tokens, -100)
        for number, (row, prompt, _) in enumerate(rows):
            labels[number, prompt - 1 : len(row) - 1] = tokens[number, prompt : len(row)]
        theta.data = momentum.clone() if losses else momentum  # the same storage in the first step alone
        seen = theta.detach().clone().requires_grad_()

        def insert(module, inputs, output, tokens=tokens, seen=seen):
            out = output.clone()
            out[tokens == slot] = seen.repeat(len(tokens), 1)
            return out

        handle = model.decoder.tok_embeddings.register_forward_hook(insert)
        mask = ((tokens == image_id).cumsum(dim=1) > 0).unsqueeze(-1).expand(-1, -1, 37)
        images = torch.stack([pixels for _, _, pixels in rows]).view(len(rows), 1, 1, 3, 84, 84)
        encoder_input = {"images": images, "aspect_ratio": torch.ones(len(rows), 1, 2, dtype=torch.int)}
        logits = model(tokens, encoder_input=encoder_input, encoder_mask=mask)
        handle.remove()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        loss.backward()
        count = int((labels != -100).sum())
        for parameter in trained:
            parameter.grad /= count
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        theta.grad = seen.grad
        optimizer.step()
        optimizer.zero_grad()
        model.zero_grad()
        momentum = theta.data.clone() if not losses else M * momentum + (1 - M) * theta.data
        losses.append(loss.item() / count)
    return losses


def ours(cfg, world, make_trainer, theta0):
    trainer = make_trainer(cfg, UpdateRule.RESTART)
    with torch.no_grad():
        trainer.proxy.theta.copy_(theta0)
        trainer.proxy.momentum.copy_(theta0)
    batches = epoch_batches(build_loader(cfg, world), 0, 1)
    steps = [next(batches) for _ in range(STEPS)]
    return [trainer.step(step)["loss"] for step in steps], [step[0].ids for step in steps]


def config(train_config, *switches):
    rates = ["optimizer.lr=1.0e-3", "proxy.lr=1.0e-2"]
    return train_config("dataset.shuffling=null", f"proxy.momentum={M}", f"clip_grad_norm={CLIP}", *rates, *switches)


def test_losses_are_those_of_the_authors_loop(train_config, world, make_trainer, prepared):
    theta0 = random_theta(K, 128, seed=5, bound=0.5)
    losses, steps = ours(config(train_config, *SWITCHES), world, make_trainer, theta0)
    expected = theirs(prepared, steps, theta0, {"proxy": 1e-2, "model": 1e-3})
    assert losses == pytest.approx(expected, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("left_out", range(4))
def test_every_switch_matters(train_config, world, make_trainer, prepared, left_out):
    """Without any one of them the losses are others."""
    theta0 = random_theta(K, 128, seed=5, bound=0.5)
    switches = [switch for number, switch in enumerate(SWITCHES) if number != left_out]
    if left_out == 3:
        switches.append("resize=bicubic")
    losses, steps = ours(config(train_config, *switches), world, make_trainer, theta0)
    expected = theirs(prepared, steps, theta0, {"proxy": 1e-2, "model": 1e-3})
    assert losses != pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_unknown_resizing_is_named(train_config):
    with pytest.raises(ConfigError, match="resize: 'nearest' is not one of bilinear, bicubic"):
        check_settings(train_config("resize=nearest"))


def test_pictures_are_resized_as_said():
    picture = Image.effect_noise((50, 200), 80).convert("RGB")
    transform = tiny_vision_transform()
    for name, method in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        expected = picture.resize((84, 84), method)
        assert ImageTransform(transform, name).canvas(picture).tobytes() == expected.tobytes()
    assert (
        ImageTransform(transform).canvas(picture).tobytes()
        == picture.resize((84, 84), Image.Resampling.BILINEAR).tobytes()
    )
