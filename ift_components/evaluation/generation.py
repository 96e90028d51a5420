"""Greedy generation and next-token logits for a batch of prompts, with torchtune's key-value cache."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchtune.models.llama3_2_vision import Llama3VisionTransform
from torchtune.modules.model_fusion import DeepFusionModel


class Generator:
    """Runs prompts through a model in batches; prompts about one image share its pass through the encoder.

    Args:
        model: the model, on its device and in its compute dtype.
        transform: the model's transform.
        batch_size: prompts per batch; caches are made once for it.
        max_seq_len: longest prompt plus generated tokens.
    """

    def __init__(
        self, model: DeepFusionModel, transform: Llama3VisionTransform, batch_size: int, max_seq_len: int
    ) -> None:
        self._model = model.eval()
        self._transform = transform
        self._batch_size = batch_size
        self._max_seq_len = max_seq_len
        weight = model.decoder.output.weight
        self._device, self._dtype = weight.device, weight.dtype
        with self._device:
            model.setup_caches(
                batch_size,
                self._dtype,
                encoder_max_seq_len=model.encoder.clip.get_image_tokens_per_tile(),
                decoder_max_seq_len=max_seq_len,
            )

    @torch.inference_mode()
    def next_logits(self, images: Tensor, image_index: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits of the token after each prompt, [b, vocabulary] in fp32.

        Args:
            images: [m, 1 tile, 3, h, w], the different images of the batch.
            image_index: for each prompt, which of them it is about.
            prompts: at most `batch_size` token sequences, each with one `<|image|>`.
        """
        return self._prefill(images, image_index, prompts)[0][: len(prompts)]

    @torch.inference_mode()
    def generate(
        self, images: Tensor, image_index: Sequence[int], prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> list[str]:
        """Return the greedily generated text after each prompt, up to a stop token or `max_new_tokens`.

        Args:
            images: [m, 1 tile, 3, h, w], the different images of the batch.
            image_index: for each prompt, which of them it is about.
            prompts: at most `batch_size` token sequences, each with one `<|image|>`.
            max_new_tokens: longest text in tokens.
        """
        logits, padding = self._prefill(images, image_index, prompts)
        stops = torch.tensor(self._transform.stop_tokens, device=self._device)
        width = max(map(len, prompts))
        generated = []
        finished = torch.zeros(self._batch_size, dtype=torch.bool, device=self._device)
        for step in range(max_new_tokens):
            token = logits.argmax(dim=-1)
            generated.append(token)
            finished |= torch.isin(token, stops)
            if step == max_new_tokens - 1 or bool(finished[: len(prompts)].all()):
                break
            position = width + step
            mask = self._causal_mask(padding, position, 1)
            logits = self._forward(token.unsqueeze(1), mask, (position - padding).unsqueeze(1))
        rows = torch.stack(generated, dim=1)[: len(prompts)].tolist()
        return [self._text(row) for row in rows]

    def _prefill(
        self, images: Tensor, image_index: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Fill the caches; return the last position's logits and each row's left padding."""
        width = max(map(len, prompts))
        rows = list(prompts) + [prompts[-1]] * (self._batch_size - len(prompts))  # the caches' batch is fixed
        which = list(image_index) + [image_index[-1]] * (self._batch_size - len(prompts))
        pad = self._transform.pad_id
        tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=self._device)
        padding = torch.tensor([width - len(row) for row in rows], device=self._device)
        aspect_ratio = torch.ones(len(images), 1, 2, dtype=torch.int)  # torchtune loops over it: on the CPU
        encoded = self._model.encoder(images.unsqueeze(1).to(self._device, self._dtype), aspect_ratio)
        encoded = encoded[torch.tensor(which, device=self._device)]  # [b, image tokens, d]
        sees_image = (tokens == self._transform.tokenizer.image_id).cumsum(dim=1) > 0
        encoder_mask = sees_image.unsqueeze(-1).expand(-1, -1, encoded.shape[1])
        self._model.reset_caches()
        positions = (torch.arange(width, device=self._device) - padding.unsqueeze(1)).clamp(min=0)
        mask = self._causal_mask(padding, 0, width)
        return self._forward(tokens, mask, positions, encoded, encoder_mask), padding

    def _causal_mask(self, padding: Tensor, start: int, length: int) -> Tensor:
        """Return [b, length, max_seq_len]: query i attends to cached positions up to itself, without the left padding."""
        query = torch.arange(start, start + length, device=self._device).unsqueeze(1)
        key = torch.arange(self._max_seq_len, device=self._device)
        allowed = (key <= query) & (key >= padding.view(-1, 1, 1))
        return allowed | (key == query)  # a padding query sees itself: an empty softmax is NaN

    def _forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        positions: Tensor,
        encoded: Tensor | None = None,
        encoder_mask: Tensor | None = None,
    ) -> Tensor:
        """Run the decoder; project only the last position to the vocabulary."""
        decoder = self._model.decoder
        h = decoder.tok_embeddings(tokens)
        for layer in decoder.layers:
            h = layer(h, mask=mask, encoder_input=encoded, encoder_mask=encoder_mask, input_pos=positions)
        return decoder.unembed(h[:, -1:]).squeeze(1)

    def _text(self, tokens: list[int]) -> str:
        stops = set(self._transform.stop_tokens)
        end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
        return self._transform.tokenizer.decode(tokens[:end], truncate_at_eos=False, skip_special_tokens=True)
