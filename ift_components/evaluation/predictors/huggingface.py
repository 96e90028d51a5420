"""Any image-text-to-text model of Hugging Face as a predictor, asked the very same questions."""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ift_components.distributed import choose_device
from ift_components.errors import ConfigError
from ift_components.evaluation.predictors.base import GREEDY, Answer, Sampling, Work
from ift_components.evaluation.records import Item
from ift_components.files import sha256
from ift_components.models.hf_files import is_squashed
from ift_components.models.image_layout import IMAGE_LAYOUT, read_note
from ift_components.models.pictures import squash
from ift_components.training.settings import parse_dtype


class HuggingFacePredictor:
    """Answers with `AutoModelForImageTextToText`, batched, prompts left-padded.

    The prompt goes through the model's chat template, which writes the special tokens itself: the processor adds none. A model
    without one (BLIP-2) is asked `Question: {prompt} Answer:`, or what `prompt_format` says. Pictures are squashed into one
    tile first if the checkpoint notes that it was trained on squashed ones (`image_layout` in its `config.json`).

    Args:
        path: folder of a checkpoint with its processor, or a name on the Hub.
        batch_size: prompts per call of `generate`.
        dtype: `fp32` or `bf16`.
        device: `cpu`, `cuda` or `auto`.
        prompt_format: for models without a chat template, with `{prompt}`.
        trust_remote_code: run code that comes with the checkpoint.
        corrected: put Llama-3.2-Vision right where transformers has it wrong (`ift_components.models.transformers_patch`).

    Raises:
        ConfigError: if transformers is not installed or the model cannot be loaded.
    """

    def __init__(
        self,
        path: str,
        *,
        batch_size: int = 8,
        dtype: str = "fp32",
        device: str = "auto",
        prompt_format: str = "Question: {prompt} Answer:",
        trust_remote_code: bool = False,
        corrected: bool = False,
    ) -> None:
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: PLC0415 (an optional extra)
        except ImportError as error:
            raise ConfigError(
                "predictor: HuggingFacePredictor needs transformers; install the extra `hf` of this package"
            ) from error
        if batch_size < 1:
            raise ConfigError(f"predictor.batch_size: {batch_size} is below 1")
        if "{prompt}" not in prompt_format:
            raise ConfigError(f"predictor.prompt_format: '{prompt_format}' does not hold {{prompt}}")
        self._path, self._batch_size, self._format = path, batch_size, prompt_format
        self._device = choose_device(device)
        self._dtype = parse_dtype(dtype, "predictor.dtype")
        try:
            self._processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
            model = AutoModelForImageTextToText.from_pretrained(
                path, dtype=self._dtype, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).splitlines() or [repr(error)])[0]
            raise ConfigError(f"predictor.path: '{path}' cannot be loaded by transformers: {first}") from error
        if corrected:
            self._correct(model)
        self._class = f"{type(model).__name__}{' (corrected)' if corrected else ''}"
        self._model = model.to(self._device).eval()
        self._warn_of_padding(model.config)
        self._tile = self._processor.image_processor.size["height"] if is_squashed(model.config) else None
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def _warn_of_padding(self, config: Any) -> None:
        """Warn where a model was tuned without the padding that transformers always computes."""
        noted = read_note(getattr(config, IMAGE_LAYOUT, None), self._path)
        if noted is not None and noted.answering_padding == "none":
            print(
                f"warning: predictor.path: {self._path} was tuned without padding (tile_padding none), and transformers pads "
                "every picture to four tiles: expect worse answers than this package's engine gives (checkpoint_dir). Tune "
                "with tile_padding=meta to ask it here, or with tile_padding=paper if the paper's protocol is meant",
                file=sys.stderr,
            )

    def _correct(self, model: Any) -> None:
        from ift_components.models import transformers_patch  # noqa: PLC0415 (needs the extra)

        if model.config.model_type != "mllama":
            raise ConfigError(
                f"predictor.corrected: '{self._path}' is a model of type '{model.config.model_type}', and only mllama "
                "(Llama-3.2-Vision) has corrections; remove the key"
            )
        transformers_patch.correct_taps(model)
        transformers_patch.correct_rows(model)

    def describe(self) -> dict[str, str | None]:
        """Return the model's path and class, and the SHA-256 of a local folder's weights and of its config."""
        folder = Path(self._path)
        weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        hashes = " ".join(sha256(path) for path in weights) or None
        config = folder / "config.json"
        identity = {"predictor": "huggingface", "path": self._path, "class": self._class, "sha256": hashes}
        return {**identity, "config_sha256": sha256(config) if config.is_file() else None}

    def check(self, items: Sequence[Item]) -> None:
        """Check that every item has a text instruction.

        Raises:
            ConfigError: if one needs a proxy instruction.
        """
        for item in items:
            if not item.prompt:
                raise ConfigError(
                    f"'{item.id}' has no instruction text; a proxy instruction needs this package's engine"
                )

    def _text(self, item: Item) -> str:
        if getattr(self._processor, "chat_template", None) is None:
            # Not str.format: a question may hold braces.
            return self._format.replace("{prompt}", item.prompt)
        content = [{"type": "image"}, {"type": "text", "text": item.prompt}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text

    def answer(self, work: Sequence[Work], sampling: Sampling = GREEDY) -> Iterator[tuple[Work, Answer]]:
        """Yield the answers, batch by batch; only answers of the same length limit share one.

        Every batch is drawn from the seed of its first answer: transformers has no generator a row, so that sampled answers
        also depend on the batches.
        """
        groups: dict[int, list[Work]] = {}
        for unit in work:
            groups.setdefault(unit.item.max_new_tokens, []).append(unit)
        for longest, group in groups.items():
            for start in range(0, len(group), self._batch_size):
                batch = group[start : start + self._batch_size]
                begin = time.perf_counter()
                torch.manual_seed(batch[0].seed(sampling.seed))
                texts = self._generate(batch, longest, sampling)
                seconds = (time.perf_counter() - begin) / len(batch)
                yield from ((unit, Answer(text, None, seconds)) for unit, text in zip(batch, texts, strict=True))

    def _inputs(self, batch: Sequence[Work]) -> Any:
        """Return the model's inputs for a batch, on its device."""
        pictures = (work.item.picture() for work in batch)
        images = [
            [picture.convert("RGB") if self._tile is None else squash(picture, self._tile)] for picture in pictures
        ]
        texts = [self._text(work.item) for work in batch]
        chat = getattr(self._processor, "chat_template", None) is not None
        inputs: Any = self._processor(
            images=images if chat else [image for (image,) in images],
            text=texts,
            add_special_tokens=not chat,
            padding=True,
            return_tensors="pt",
        )
        return inputs.to(self._device, self._dtype)

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Work], longest: int, drawing: Sampling) -> list[str]:
        inputs = self._inputs(batch)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if drawing.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": drawing.temperature,
                "top_p": drawing.top_p,
                "top_k": 0,
            }
        tokenizer = self._processor.tokenizer
        tokens = self._model.generate(**inputs, max_new_tokens=longest, pad_token_id=tokenizer.pad_token_id, **sampling)
        # BLIP-2 with a T5 gives the answer alone; decoders give the prompt before it.
        prompt = 0 if self._model.config.get_text_config().is_encoder_decoder else inputs["input_ids"].shape[1]
        answers: list[str] = tokenizer.batch_decode(tokens[:, prompt:], skip_special_tokens=True)
        return answers
