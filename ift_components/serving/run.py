"""Serving from a config: models loaded, checked, and listened for."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from ift_components.config import instantiate
from ift_components.distributed import choose_device
from ift_components.errors import ConfigError
from ift_components.models.adapter_reader import load_adapter
from ift_components.models.build import build_for_inference, layout_for_answers
from ift_components.models.tile_padding import set_tile_padding
from ift_components.serving.app import Server
from ift_components.serving.metrics import Metrics
from ift_components.serving.samples import load_samples
from ift_components.serving.settings import OtherModel, ServeSettings, check_settings
from ift_components.serving.worker import Served, Worker
from ift_components.smears.dataset import draw_if_missing
from ift_components.training.settings import parse_dtype

_CONNECTIONS = 64  # beside those of requests under way: the page, metrics, and clients that are just refused
_GRACE = 5  # seconds that answers under way have when the server is stopped


def load_model(cfg: ServeSettings, model: OtherModel) -> Served:
    """Load one of the models of a config.

    Args:
        cfg: the config.
        model: what is its own.

    Raises:
        ConfigError: if component, checkpoint, adapter or tokenizer are wrong.
    """
    checkpoint = model.checkpoint_dir or cfg.checkpoint_dir
    built = build_for_inference(
        cfg.model, checkpoint, choose_device(cfg.device), parse_dtype(cfg.dtype), frozen_dtype=cfg.frozen_dtype
    )
    asked = {**cfg.asked_layout, "tile_padding": model.tile_padding}
    layout = layout_for_answers(checkpoint, model.adapter_dir, asked, anyway=cfg.other_layout)
    set_tile_padding(built, layout.answering_padding, layout.tiles)
    if model.adapter_dir is not None:
        load_adapter(built, Path(model.adapter_dir), Path(str(checkpoint)))
    return Served(built, instantiate(cfg.tokenizer, "tokenizer"), layout.resize, layout.tiles)


def _models(cfg: ServeSettings) -> Iterator[tuple[str, OtherModel]]:
    yield cfg.name, OtherModel(cfg.checkpoint_dir, cfg.adapter_dir, cfg.tile_padding)
    yield from cfg.others.items()


def build_server(cfg: ServeSettings) -> Server:
    """Load everything that a config names.

    Args:
        cfg: the config.

    Raises:
        UserError: for whatever is wrong with it.
    """
    check_settings(cfg)
    draw_if_missing(cfg.samples)
    samples = load_samples(cfg.samples, cfg.split, cfg.max_samples, is_local=cfg.is_local)
    metrics = Metrics()
    worker = Worker(
        {name: load_model(cfg, model) for name, model in _models(cfg)},
        batch_size=cfg.batch_size,
        batch_wait=cfg.batch_wait,
        image_cache=cfg.image_cache,
        metrics=metrics,
    )
    return Server(cfg, worker, samples, metrics)


def listen(cfg: ServeSettings) -> socket.socket:
    """Return a socket that listens at the config's address.

    Raises:
        ConfigError: if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in cfg.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((cfg.host, cfg.port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"port: {cfg.host}:{cfg.port} cannot be listened at ({error.strerror}); give another port"
        ) from error
    return listening


def serve(cfg: ServeSettings) -> None:
    """Serve until a signal ends it.

    Args:
        cfg: the config.

    Raises:
        UserError: for whatever is wrong with the config, before anything is served.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    check_settings(cfg)
    listening = listen(cfg)
    with listening:
        server = build_server(cfg)
        host, port = listening.getsockname()[:2]
        print(
            f"serving {', '.join(name for name, _ in _models(cfg))} at http://{f'[{host}]' if ':' in host else host}:{port}",
            flush=True,
        )
        config = uvicorn.Config(
            server.app(),
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=cfg.queue_limit + _CONNECTIONS,
            timeout_graceful_shutdown=_GRACE,
        )
        uvicorn.Server(config).run(sockets=[listening])
