"""Serving: an OpenAI-compatible server for tuned models, with a page to try and compare them.

    tune run ift_serve_recipe --config tiny_serve.yaml checkpoint_dir=RUN/checkpoint samples=PREPARED
    tune run ift_serve_recipe --config tiny_serve.yaml adapter_dir=RUN/adapter 'others.base={}'

The page is at the address that is printed, the API below /v1. Ctrl-C ends it.
"""

from ift_components.config import entry_point
from ift_components.errors import ConfigError
from ift_components.serving.settings import ServeSettings, check_settings


@entry_point(ServeSettings)
def main(cfg: ServeSettings) -> None:
    """Serve models to OpenAI's clients and to a page."""
    check_settings(cfg)
    try:
        from ift_components.serving.run import serve  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "prometheus_client", "starlette"):
            raise
        raise ConfigError(f"serving needs {error.name}: pip install 'instruction-free-tuning[serve]'") from error
    serve(cfg)


if __name__ == "__main__":
    main()
