"""Finding configs, overrides, and every way to get them wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING

from ift_components.config import config_names, config_to_dict, find_config, instantiate, load_config
from ift_components.errors import ConfigError
from ift_components.training.settings import TrainSettings


@dataclass
class Settings:
    output_dir: str = MISSING
    steps: int = 3
    lr: float | None = None
    part: dict[str, Any] = field(default_factory=dict)


class Part:
    def __init__(self, size: int, inner: Any = None, *, name: str = "x") -> None:
        self.size, self.inner, self.name = size, inner, name


class Other:
    def __init__(self, name: str, new: Any = None) -> None:
        self.name, self.new = name, new


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "job.yaml"
    part = f"part:\n  _component_: {__name__}.Part\n  size: 1\n  name: y\n"
    path.write_text(f"output_dir: out\nsteps: 5\nlr: null\n{part}", encoding="utf-8")
    return path


def test_packaged_config_is_found_by_name_and_a_path_wins(tmp_path, monkeypatch):
    packaged = find_config("tiny_ift.yaml")
    assert packaged.is_file()
    assert find_config("tiny_ift") == packaged
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_ift.yaml").write_text("steps: 1\n", encoding="utf-8")
    assert find_config("tiny_ift.yaml").read_text(encoding="utf-8") == "steps: 1\n"


def test_unknown_config_lists_the_names():
    with pytest.raises(ConfigError) as error:
        find_config("tiny_itf.yaml")
    assert all(name in str(error.value) for name in ["tiny_itf.yaml", *config_names()])
    assert {"tiny_warmup.yaml", "tiny_ift.yaml", "tiny_eval.yaml", "llama32v_ift.yaml"} <= set(config_names())


def test_overrides(config):
    overrides = ["steps=7", "lr=1e-3", "output_dir=/data/run=2", f"part={__name__}.Other", "part.new=[1, 2]"]
    cfg = load_config(str(config), overrides, Settings)
    assert (cfg.steps, cfg.lr, cfg.output_dir) == (7, 1e-3, "/data/run=2")
    assert cfg.part == {"_component_": f"{__name__}.Other", "name": "y", "new": [1, 2]}  # it takes no size
    assert "name" not in load_config(str(config), ["~part.name"], Settings).part
    assert load_config(str(config), ["lr=None"], Settings).lr is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stpes=7", r"unknown key 'stpes'; did you mean 'steps'\? known: lr, output_dir, part, steps"),
        ("steps=many", "steps: .*many.*Integer"),
        ("--steps", "unrecognized|not of the form key=value"),
        ("steps", "'steps' is not of the form key=value"),
        ("~lost", "'~lost' removes a key"),
        ("zzzzzz=1", "unknown key 'zzzzzz'; known: lr, output_dir, part, steps"),
        ("output_dir={a} b", r"override 'output_dir={a} b': its value cannot be read as YAML .*: \"output_dir='...'\""),
        ("output_dir=,", "override 'output_dir=,': its value cannot be read as YAML"),
        ("part=no.such.thing", r"override._component_: 'no.such.thing' cannot be imported"),
    ],
)
def test_bad_overrides_are_named(config, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(str(config), [override], Settings)


def test_missing_values_are_named(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("output_dir: ???\npart:\n  size: ???\n  twice: ${output_dir}\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"give a value for output_dir, part.size \(on the command line: output_dir=...\)"
    ):
        load_config(str(path), [], Settings)


def test_unreadable_yaml(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad.yaml cannot be read as YAML"):
        load_config(str(path), [], Settings)


def test_instantiate_builds_nested_components():
    inner = {"_component_": f"{__name__}.Part", "size": 2}
    part = instantiate({"_component_": f"{__name__}.Part", "size": 1, "inner": inner}, "model", name="y")
    assert (part.size, part.name, part.inner.size) == (1, "y", 2)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"size": 1}, "needs a '_component_' key"),
        ({"_component_": "no.such.thing"}, "'no.such.thing' cannot be imported"),
        ({"_component_": f"{__name__}.Part", "size": 1, "nmae": "z"}, "nmae.*did you mean 'name'"),
        ({"_component_": f"{__name__}.Part"}, "size"),
    ],
)
def test_bad_components_are_named(node, message):
    with pytest.raises(ConfigError, match=message) as error:
        instantiate(node, "model")
    assert str(error.value).startswith("model")


def test_null_takes_a_component_away():
    cfg = load_config("tiny_ift.yaml", ["data=x", "dataset.shuffling=null", "lr_scheduler=None"], TrainSettings)
    assert cfg.dataset["shuffling"] is None
    assert cfg.lr_scheduler is None


def test_a_config_names_drawn_data_without_drawing_it(monkeypatch, tmp_path):
    monkeypatch.setenv("IFT_CACHE", str(tmp_path / "cache"))
    cfg = load_config("tiny_ift.yaml", [], TrainSettings)
    assert cfg.data == cfg.dataset["source"] == str(tmp_path / "cache" / "prepared" / "drawn-smear")
    assert not (tmp_path / "cache").exists()
    assert (Path(cfg.checkpoint_dir) / "config.json").is_file()
    assert load_config("tiny_ift.yaml", ["data=x"], TrainSettings).dataset["source"] == "x"


def test_a_config_becomes_plain_data_again():
    cfg = load_config("tiny_ift.yaml", ["data=x", "proxy.lr=null"], TrainSettings)
    plain = config_to_dict(cfg)
    assert plain["proxy"] == vars(cfg.proxy)
    assert plain["model"] == {"_component_": "ift_components.models.tiny_llama3_2_vision"}
