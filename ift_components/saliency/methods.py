"""The methods: from one walk of a question and its answer to how much of each answer token came from each patch.

An answer token's row is the place that predicts it: what stands at the token's own place acts on later tokens alone.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchtune.modules.model_fusion import DeepFusionModel, FusionLayer

from ift_components.errors import ConfigError
from ift_components.saliency.image_tokens import ImageTokens, Taps, canvas_of, encoder_mixing, gate, tapped
from ift_components.saliency.walk import Asked, Trace, Walk, log_odds


@dataclass(frozen=True)
class Method:
    """A way to make a map.

    Attributes:
        title: what pages call it.
        meaning: one line.
        relevance: takes the walk, pixels [down, across, 3, h, w], what was asked and the chosen answer tokens; returns
            [chosen or 1, patches], one row where all the chosen tokens are explained together. It may be negative.
        by_token: whether each token has a map of its own.
        library: a package that it needs.
    """

    title: str
    meaning: str
    relevance: Callable[..., Tensor]
    by_token: bool = True
    library: str | None = None

    def check_library(self, key: str = "method") -> None:
        """Check that the method's library is installed.

        Raises:
            ConfigError: if it is not; it names the extra.
        """
        if self.library is not None and importlib.util.find_spec(self.library) is None:
            raise ConfigError(f"{key}: '{self.title}' needs {self.library}; install it with: pip install '.[saliency]'")


def cross_layers(model: DeepFusionModel) -> list[int]:
    """Return the numbers of the decoder's layers that attend to the image."""
    return [number for number, layer in enumerate(model.decoder.layers) if isinstance(layer, FusionLayer)]


def _traced(walk: Walk, pixels: Tensor, asked: Asked) -> tuple[Trace, Taps, Tensor]:
    trace = Trace()
    with tapped(walk.model) as taps:
        logits = walk.logits(pixels.unsqueeze(0), asked, trace)
    return trace, taps, logits


def _rows(trace: Trace, asked: Asked, chosen: Sequence[int]) -> list[int]:
    """Return the places that predict the chosen tokens, virtual tokens in front of the sequence counted."""
    virtual = _decoder_length(trace) - (len(asked.tokens) - 1)
    return [virtual + asked.start - 1 + token for token in chosen]


def _decoder_length(trace: Trace) -> int:
    """Return the places of the decoder's sequence, virtual tokens counted; every attention module of it has as many."""
    last = next(reversed(trace.passes.values()))
    return last.attended.shape[2]


def _real_keys(weights: Tensor, count: int) -> Tensor:
    """Leave out the virtual tokens that tuning has put in front of the keys: [.., keys] to [.., count]."""
    return weights[..., weights.shape[-1] - count :]


@dataclass(frozen=True)
class CrossAttention:
    """Attention of answer tokens to patches in the decoder's cross-attention layers.

    Attributes:
        weights: [layers, heads, answer tokens, patches].
        layers: the layers' numbers in the decoder.
        gates: |tanh| of each layer's gate, [layers]: by how much what it attends to is scaled.
    """

    weights: Tensor
    layers: list[int]
    gates: list[float]

    def select(self, layer: int | None = None, head: int | None = None) -> Tensor:
        """Return [answer tokens, patches] of a layer and a head.

        Args:
            layer: a number in `layers`; None takes the mean of all, weighted by their gates.
            head: None takes the mean of all.

        Raises:
            ConfigError: if there is no such layer or head.
        """
        if layer is not None and layer not in self.layers:
            known = ", ".join(map(str, self.layers))
            raise ConfigError(f"layer: {layer} does not attend to the image; those that do: {known}")
        heads = self.weights.shape[1]
        if head is not None and not 0 <= head < heads:
            raise ConfigError(f"head: {head} does not exist; expected 0 to {heads - 1}")
        of_heads = self.weights.mean(dim=1) if head is None else self.weights[:, head]
        if layer is not None:
            return of_heads[self.layers.index(layer)]
        shares = torch.tensor(self.gates) + torch.finfo(torch.float32).tiny
        return torch.einsum("l,ltp->tp", shares / shares.sum(), of_heads)


@torch.no_grad()
def cross_attention(walk: Walk, pixels: Tensor, asked: Asked, chosen: Sequence[int]) -> CrossAttention:
    """Return the raw attention of the chosen answer tokens to patches, of every layer and head."""
    trace, _, _ = _traced(walk, pixels, asked)
    tokens, layers = ImageTokens.of(walk.model, pixels), cross_layers(walk.model)
    rows, kept = _rows(trace, asked, chosen), []
    for number in layers:
        weights = trace.passes[f"decoder.layers.{number}.fusion_layer.attn"].weights()
        kept.append(_real_keys(weights, tokens.count)[:, rows][..., tokens.patches.to(weights.device)].cpu())
    gates = [gate(walk.model.decoder.layers[number].fusion_layer.ca_scale) for number in layers]
    return CrossAttention(torch.stack(kept), layers, gates)


def attention(
    walk: Walk,
    pixels: Tensor,
    asked: Asked,
    chosen: Sequence[int],
    *,
    layer: int | None = None,
    head: int | None = None,
) -> Tensor:
    """Raw cross-attention of a layer and a head (None: the mean of all), [chosen, patches]."""
    return cross_attention(walk, pixels, asked, chosen).select(layer, head)


def _decoder_attention(walk: Walk) -> Iterator[tuple[str, float, bool]]:
    """Yield the decoder's attention modules in the order of the walk: name, gate, whether they attend to the image."""
    for number, layer in enumerate(walk.model.decoder.layers):
        language_layer, suffix = layer, ""
        if isinstance(layer, FusionLayer):
            yield f"decoder.layers.{number}.fusion_layer.attn", gate(layer.fusion_layer.ca_scale), True
            language_layer, suffix = layer.layer, ".layer"
        yield f"decoder.layers.{number}{suffix}.attn", gate(language_layer.sa_scale), False


@torch.no_grad()
def rollout(walk: Walk, pixels: Tensor, asked: Asked, chosen: Sequence[int]) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020), [chosen, patches].

    Heads are averaged, a layer's attention and the residual are added up, the attention scaled by the layer's gate g:
    (I + g A) / (1 + g), and layers are multiplied. A text token starts with nothing of the image; a cross-attention layer gives
    it what the image's tokens hold of the patches by the encoder's own rollout, and self-attention passes it on.
    """
    trace, taps, _ = _traced(walk, pixels, asked)
    count = trace.passes["encoder.clip.layers.0.attn"].attended.shape[2]

    def mean_of_heads(name: str, keys: int) -> Tensor:
        weights = _real_keys(trace.passes[name].weights().mean(dim=0), keys)
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)

    def step(mixing: Tensor, weights: Tensor, scale: float) -> Tensor:
        return (mixing + scale * (weights @ mixing)) / (1 + scale)

    tokens = ImageTokens.of(walk.model, pixels)
    image = encoder_mixing(
        walk.model, tokens, trace, taps, attention=lambda name: mean_of_heads(name, count), step=step
    )
    sees = _sees_image(walk, trace, asked).to(image.device).unsqueeze(1)
    text = torch.zeros(len(sees), image.shape[1], device=image.device)
    for name, scale, to_image in _decoder_attention(walk):
        if to_image:
            fused = (text + scale * (mean_of_heads(name, len(image)) @ image)) / (1 + scale)
            text = torch.where(sees, fused, text)
        else:
            text = step(text, mean_of_heads(name, len(text)), scale)
    return text[_rows(trace, asked, chosen)].cpu()


def _sees_image(walk: Walk, trace: Trace, asked: Asked) -> Tensor:
    """Return which places of the decoder's sequence see the image, [virtual tokens + tokens]."""
    virtual = _rows(trace, asked, [0])[0] - (asked.start - 1)
    sees = torch.tensor(asked.tokens[:-1]).eq(walk.image_id).cumsum(dim=0) > 0
    return F.pad(sees, (virtual, 0), value=False)


def relevance(walk: Walk, pixels: Tensor, asked: Asked, chosen: Sequence[int]) -> Tensor:
    """Gradient relevance (Chefer, Gur and Wolf 2021, "Generic attention-model explainability"), [chosen, patches].

    A layer's relevance is the mean over heads of the positive part of attention times its gradient of the token's log-odds (Eq.
    5), and R <- R + A R (Eq. 6), over text and image as one sequence: a cross-attention layer adds A R_image to the text's
    rows, R_image normalised as in Eq. 8 and 9. Gates are in the gradient. (Their Eq. 10 also multiplies by the transposed
    relevance among the queries; in a causal decoder that would hand a token what later tokens have seen.)
    """
    tokens = ImageTokens.of(walk.model, pixels)
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = pixels.detach().clone().to(walk.device, walk.dtype).requires_grad_()
        trace, taps, logits = _traced(walk, leaf, asked)
        targets = log_odds(logits, asked)[0]
        # Layers before the first that attends to the image hold nothing of it and are no part of the graph.
        names = [name for name, done in trace.passes.items() if done.attended.requires_grad]
        outputs = [trace.passes[name].attended for name in names]
        rows = _rows(trace, asked, chosen)
        maps = []
        for token, row in zip(chosen, rows, strict=True):
            gradients = torch.autograd.grad(targets[token], outputs, retain_graph=True, allow_unused=True)
            by_name = dict(zip(names, gradients, strict=True))
            maps.append(_propagate(walk, tokens, trace, taps, by_name)[row].cpu())
    return torch.stack(maps)


@torch.no_grad()
def _propagate(
    walk: Walk, tokens: ImageTokens, trace: Trace, taps: Taps, gradients: Mapping[str, Tensor | None]
) -> Tensor:
    """Return the relevance of patches to every place of the decoder's sequence, [s, patches]."""
    count = trace.passes["encoder.clip.layers.0.attn"].attended.shape[2]

    def positive(name: str, keys: int) -> Tensor:
        done, gradient = trace.passes[name], gradients.get(name)
        if gradient is None:  # nothing of this layer reaches the token
            return torch.zeros(done.attended.shape[2], keys, device=walk.device)
        product = done.weights() * done.gradient(gradient)
        return _real_keys(product.clamp(min=0).mean(dim=0), keys)

    def step(mixing: Tensor, weights: Tensor, _: float) -> Tensor:
        return mixing + weights @ mixing

    def normalised(mixing: Tensor) -> Tensor:
        unit = torch.eye(len(mixing), device=mixing.device)
        mixed = mixing - unit
        return mixed / mixed.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(mixed.dtype).tiny) + unit

    image = encoder_mixing(
        walk.model,
        tokens,
        trace,
        taps,
        attention=lambda name: positive(name, count),
        step=step,
        finish=normalised,
    )
    text = torch.zeros(_decoder_length(trace), image.shape[1], device=image.device)
    for name, _, to_image in _decoder_attention(walk):
        text = text + positive(name, len(image if to_image else text)) @ (image if to_image else text)
    return text


def integrated_gradients(walk: Walk, pixels: Tensor, asked: Asked, chosen: Sequence[int], *, steps: int = 32) -> Tensor:
    """Integrated gradients of the chosen tokens' summed log-odds by captum (Sundararajan et al. 2017), [1, patches].

    The path leads from an image of the training data's mean colour to the picture; a patch's relevance is the sum over its
    pixels and channels. It may be negative: what speaks against the answer. All patches add up to what the picture changes.

    Raises:
        ConfigError: if captum is not installed.
    """
    METHODS["integrated_gradients"].check_library()
    from captum.attr import IntegratedGradients  # noqa: PLC0415 (an extra)

    def target(images: Tensor) -> Tensor:
        return log_odds(walk.logits(images, asked), asked)[:, list(chosen)].sum(dim=1)

    tokens = ImageTokens.of(walk.model, pixels)
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = pixels.detach().clone().to(walk.device, walk.dtype).unsqueeze(0)
        by_pixel = IntegratedGradients(target).attribute(leaf, n_steps=steps, internal_batch_size=min(steps, 16))
    by_pixel = canvas_of(by_pixel.detach().float())[0].sum(dim=0, keepdim=True)  # [1, h, w]
    height, width = by_pixel.shape[-2] // tokens.rows, by_pixel.shape[-1] // tokens.columns
    return F.avg_pool2d(by_pixel, (height, width), divisor_override=1).flatten(1).cpu()


METHODS: dict[str, Method] = {
    "attention": Method(
        "raw attention",
        "cross-attention of the answer's tokens to patches: of a layer and a head, or the mean of heads, layers by their gates",
        attention,
    ),
    "rollout": Method(
        "attention rollout",
        "attention and residual multiplied through encoder and decoder, gates and taps counted",
        rollout,
    ),
    "relevance": Method(
        "gradient relevance",
        "attention times its gradient, added up through encoder and decoder (Chefer et al. 2021)",
        relevance,
    ),
    "integrated_gradients": Method(
        "integrated gradients",
        "gradients from a picture of mean colour to this one, what speaks for the answer",
        integrated_gradients,
        by_token=False,
        library="captum",
    ),
}


def method_of(name: str, key: str = "method") -> Method:
    """Return a method by its name.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"{key}: '{name}' is not one of {', '.join(METHODS)}")
    return METHODS[name]


def check_arguments(name: str, arguments: dict[str, Any]) -> None:
    """Check that layer and head are given to raw attention alone.

    Raises:
        ConfigError: if they are given to another method.
    """
    for key in ("layer", "head"):
        if arguments.get(key) is not None and name != "attention":
            raise ConfigError(
                f"{key}: only method 'attention' has a {key} to choose; '{name}' goes through all of them"
            )
