"""How pictures are laid out for the vision encoder, and where that is noted, so that a model is asked as it was trained.

A layout says into how many tiles a picture may be cut, how tiles are padded and how a picture is resized. Answers get much
worse in another layout than training's: each checkpoint notes its own in `config.json` (key `image_layout`), each adapter in
`ift_adapter.json`, each proxy in its metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ift_components.errors import ConfigError
from ift_components.models.pictures import RESIZING

IMAGE_LAYOUT = "image_layout"
TILES = (1, 4)
TILE_PADDINGS = ("none", "meta", "paper")


@dataclass(frozen=True)
class ImageLayout:
    """A layout of pictures.

    Attributes:
        tiles: 1 squashes every picture into one tile; 4 keeps its shape and cuts it into up to four, as transformers does.
        tile_padding: `none` (real tiles alone, as torchtune), `meta` (padded to four tiles, as Meta trained and as transformers
            and servers compute) or `paper` (trained as `none` and asked as `meta`, as the paper's authors did).
        resize: how pictures are resized, a name in `RESIZING`.

    Raises:
        ConfigError: if a value is none of these, or the paper's protocol is to have several tiles.
    """

    tiles: int = 1
    tile_padding: str = "none"
    resize: str = "bilinear"

    def __post_init__(self) -> None:
        allowed: dict[str, Any] = {"tiles": TILES, "tile_padding": TILE_PADDINGS, "resize": RESIZING}
        for key, values in allowed.items():
            value = getattr(self, key)
            if value not in values or isinstance(value, bool):
                raise ConfigError(f"{key}: '{value}' is not one of {', '.join(map(str, values))}")
        if self.tile_padding == "paper" and self.tiles != 1:
            raise ConfigError(f"tiles: {self.tiles} does not go with tile_padding 'paper', whose pictures are one tile")

    @property
    def training_padding(self) -> str:
        """The padding that is computed in training, `none` or `meta`."""
        return "none" if self.tile_padding == "paper" else self.tile_padding

    @property
    def answering_padding(self) -> str:
        """The padding that is computed when the model is asked, `none` or `meta`."""
        return "meta" if self.tile_padding == "paper" else self.tile_padding

    def note(self) -> dict[str, Any]:
        """Return the layout as it is noted."""
        return asdict(self)

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in asdict(self).items())


META_LAYOUT = ImageLayout(tile_padding="meta")
"""Of a checkpoint that notes nothing, which is Meta's own or tuned by other software: padded, as Meta trained it."""


def read_note(note: Any, where: str) -> ImageLayout | None:
    """Return the layout that a checkpoint, adapter or proxy notes, or None if it notes none.

    Args:
        note: what is noted; its values may be text.
        where: what notes it, for messages.

    Raises:
        ConfigError: if it is no layout.
    """
    if note is None:
        return None
    try:
        return ImageLayout(**{**note, "tiles": int(note.get("tiles", 1))})
    except (TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ConfigError(f"{where} notes an unknown layout of pictures: {note}") from error


def noted_layout(path: Path) -> ImageLayout | None:
    """Return the layout that a JSON file notes: a checkpoint's `config.json` or an adapter's `ift_adapter.json`.

    Raises:
        ConfigError: if it notes one that this version does not know.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # whoever loads the weights says so
    return read_note(content.get(IMAGE_LAYOUT) if isinstance(content, Mapping) else None, str(path))


def changes(before: ImageLayout, after: ImageLayout, *, asked: bool) -> list[str]:
    """Return in words what differs between two layouts as they are computed.

    Args:
        before: the one.
        after: the other.
        asked: whether answers are compared (`paper` is `meta` then) or training (`paper` is `none`).
    """
    padding = "answering_padding" if asked else "training_padding"
    pairs = {
        "tiles": (before.tiles, after.tiles),
        "tile_padding": (getattr(before, padding), getattr(after, padding)),
        "resize": (before.resize, after.resize),
    }
    return [f"{key} {old} and not {new}" for key, (old, new) in pairs.items() if old != new]


def answering_layout(
    noted: ImageLayout | None, asked: Mapping[str, Any], where: str, *, is_trained: bool = True, anyway: bool = False
) -> ImageLayout:
    """Return the layout in which a model is to be asked.

    Args:
        noted: what its checkpoint or adapter notes.
        asked: the user's `tiles`, `tile_padding` and `resize`; None takes what is noted.
        where: the checkpoint or adapter, for messages.
        is_trained: whether the weights come from a checkpoint; random ones are laid out as one tile without padding.
        anyway: whether to ask the model in another layout than it was trained in.

    Raises:
        ConfigError: if a value is unknown, or the layouts differ and `anyway` is not set.
    """
    default = noted or (META_LAYOUT if is_trained else ImageLayout())
    layout = ImageLayout(**{**asdict(default), **{key: value for key, value in asked.items() if value is not None}})
    different = changes(noted, layout, asked=True) if noted is not None else []
    if different and not anyway:
        key = different[0].split()[0]
        raise ConfigError(
            f"{key}: {where} was tuned to be asked with {'; '.join(different)}, and would answer much worse; leave {key} at "
            "null, which takes what the checkpoint notes, or set other_layout=true to ask it in the other layout"
        )
    return layout


def layout_warning(before: ImageLayout | None, after: ImageLayout, what: str, fix: str) -> str | None:
    """Return a line that warns of a training run which goes on from another layout; None if there is nothing to warn of.

    Args:
        before: the layout of what it goes on from, None if that is not known.
        after: the run's.
        what: what it goes on from, and how, such as `proxy.path: FILE was warmed up`.
        fix: what to do about it.
    """
    different = changes(before, after, asked=False) if before is not None else []
    return f"warning: {what} with {'; '.join(different)}: {fix}" if different else None
