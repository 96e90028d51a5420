"""Llama-3.2-Vision in transformers, put right where its Mllama differs from Meta's model and from this package's.

    from ift_components.models.transformers_patch import load

    model, processor = load("RUN/checkpoint")
    pipeline("image-text-to-text", model=model, processor=processor)

Two faults of the model, both in transformers 4.55 to at least 5.23:

- The vision encoder hands on the states after the layers that `intermediate_layers_indices` names. Meta's model, torchtune and
  SGLang hand on the states before them.
- Tokens before `<|image|>` see the image in cross-attention; only the feed-forward part after it is undone for them.

And one difference of the processor: it cuts a picture into as many tiles as its size asks for, where a checkpoint that says
`image_layout: {tiles: 1}` was trained on pictures squashed into one.

No code is loaded from the checkpoint (`trust_remote_code` stays off): the classes are here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ift_components.errors import ConfigError
from ift_components.models.hf_files import is_squashed
from ift_components.models.pictures import squash

try:
    from transformers import MllamaForConditionalGeneration, MllamaImageProcessor, MllamaProcessor
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer, MllamaVisionEncoder
except ImportError as error:
    raise ConfigError("transformers_patch: needs transformers; install the extra `hf` of this package") from error


class TapBeforeEncoder(MllamaVisionEncoder):
    """Mllama's vision encoder, which hands on the states before each layer; `correct_taps` makes an encoder one."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Return the last state and, as `hidden_states`, one before each layer, [b, tokens, d] each."""
        output = super().forward(hidden_states, attention_mask)
        if torch.equal(output.hidden_states[0], hidden_states):
            return output  # a version that is right
        return BaseModelOutput(
            last_hidden_state=output.last_hidden_state, hidden_states=(hidden_states, *output.hidden_states[:-1])
        )


class ImageRowsLayer(MllamaCrossAttentionDecoderLayer):
    """Mllama's cross-attention layer, without any effect on tokens before the image; `correct_rows` makes a layer one."""

    def forward(
        self, hidden_states: Tensor, *args: Any, full_text_row_masked_out_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the layer's output, [b, s, d], where the token sees an image and its input elsewhere.

        Args:
            hidden_states: [b, s, d].
            args: what the layer takes.
            full_text_row_masked_out_mask: [b, 1, s, 1], 0 for tokens that see no image.
            kwargs: what the layer takes.
        """
        output: Tensor = super().forward(
            hidden_states, *args, full_text_row_masked_out_mask=full_text_row_masked_out_mask, **kwargs
        )
        if full_text_row_masked_out_mask is None:
            return output
        return torch.where(full_text_row_masked_out_mask[:, 0].bool(), output, hidden_states)


def correct_taps(model: MllamaForConditionalGeneration) -> None:
    """Make a model's vision encoder tap its states before the layers."""
    model.model.vision_model.transformer.__class__ = TapBeforeEncoder


def correct_rows(model: MllamaForConditionalGeneration) -> None:
    """Keep the tokens before the image from seeing it."""
    for layer in model.model.language_model.layers:
        if isinstance(layer, MllamaCrossAttentionDecoderLayer):
            layer.__class__ = ImageRowsLayer


class SquashingImageProcessor(MllamaImageProcessor):
    """`MllamaImageProcessor` that squashes every picture into one tile, as training does."""

    def preprocess(self, images: Any, **kwargs: Any) -> Any:
        """Return what `MllamaImageProcessor` returns for the squashed pictures.

        Args:
            images: a picture, or (nested) lists of them.
            kwargs: as for `MllamaImageProcessor`.
        """
        return super().preprocess(self._squash(self.fetch_images(images)), **kwargs)

    def _squash(self, images: Any) -> Any:
        if isinstance(images, Sequence):
            return [self._squash(image) for image in images]
        if not isinstance(images, Image.Image):
            raise TypeError(f"{type(images).__name__} given as an image; expected pictures of Pillow, paths or URLs")
        return squash(images, self.size["height"])


def load(folder: str | Path, **kwargs: Any) -> tuple[MllamaForConditionalGeneration, MllamaProcessor]:
    """Load a Llama-3.2-Vision checkpoint into transformers, with the corrections.

    The parts are replaced in a model of transformers' own class: its loader renames weights, and its pipelines know a model, by
    the name of the class.

    Args:
        folder: the checkpoint, with its processor's files.
        kwargs: as for transformers' `from_pretrained` of a model: `dtype`, `device_map`.

    Returns:
        The model and its processor, which squashes pictures if the model was trained on squashed ones.
    """
    model = MllamaForConditionalGeneration.from_pretrained(folder, **kwargs).eval()
    correct_taps(model)
    correct_rows(model)
    processor = MllamaProcessor.from_pretrained(folder)
    if is_squashed(model.config):
        processor.image_processor = SquashingImageProcessor.from_pretrained(folder)
    return model, processor
