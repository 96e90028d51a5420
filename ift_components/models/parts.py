"""The three parts of the model, told from each other by their parameters' names."""

from collections.abc import Iterator

from torch import nn

PARTS = ("encoder", "fusion", "decoder")


def part_of(parameter_name: str) -> str:
    """Return the part of the model that a parameter belongs to: `encoder`, `fusion` or `decoder`.

    Args:
        parameter_name: its name in the model. The projection head belongs to `fusion`, as in torchtune.
    """
    if parameter_name.startswith("encoder.clip."):
        return "encoder"
    fusion = (
        parameter_name.startswith("encoder.")
        or "fusion_layer" in parameter_name
        or "fusion_embedding" in parameter_name
    )
    return "fusion" if fusion else "decoder"


def part_parameters(model: nn.Module, part: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the (name, parameter) pairs of a part of the model."""
    return ((name, parameter) for name, parameter in model.named_parameters() if part_of(name) == part)
