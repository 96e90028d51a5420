"""Maps of where answers came from in their images, with tests of whether the maps say anything.

    tune run ift_saliency_recipe --config tiny_saliency.yaml data=PREPARED checkpoint_dir=RUN/checkpoint output_dir=OUT

OUT holds index.html (tests, samples), samples/ (a page, a PNG a method and an NPZ a sample), checks.json and run.json.
"""

from ift_components.config import entry_point
from ift_components.distributed import distributed
from ift_components.saliency.checks import verdict
from ift_components.saliency.run import Maps
from ift_components.saliency.settings import SaliencySettings


@entry_point(SaliencySettings)
def main(cfg: SaliencySettings) -> None:
    """Map answers and test the maps."""
    with distributed(cfg.device) as world:
        maps = Maps(cfg, world)
        checks = maps.run()
    for name in cfg.methods:
        print(f"{name}: {verdict(checks[name]) if checks else 'not tested'}")
    print(f"pages: {maps.path / 'index.html'}")


if __name__ == "__main__":
    main()
