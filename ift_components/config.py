"""Finding packaged configs, reading overrides and turning YAML nodes into objects.

torchtune's own parser takes any dictionary: a misspelt key is silently ignored. Here every recipe declares its keys in a
dataclass, so that an unknown key, a wrong type or an unknown component argument stops the run before any work starts.
"""

import argparse
import difflib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from torchtune.config._errors import InstantiationError
from torchtune.config._utils import _get_component_from_path

from ift_components.errors import ConfigError, UserError

_HERE = Path(__file__).resolve().parent
# A wheel carries the configs inside the package; a checkout (editable install) has them beside it.
CONFIG_DIR = next((d for d in (_HERE / "configs", _HERE.parent / "configs") if d.is_dir()), _HERE / "configs")


def _drawn(style: str) -> str:
    from ift_components.smears.dataset import prepared_smears  # noqa: PLC0415 (only the miniature's configs need it)

    return str(prepared_smears(style))


# What the miniature's configs refer to: files that the package ships, and drawn data, prepared in the cache on first use.
OmegaConf.register_resolver("shipped", lambda name: str(_HERE / "models" / name), replace=True)
OmegaConf.register_resolver("drawn", _drawn, replace=True)


def config_names() -> list[str]:
    """Return the file names of the packaged configs, sorted."""
    return sorted(path.name for path in CONFIG_DIR.glob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the path of a config: a path that exists wins, then a packaged config of that name.

    Raises:
        ConfigError: if there is neither; the message lists the packaged names.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = CONFIG_DIR / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if path.parent == Path() and packaged.is_file():
        return packaged
    names = ", ".join(config_names())
    raise ConfigError(f"config '{name}' is neither a file nor a packaged config; packaged configs: {names}")


def _suggest(key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"did you mean '{close[0]}'? " * bool(close) + f"known: {', '.join(names)}"


def _apply_override(cfg: DictConfig, override: str) -> DictConfig:
    if override.startswith("~"):
        parent, _, key = override[1:].rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if not isinstance(node, DictConfig) or key not in node:
            raise ConfigError(f"override '{override}' removes a key that the config does not have")
        del node[key]
        return cfg
    key, equals, value = override.partition("=")
    if not equals or not key or key.startswith("-"):
        raise ConfigError(f"override '{override}' is not of the form key=value (or ~key to remove a key)")
    if value == "None":  # torchtune's way to write null
        value = "null"
    parent, _, last = key.rpartition(".")
    above = OmegaConf.select(cfg, parent) if parent else cfg
    if isinstance(above, DictConfig) and OmegaConf.is_interpolation(above, last):
        above[last] = None  # merging would compute what is replaced: `data` may stand for data that is yet to be drawn
    node = above.get(last) if isinstance(above, DictConfig) else None
    if isinstance(node, DictConfig) and "_component_" in node and value != "null":
        key += "._component_"  # `model=my.builder` means `model._component_=my.builder`, as in torchtune
    return cast("DictConfig", OmegaConf.merge(cfg, OmegaConf.from_dotlist([f"{key}={value}"])))


def missing_keys(cfg: DictConfig) -> list[str]:
    """Return the dotted keys whose value is `???`, in order (OmegaConf's own search fails where others refer to them)."""

    def walk(value: Any, prefix: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, child in value.items():
                yield from walk(child, f"{prefix}.{key}" if prefix else str(key))
        elif value == MISSING:
            yield prefix

    return list(walk(OmegaConf.to_container(cfg, resolve=False), ""))


def load_config(name: str, overrides: Iterable[str], settings: type) -> DictConfig:
    """Load a config, apply command-line overrides and check it against a dataclass of settings.

    Args:
        name: a path, or the name of a packaged config.
        overrides: `key=value` (dots reach into nodes) or `~key`, applied in order.
        settings: the dataclass that declares every key that the recipe reads.

    Returns:
        The config with the dataclass's defaults filled in and its types enforced.

    Raises:
        ConfigError: for an unknown config, key or type, a missing mandatory key or an unreadable file.
    """
    path = find_config(name)
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    for override in overrides:
        cfg = _apply_override(cfg, override)
    given = set(cfg.keys())  # `in` would be False for a key whose value is ???
    missing = missing_keys(cfg) + [f.name for f in fields(settings) if f.default == MISSING and f.name not in given]
    if missing:
        example = f"(on the command line: {missing[0]}=...)"
        raise ConfigError(f"{path.name}: give a value for {', '.join(missing)} {example}")
    try:
        merged = cast("DictConfig", OmegaConf.merge(OmegaConf.structured(settings), cfg))
        OmegaConf.resolve(merged)
    except ConfigKeyError as error:
        key = str(error.full_key)
        known = [f.name for f in fields(settings)]
        raise ConfigError(f"{path.name}: unknown key '{key}'; {_suggest(key, known)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path.name}: {error.full_key}: {str(error).splitlines()[0]}") from error
    return merged


def instantiate(node: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Build the object that a YAML node names by `_component_`, as torchtune does, after checking its arguments.

    Unlike torchtune's, nested nodes with a `_component_` of their own are built first.

    Args:
        node: a mapping with `_component_` (a dotpath) and the component's keyword arguments.
        *args: positional arguments handed to the component before the node's.
        **kwargs: keyword arguments that override the node's.

    Raises:
        ConfigError: if the dotpath cannot be imported or an argument is unknown or missing.
    """
    where = node._get_full_key("") or "component"  # noqa: SLF001 (OmegaConf offers no public way to name a node)
    dotpath = node.get("_component_")
    if not isinstance(dotpath, str):
        raise ConfigError(f"{where}: needs a '_component_' key with the dotpath of a builder")
    try:
        component = _get_component_from_path(dotpath)
    except (InstantiationError, ValueError) as error:
        raise ConfigError(f"{where}._component_: '{dotpath}' cannot be imported: {error}") from error
    for key, value in node.items():
        if isinstance(value, DictConfig) and "_component_" in value and key not in kwargs:
            kwargs[str(key)] = instantiate(value)
    given = {str(key): None for key in node if key != "_component_"} | kwargs
    try:
        inspect.signature(component).bind(*args, **given)
    except TypeError as error:
        known = inspect.signature(component).parameters
        unknown = [key for key in given if key not in known]
        hint = f"; {_suggest(unknown[0], known)}" if unknown else ""
        raise ConfigError(f"{where}: {dotpath}: {error}{hint}") from error
    plain = cast("dict[str, Any]", OmegaConf.to_container(node, resolve=True))
    return component(*args, **{k: v for k, v in plain.items() if k != "_component_"} | kwargs)


def entry_point(settings: type) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a recipe's `main(cfg)` a command: `tune run RECIPE --config NAME [key=value ...]`.

    A `UserError` ends the process with status 2 and its message alone; anything else keeps its traceback.

    Args:
        settings: the dataclass that declares every key that the recipe reads.
    """

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def command() -> None:
            parser = argparse.ArgumentParser(description=main.__doc__)
            parser.add_argument("--config", required=True, help="path of a YAML file, or name of a packaged config")
            parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
            arguments = parser.parse_intermixed_args()
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))  # components of the user's own, beside their config
            try:
                main(load_config(arguments.config, arguments.overrides, settings))
            except UserError as error:
                rank = os.environ.get("RANK")
                print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
                sys.exit(2)

        return command

    return decorate
