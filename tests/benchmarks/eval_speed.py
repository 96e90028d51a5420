"""Questions per second: our engine against one question at a time with transformers' `generate`, on the same weights.

    python tests/benchmarks/eval_speed.py            # the miniature, one CPU thread
    python tests/benchmarks/eval_speed.py --rounds 5 --images 24

One question at a time with `generate` is how the authors evaluate. Both answer the same multiple-choice questions about the
same images, greedily, 50 new tokens; random weights never stop, so both generate all 50. Ours pads images as transformers does
(`tile_padding: meta`, the texts are checked to be the same) and, in rows of their own, not at all. Rounds are interleaved,
and the median of the rounds' ratios is given.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import logging as transformers_logging

sys.path.append(str(Path(__file__).resolve().parents[1] / "evaluation"))
import mllama

from ift_components.data.images import ImageTransform
from ift_components.data.prompts import Text, prompt_tokens
from ift_components.data.wording import multiple_choice_prompt
from ift_components.evaluation.items import Item
from ift_components.evaluation.predictors import Work
from ift_components.evaluation.predictors.own import OwnPredictor
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.hf_layout import hf_config, save_checkpoint
from ift_components.models.tile_padding import set_tile_padding

NAMES = (
    "cell size",
    "cell shape",
    "nucleus shape",
    "nuclear cytoplasmic ratio",
    "chromatin density",
    "cytoplasm vacuole",
)
NAMES += ("cytoplasm texture", "cytoplasm colour", "granularity", "granule type", "granule colour", "label")
OPTIONS = (("big", "small"), ("irregular", "round"), ("irregular", "segmented-bilobed", "unsegmented-band"))
NEW_TOKENS = 50


def questions(images: int, each: int) -> list[Item]:
    """Make questions like WBCAtt's about random pictures."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(images):
        pixels = torch.randint(0, 256, (360, 360, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(pixels.numpy())
        for number in range(each):
            options = OPTIONS[number % len(OPTIONS)]
            prompt = multiple_choice_prompt(f"What is the {NAMES[number % len(NAMES)]}?", options)
            items.append(
                Item(
                    id=f"{index}#{number}",
                    task="choice",
                    dataset="benchmark",
                    image_id=str(index),
                    prompt=prompt,
                    picture=lambda picture=picture: picture,
                    max_new_tokens=NEW_TOKENS,
                    options=options,
                    answer=0,
                )
            )
    return items


def theirs(model, transform, items):
    """Answer one question after the other, as the authors do; return seconds and texts."""
    begin, texts = time.perf_counter(), []
    picture = ImageTransform(transform)
    stop = transform.stop_tokens
    for item in items:
        prompt = prompt_tokens(transform, Text(item.prompt))
        given = mllama.inputs(transform, picture(item.picture()), prompt)
        with torch.inference_mode():
            made = model.generate(
                **given, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=stop, pad_token_id=stop[0]
            )
        texts.append(transform.tokenizer.decode(made[0, len(prompt) :].tolist(), truncate_at_eos=False))
    return time.perf_counter() - begin, texts


def ours(predictor, items):
    """Answer all questions; return seconds and texts."""
    begin = time.perf_counter()
    answers = {work.item.id: answer.generated for work, answer in predictor.answer([Work(item) for item in items])}
    return time.perf_counter() - begin, [answers[item.id] for item in items]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8, help="images with 12 questions; 4 times as many with one")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    transform = tiny_vision_transform()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_llama3_2_vision()
        save_checkpoint(Path(folder) / "c", model.state_dict(), hf_config(model), dtype=torch.float32)
        reference = mllama.load(Path(folder) / "c")
        models = {"meta": set_tile_padding(model, "meta"), "none": tiny_llama3_2_vision()}
        own = {name: OwnPredictor(made, transform, batch_size=args.batch_size) for name, made in models.items()}
        for each, images, aim in ((12, args.images, 10), (1, 4 * args.images, 4)):
            items = questions(images, each)
            theirs(reference, transform, items[:2])
            for predictor in own.values():
                ours(predictor, items)
            speeds: dict[str, list[float]] = {"transformers": [], **{name: [] for name in own}}
            for _ in range(args.rounds):
                seconds, expected = theirs(reference, transform, items)
                speeds["transformers"].append(len(items) / seconds)
                for name, predictor in own.items():
                    seconds, texts = ours(predictor, items)
                    speeds[name].append(len(items) / seconds)
                    same = sum(a == b for a, b in zip(texts, expected, strict=True))
                    if name == "meta" and same < 0.9 * len(items):
                        raise SystemExit(f"only {same} of {len(items)} texts are the same: nothing to compare")
            base = statistics.median(speeds["transformers"])
            print(f"{each} questions an image, {len(items)} questions: transformers one at a time {base:.2f}/s")
            for name in own:
                ratios = [a / b for a, b in zip(speeds[name], speeds["transformers"], strict=True)]
                spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
                median = statistics.median(ratios)
                speed = statistics.median(speeds[name])
                print(f"  ours, tile_padding {name}: {speed:.1f}/s, {median:.1f} x ({spread}; aim {aim})")


if __name__ == "__main__":
    main()
