"""What many tests share: a drawn dataset, prepared folders, a process group of one, the real data if it is there."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
from launching import launch, tune_command
from shapes import write_shapes

from ift_components.config import load_config
from ift_components.distributed import World, distributed
from ift_components.training.settings import TrainSettings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell without job control does that to what it runs by `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def run_tune(*arguments: str, cwd: Path, check: bool = True, real: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `tune run ARGUMENTS` in a folder, as a user would.

    Args:
        arguments: torchrun's `--nproc_per_node` and a number if there are several, the recipe and its arguments.
        cwd: the folder.
        check: whether a failure is an error.
        real: start the command itself, which takes seconds to import everything, instead of a fork that has it imported.
    """
    if real:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            tune_command(*arguments), cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
    else:
        processes = 1
        if arguments[0] == "--nproc_per_node":
            processes, arguments = int(arguments[1]), arguments[2:]
        with tempfile.TemporaryDirectory() as folder:
            streams = Path(folder, "out"), Path(folder, "err")
            result = launch(*arguments, cwd=cwd, streams=streams, processes=processes).wait()
    if check and result.returncode:
        raise AssertionError(f"{' '.join(arguments)} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what `datasets` and the drawn data cache, here and in processes started from here, out of the user's own cache."""
    before = datasets.config.HF_DATASETS_CACHE
    base = tmp_path_factory.getbasetemp()
    # What is drawn, which is done under a lock, serves all workers of pytest-xdist: their folders lie in a common one.
    os.environ["IFT_CACHE"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "drawn")
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["HF_DATASETS_CACHE"] = str(datasets.config.HF_DATASETS_CACHE)
    yield
    datasets.config.HF_DATASETS_CACHE = before
    del os.environ["HF_DATASETS_CACHE"], os.environ["IFT_CACHE"]


@pytest.fixture(scope="session")
def tune():
    """The function that runs `tune run`."""
    return run_tune


@pytest.fixture(scope="session")
def wbcatt_root() -> Path:
    """The real WBCAtt folder."""
    root = REAL_DATA / "wbcatt"
    if not root.is_dir():
        pytest.skip(f"real WBCAtt data is not at {root}")
    return root


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 80 drawn shapes (64 to train, 8 to validate, 8 to test), made by the data recipe."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, 80)
    out = root / "prepared"
    arguments = ["builder.table=shapes.csv", f"builder.root={root}", f"output_dir={out}"]
    run_tune("ift_data_recipe", "--config", "data_image_table.yaml", *arguments, cwd=root)
    return out


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """A process group of one on the CPU."""
    with distributed("cpu") as made:
        yield made


@pytest.fixture
def train_config(prepared: Path, tmp_path: Path):
    """A function that gives the miniature's fine-tuning config with overrides."""

    def make(*overrides: str, config: str = "tiny_ift.yaml"):
        common = [f"data={prepared}", f"output_dir={tmp_path / 'out'}", "num_workers=0", "batch_size=4"]
        common.append("checkpoint_dir=null")  # random weights: tests change the model's shape
        if config == "tiny_ift.yaml":
            common.append("proxy.path=null")
        return load_config(config, [*common, *overrides], TrainSettings)

    return make
