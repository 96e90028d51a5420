"""The layout of pictures: what is refused, what is noted and read again, what a model is asked in."""

import json

import pytest

from ift_components.errors import ConfigError
from ift_components.models.adapter_files import FACTS
from ift_components.models.build import layout_for_answers
from ift_components.models.image_layout import (
    IMAGE_LAYOUT,
    ImageLayout,
    layout_warning,
    noted_layout,
    read_note,
)

PAPER, META = ImageLayout(tile_padding="paper"), ImageLayout(tile_padding="meta")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tiles": 2}, "tiles: '2' is not one of 1, 4"),
        ({"tiles": True}, "tiles: 'True' is not one of 1, 4"),
        ({"tile_padding": "Meta"}, "tile_padding: 'Meta' is not one of none, meta, paper"),
        ({"resize": "nearest"}, "resize: 'nearest' is not one of bilinear, bicubic"),
        ({"tiles": 4, "tile_padding": "paper"}, "tiles: 4 does not go with tile_padding 'paper'"),
    ],
)
def test_unknown_layouts_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ImageLayout(**values)


def test_the_papers_protocol_trains_without_padding_and_answers_with_it():
    assert (PAPER.training_padding, PAPER.answering_padding) == ("none", "meta")


def folder(path, name, layout):
    path.mkdir(exist_ok=True)
    note = {} if layout is None else {IMAGE_LAYOUT: layout.note()}
    (path / name).write_text(json.dumps({"model_type": "mllama", **note}))
    return str(path)


def test_a_note_is_read_as_it_was_written(tmp_path):
    layout = ImageLayout(4, "meta", "bicubic")
    folder(tmp_path, "config.json", layout)
    assert noted_layout(tmp_path / "config.json") == layout
    assert read_note({key: str(value) for key, value in layout.note().items()}, "a proxy") == layout  # metadata is text
    assert read_note({"tiles": 1, "tile_padding": "none"}, "an earlier checkpoint") == ImageLayout()
    assert noted_layout(tmp_path / "nothing.json") is None
    with pytest.raises(ConfigError, match=r"x notes an unknown layout of pictures: \{'tiles': 9\}"):
        read_note({"tiles": 9}, "x")


def test_a_model_is_asked_as_it_was_trained(tmp_path):
    checkpoint = folder(tmp_path / "c", "config.json", ImageLayout(4, "none", "bicubic"))
    assert layout_for_answers(checkpoint) == ImageLayout(4, "none", "bicubic")
    adapter = folder(tmp_path / "a", FACTS, META)
    assert layout_for_answers(checkpoint, adapter) == META
    assert layout_for_answers(checkpoint, folder(tmp_path / "b", FACTS, None)).tiles == 4
    assert layout_for_answers(folder(tmp_path / "metas_own", "config.json", None)) == META
    assert layout_for_answers(None) == ImageLayout()
    assert layout_for_answers(None, None, {"tiles": 4, "tile_padding": None}) == ImageLayout(4)


def test_another_layout_is_refused_unless_it_is_meant(tmp_path):
    plain = folder(tmp_path / "none", "config.json", ImageLayout())
    with pytest.raises(ConfigError, match=r"tile_padding: .* with tile_padding none and not meta.*other_layout=true"):
        layout_for_answers(plain, None, {"tile_padding": "meta"})
    with pytest.raises(ConfigError, match=r"tiles: .* with tiles 1 and not 4; resize bilinear and not bicubic"):
        layout_for_answers(plain, None, {"tiles": 4, "resize": "bicubic"})
    assert layout_for_answers(plain, None, {"tile_padding": "meta"}, anyway=True) == META
    # What the paper's protocol is asked in is padded, whichever name it is given.
    paper = folder(tmp_path / "paper", "config.json", PAPER)
    assert layout_for_answers(paper, None, {"tile_padding": "meta"}) == META
    with pytest.raises(ConfigError, match="with tile_padding meta and not none"):
        layout_for_answers(paper, None, {"tile_padding": "none"})


def test_going_on_from_another_layout_is_warned_of():
    assert layout_warning(None, META, "proxy.path: p was warmed up", "repeat it") is None
    assert layout_warning(ImageLayout(), PAPER, "proxy.path: p was warmed up", "repeat it") is None  # trained alike
    assert layout_warning(ImageLayout(), ImageLayout(4, "meta"), "proxy.path: p was warmed up", "repeat it") == (
        "warning: proxy.path: p was warmed up with tiles 1 and not 4; tile_padding none and not meta: repeat it"
    )
