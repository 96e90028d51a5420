"""Merging an adapter into its base, and blending two checkpoints: one tensor in memory at a time, in fp32."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from torchtune.modules.model_fusion import DeepFusionModel

from ift_components.errors import ConfigError
from ift_components.models.adapter_files import merged_weights
from ift_components.models.adapter_reader import check_base, put_adapter
from ift_components.models.blend import blend_tensor
from ift_components.models.hf_layout import checkpoint_files, hf_to_tune, older_name, read_weights
from ift_components.models.hf_names import HFNames
from ift_components.models.parts import part_of


class CheckpointWeights(Mapping[str, Tensor]):
    """The weights of a checkpoint by their names in this package, each read when it is asked for.

    Args:
        folder: a checkpoint in Hugging Face layout.
        names: the model's names.
    """

    def __init__(self, folder: Path, names: HFNames) -> None:
        self._names = names
        self._places: dict[str, tuple[Path, str]] = {}
        for path in checkpoint_files(folder):
            with safe_open(path, framework="pt") as file:
                self._places |= {older_name(key): (path, key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)

    def __getitem__(self, name: str) -> Tensor:
        """Return a weight."""
        layout_name = older_name(self._names.of[name])
        path, key = self._places[layout_name]
        with safe_open(path, framework="pt") as file:
            return hf_to_tune({layout_name: file.get_tensor(key)}, self._names.config)[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the model's weights that the checkpoint holds."""
        return (name for name, key in self._names.of.items() if older_name(key) in self._places)

    def __len__(self) -> int:
        """Count them."""
        return sum(1 for _ in self)


def check_same_shapes(base: Path, tuned: Path, names: HFNames) -> None:
    """Check that two checkpoints are of one model.

    Raises:
        ConfigError: naming the first weight that differs.
    """

    def shapes(folder: Path) -> dict[str, list[int]]:
        result: dict[str, list[int]] = {}
        for path in checkpoint_files(folder):
            with safe_open(path, framework="pt") as file:
                result |= {older_name(key): list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return result

    left, right = shapes(base), shapes(tuned)
    for key in sorted(left.keys() | right.keys() | set(map(older_name, names.of.values()))):
        if left.get(key) != right.get(key) or key not in left:
            raise ConfigError(
                f"tuned_dir: {key} is {right.get(key)} in {tuned} and {left.get(key)} in checkpoint_dir {base}; only "
                "checkpoints of one model can be blended"
            )


def adapter_weights(model: DeepFusionModel, base: Path, adapter: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weight) of the plain model that does what a base with an adapter does.

    Args:
        model: a model without storage, which gets the adapter's modules.
        base: the checkpoint that the adapter was trained on.
        adapter: the adapter's folder.

    Raises:
        ConfigError: if the adapter belongs to another base, or holds virtual tokens, which no weights can stand for.
    """
    check_base(adapter, base)
    whole, has_prompts = put_adapter(model, adapter)
    if has_prompts:
        raise ConfigError(
            f"adapter_dir: {adapter} holds virtual tokens (prefix or ptuning_v2), which cannot be merged into weights; "
            "evaluate it as it is (ift_eval_recipe, adapter_dir=...), or tune by lora, dora, ia3 or full to merge"
        )
    return merged_weights(model, ((name, whole.get(name, tensor)) for name, tensor in read_weights(base)))


def blended_weights(
    base: Mapping[str, Tensor], tuned: Iterator[tuple[str, Tensor]], shares: Mapping[str, float]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weight) of a model between two, in fp32 where a share is not 1.

    Args:
        base: weights before tuning.
        tuned: names and weights after tuning.
        shares: for each part how far to go from the one to the other.
    """
    for name, tensor in tuned:
        share = shares[part_of(name)]
        yield name, tensor if share == 1 else blend_tensor(base[name], tensor, share)
