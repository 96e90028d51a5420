"""Finding packaged configs, reading overrides and turning YAML nodes into objects.

torchtune's own parser takes any dictionary: a misspelt key is silently ignored. Here every recipe declares its keys in a
dataclass, so that an unknown key, a wrong type or an unknown component argument stops the run before any work starts.
"""

import argparse
import difflib
import functools
import inspect
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ift_components.errors import ConfigError, UserError
from ift_components.files import cache_dir

Settings = TypeVar("Settings")
Loaded = TypeVar("Loaded")

_HERE = Path(__file__).resolve().parent
# A wheel carries the configs inside the package; a checkout (editable install) has them beside it.
CONFIG_DIR = next((d for d in (_HERE / "configs", _HERE.parent / "configs") if d.is_dir()), _HERE / "configs")


def drawn_folder(style: str) -> Path:
    """Return where the prepared folder of the drawn cells of a style lies; `smears.dataset.draw_if_missing` fills it."""
    return cache_dir() / "prepared" / f"drawn-{style}"


# What the miniature's configs refer to: files that the package ships, and the folder of data that is drawn on first use.
# Resolving only names them: nothing is drawn before a config has been checked.
_SHIPPED = {"instruction_pool": "data/instruction_pool.txt"}
OmegaConf.register_resolver("shipped", lambda name: str(_HERE / _SHIPPED.get(name, f"models/{name}")), replace=True)
OmegaConf.register_resolver("drawn", lambda style: str(drawn_folder(style)), replace=True)


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


def suggest(key: str, names: Iterable[str]) -> str:
    """Return what a message about an unknown key ends with: the known name that is closest, and all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(key, names, n=1)
    return (f"did you mean '{close[0]}'? " if close else "") + f"known: {', '.join(names)}"


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
    node = above.get(last) if isinstance(above, DictConfig) and not OmegaConf.is_interpolation(above, last) else None
    if isinstance(node, DictConfig) and "_component_" in node and value != "null":
        key += "._component_"  # `model=my.builder` means `model._component_=my.builder`, as in torchtune
        above, last = node, "_component_"
    if last == "_component_" and isinstance(above, DictConfig) and above.get(last) not in (None, value):
        _drop_foreign_arguments(above, value)
    try:
        return cast("DictConfig", OmegaConf.merge(cfg, OmegaConf.from_dotlist([f"{key}={value}"])))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override '{override}': its value cannot be read as YAML ({' '.join(str(error).split())}); a text is given in "
            f"quotes inside of the shell's: \"{key}='...'\""
        ) from error


def _drop_foreign_arguments(node: DictConfig, dotpath: str) -> None:
    """Remove the arguments of a node's component that the component named now does not take."""
    parameters = inspect.signature(_import_component(dotpath, "override")).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in [key for key in node if key != "_component_" and key not in parameters]:
        del node[key]


def missing_keys(cfg: DictConfig) -> list[str]:
    """Return the dotted keys whose value is `???`, in order (OmegaConf's own search fails where others refer to them)."""

    def walk(value: Any, prefix: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, child in value.items():
                yield from walk(child, f"{prefix}.{key}" if prefix else str(key))
        elif value == MISSING:
            yield prefix

    return list(walk(OmegaConf.to_container(cfg, resolve=False), ""))


def load_config(name: str, overrides: Iterable[str], settings: type[Settings]) -> Settings:
    """Load a config, apply command-line overrides and check it against a dataclass of settings.

    Args:
        name: a path, or the name of a packaged config.
        overrides: `key=value` (dots reach into nodes) or `~key`, applied in order.
        settings: the dataclass that declares every key that the recipe reads.

    Returns:
        An instance of the dataclass: defaults filled in, types enforced, interpolations resolved, component nodes as plain
        dictionaries.

    Raises:
        ConfigError: for an unknown config, key or type, a missing mandatory key or an unreadable file.
    """
    return check_config(read_config(name, overrides), find_config(name).name, settings)


def read_config(name: str, overrides: Iterable[str]) -> DictConfig:
    """Load a config and apply command-line overrides; nothing is checked or resolved yet.

    Args:
        name: a path, or the name of a packaged config.
        overrides: `key=value` (dots reach into nodes) or `~key`, applied in order.

    Raises:
        ConfigError: for an unknown config, an unreadable file or a malformed override.
    """
    path = find_config(name)
    try:
        cfg = OmegaConf.load(path)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    for override in overrides:
        cfg = _apply_override(cfg, override)
    return cfg


def check_config(cfg: DictConfig, name: str, settings: type[Settings]) -> Settings:
    """Check a config against a dataclass of settings and resolve it.

    Args:
        cfg: from `read_config`.
        name: what messages call it.
        settings: the dataclass that declares every key that the recipe reads.

    Returns:
        An instance of the dataclass, as `load_config` does.

    Raises:
        ConfigError: for an unknown key or type, or a missing mandatory key.
    """
    present = set(cfg.keys())  # `in` would be False for a key whose value is ???
    declared = fields(cast("Any", settings))
    missing = missing_keys(cfg) + [f.name for f in declared if f.default == MISSING and f.name not in present]
    if missing:
        example = f"(on the command line: {missing[0]}=...)"
        raise ConfigError(f"{name}: give a value for {', '.join(missing)} {example}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(settings), cfg)
        OmegaConf.resolve(merged)
        checked = cast("Settings", OmegaConf.to_object(merged))
    except ConfigKeyError as error:
        key = str(error.full_key)
        raise ConfigError(f"{name}: unknown key '{key}'; {suggest(key, [f.name for f in declared])}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {error.full_key}: {str(error).splitlines()[0]}") from error
    return checked


def config_to_dict(settings: Any) -> dict[str, Any]:
    """Return a config, an instance of its dataclass, as plain data."""
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.structured(settings)))


def _import_component(dotpath: str, where: str) -> Callable[..., Any]:
    parent, _, name = dotpath.rpartition(".")
    try:
        # The attribute of the parent, not `resolve_name` of the whole: a builder and its module may be called alike.
        component = getattr(pkgutil.resolve_name(parent), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}._component_: '{dotpath}' cannot be imported: {error}") from error
    if not callable(component):
        raise ConfigError(f"{where}._component_: '{dotpath}' is a {type(component).__name__}; expected a builder")
    return cast("Callable[..., Any]", component)


def check_components(value: Any, where: str = "") -> None:
    """Check that the components of a config can be imported and know the arguments that the config gives them by name.

    Args:
        value: a config as plain data, or a part of it.
        where: its key, for messages.

    Raises:
        ConfigError: naming the component and the argument that nobody reads.
    """
    if isinstance(value, list | tuple):
        for item in value:
            check_components(item, where)
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        check_components(item, f"{where}.{key}" if where else str(key))
    dotpath = value.get("_component_")
    if not isinstance(dotpath, str):
        return
    parameters = inspect.signature(_import_component(dotpath, where)).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in value:
        if key != "_component_" and key not in parameters:
            raise ConfigError(f"{where}: {dotpath} has no argument '{key}'; {suggest(str(key), parameters)}")


def instantiate(node: Mapping[str, Any], where: str, /, *args: Any, **kwargs: Any) -> Any:
    """Build the object that a YAML node names by `_component_`, as torchtune does, after checking its arguments.

    Unlike torchtune's, nested nodes with a `_component_` of their own are built first.

    Args:
        node: a mapping with `_component_` (a dotpath) and the component's keyword arguments.
        where: the node's key in the config, for messages.
        *args: positional arguments handed to the component before the node's.
        **kwargs: keyword arguments that override the node's.

    Raises:
        ConfigError: if the dotpath cannot be imported or an argument is unknown or missing.
    """
    dotpath = node.get("_component_")
    if not isinstance(dotpath, str):
        raise ConfigError(f"{where}: needs a '_component_' key with the dotpath of a builder")
    component = _import_component(dotpath, where)
    arguments = {str(key): value for key, value in node.items() if key != "_component_"} | kwargs
    for key, value in arguments.items():
        if isinstance(value, Mapping) and "_component_" in value:
            arguments[key] = instantiate(value, f"{where}.{key}")
    signature = inspect.signature(component)
    try:
        signature.bind(*args, **arguments)
    except TypeError as error:
        unknown = [key for key in arguments if key not in signature.parameters]
        hint = f"; {suggest(unknown[0], signature.parameters)}" if unknown else ""
        raise ConfigError(f"{where}: {dotpath}: {error}{hint}") from error
    return component(*args, **arguments)


def command(load: Callable[[str, list[str]], Loaded]) -> Callable[[Callable[[Loaded], None]], Callable[[], None]]:
    """Make a recipe's `main(loaded)` a command: `tune run RECIPE --config NAME [key=value ...]`.

    A `UserError` ends the process with status 2 and its message alone; anything else keeps its traceback.

    Args:
        load: makes what `main` takes of the config's name and the overrides.
    """

    def decorate(main: Callable[[Loaded], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def run() -> None:
            parser = argparse.ArgumentParser(description=main.__doc__)
            parser.add_argument("--config", required=True, help="path of a YAML file, or name of a packaged config")
            parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
            arguments = parser.parse_intermixed_args()
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))  # components of the user's own, beside their config
            try:
                main(load(arguments.config, arguments.overrides))
            except UserError as error:
                rank = os.environ.get("RANK")
                print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
                sys.exit(2)

        # A plan of many runs checks their configs before the first starts.
        run.load = load  # type: ignore[attr-defined]
        return run

    return decorate


def command_line() -> str:
    """Return the command that this process runs, as one would type it, without passwords in addresses."""
    program, arguments = Path(sys.argv[0]), sys.argv[1:]
    module = getattr(sys.modules["__main__"], "__spec__", None)
    words = [program.name]
    if program.stem.endswith("_recipe"):
        processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        words = ["tune", "run", *(["--nproc_per_node", processes] if processes != "1" else []), program.stem]
    elif module is not None and module.name and not module.name.startswith("pytest"):
        words = ["python", "-m", module.name.removesuffix(".__main__")]
    return without_credentials(shlex.join([*words, *arguments]))


def without_credentials(text: str) -> str:
    """Return text whose web addresses have lost user name and password."""
    return re.sub(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s?#'\"]*@", r"\1", text)


def entry_point(settings: type[Settings]) -> Callable[[Callable[[Settings], None]], Callable[[], None]]:
    """Make a recipe's `main(cfg)` a command (see `command`).

    Args:
        settings: the dataclass that declares every key that the recipe reads.
    """
    return command(lambda name, overrides: load_config(name, overrides, settings))
