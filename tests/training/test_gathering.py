"""Writing the final checkpoint from shards: no process ever holds more than one file's worth of the whole model."""

import json

import pytest
from safetensors.torch import load_file

_WRITE = """
import json
import sys
from functools import partial
from pathlib import Path
from torch.distributed.tensor import DTensor
from ift_components.config import load_config
from ift_components.distributed import distributed
from ift_components.training import setup
from ift_components.training.activations import LiveBytes
from ift_components.training.checks import check_settings
from ift_components.training.settings import TrainSettings

cfg = load_config("tiny_ift.yaml", sys.argv[1:], TrainSettings)
stage = check_settings(cfg)
out = Path(cfg.output_dir)
setup.save_checkpoint = partial(setup.save_checkpoint, max_file_bytes=400_000)
with distributed("cpu") as world:
    module = setup.build_module(cfg, world, stage.tuning)
    gathered = []
    whole = setup.WholeTensors.__getitem__

    def count(self, name):
        tensor = whole(self, name)
        gathered.append(tensor.numel() * tensor.element_size())
        return tensor

    setup.WholeTensors.__getitem__ = count
    mine = [t.to_local() if isinstance(t, DTensor) else t for t in module.model.state_dict().values()]
    with LiveBytes() as live:
        live.ignore(mine)
        setup.write_checkpoint(out, module, cfg, world, "card")
    out.with_name(f"rank{world.rank}.json").write_text(json.dumps([live.peak, gathered]))
"""


def test_a_checkpoint_is_gathered_a_file_at_a_time(tune, prepared, tmp_path):
    (tmp_path / "write_shards.py").write_text(_WRITE)
    out = tmp_path / "checkpoint"
    options = [f"data={prepared}", "instruction=x", "checkpoint_dir=null", f"output_dir={out}"]
    tune("--nproc_per_node", "2", "write_shards", *options, "frozen_weights=sharded", cwd=tmp_path)
    files = sorted(out.glob("*.safetensors"))
    sizes = [sum(tensor.numel() * tensor.element_size() for tensor in load_file(path).values()) for path in files]
    (peak, gathered), (other_peak, also) = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert gathered == also  # every process takes part in gathering every weight once
    assert sum(gathered) == pytest.approx(sum(sizes), rel=0.05)  # the layout's positions of tiles take more
    largest, file = max(gathered), max(sizes)
    # What waits for its file, and one tensor as it is gathered, put together and brought into the layout.
    assert file <= peak <= file + 3 * largest < 0.25 * sum(sizes)
    assert other_peak <= 3 * largest
