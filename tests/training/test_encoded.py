"""Keeping what the frozen encoder gives: the same losses, each picture computed once, and what does not go with it."""

import json
from dataclasses import replace

import pytest
import torch
from launching import launch
from results import losses
from safetensors.torch import load_file

from ift_components.data.dataset import Sample, collate
from ift_components.data.prompts import Slots, prompt_tokens
from ift_components.errors import ConfigError, UserError
from ift_components.models import tiny_vision_transform
from ift_components.models.forward import encode_images, own_image_tokens
from ift_components.models.trainable import WARM_UP
from ift_components.proxy import PROXY_FILE
from ift_components.training import encoded
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, trial_batches
from ift_components.training.encoded import KeptEncodings, count_pictures
from ift_components.training.run import TrainingRun
from ift_components.training.setup import build_module

REPEATED = ["dataset.repeat=3", "dataset.limit=10", "epochs=2", "batch_size=4", "val_every_steps=5"]
VALIDATION = ["val_dataset._component_=ift_components.data.report_dataset", "val_dataset.split=val"]
PICTURES = 10 + 8
TIMES = ("seconds", "samples_per_second")


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def train(train_config, world, tmp_path, prepared):
    """A function that runs a warm-up and returns it, with how many pictures its encoder was given."""

    def run(name, *overrides, stop_after=None):
        options = [*REPEATED, *VALIDATION, f"val_dataset.source={prepared}", f"output_dir={tmp_path / name}"]
        cfg = train_config(*options, *overrides, config="tiny_warmup.yaml")
        training = TrainingRun(cfg, world, check_settings(cfg))
        training.prepare()
        step, seen = training.trainer.step, []

        def count(module, inputs):
            seen.append(len(inputs[0]))

        def deadly(batches):
            if training.trainer.steps == stop_after:
                training.checkpointer.wait()
                raise KilledError
            return step(batches)

        training.trainer.module.model.encoder.register_forward_pre_hook(count)
        training.trainer.step = deadly
        training.train()
        return training, sum(seen)

    return run


@pytest.mark.parametrize("case", [("memory", "fp32"), ("disk", "bf16")])
def test_losses_and_proxy_are_the_same_to_the_bit(train, tmp_path, monkeypatch, capsys, case):
    place, dtype = case
    monkeypatch.setattr(encoded, "_SHARE", {"memory": 1.0, "disk": 0.0}[place])
    _, computed = train("plain", f"dtype={dtype}")
    training, kept = train("kept", f"dtype={dtype}", "keep_encoded=true")
    assert training.trainer.steps == 14
    assert (computed, kept) == (14 * 4 + 3 * 8, PICTURES)  # three validations
    rows = [[json.loads(line) for line in (tmp_path / n / "metrics.jsonl").open()] for n in ("plain", "kept")]
    plain, with_kept = ([{k: v for k, v in row.items() if k not in TIMES} for row in each] for each in rows)
    assert with_kept == plain
    proxies = [load_file(tmp_path / name / PROXY_FILE) for name in ("plain", "kept")]
    assert all(torch.equal(proxies[0][key], proxies[1][key]) for key in proxies[0])
    assert not (tmp_path / "kept" / "encoded").exists()
    size = PICTURES * 37 * 128 * {"fp32": 4, "bf16": 2}[dtype] / 1e9
    where = "in memory" if place == "memory" else f"in {tmp_path / 'kept' / 'encoded'} until the run ends"
    assert f"output for at most 18 pictures takes {size:.3g} GB {where}\n" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_interrupted_run_goes_on_with_what_it_has_kept(train, tmp_path, monkeypatch, place):
    monkeypatch.setattr(encoded, "_SHARE", {"memory": 1.0, "disk": 0.0}[place])
    options = ["keep_encoded=true", "resume=true", "checkpoint_every_steps=3"]
    train("whole")
    with pytest.raises(KilledError):
        train("parts", *options, stop_after=8)  # an epoch has 7 steps, and all pictures
    folder = tmp_path / "parts" / "encoded"
    if place == "disk":
        assert len(list(folder.iterdir())) == PICTURES
        (folder / ".ab.safetensors.7.tmp").write_bytes(b"half")
    _, computed = train("parts", *options)
    assert computed == (PICTURES if place == "memory" else 0)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert not folder.exists()


def test_two_processes_share_what_they_keep(prepared, tmp_path):
    streams = tmp_path / "out.txt", tmp_path / "err.txt"
    options = [f"data={prepared}", "dataset.limit=8", "dataset.repeat=3", "batch_size=4", "num_workers=0"]
    for name, kept in (("plain", "false"), ("kept", "true")):
        arguments = [*options, f"keep_encoded={kept}", f"output_dir={tmp_path / name}"]
        started = launch(
            "ift_warmup_recipe", "--config", "tiny_warmup.yaml", *arguments, cwd=tmp_path, streams=streams, processes=2
        )
        assert started.wait().returncode == 0, started.output
    assert f"in {tmp_path / 'kept' / 'encoded'} until the run ends" in started.output
    assert losses(tmp_path / "kept") == losses(tmp_path / "plain")


def test_pictures_of_different_tiles_are_kept_without_what_fills_them_up(train_config, world):
    cfg = train_config("tiles=4", config="tiny_warmup.yaml")
    module = build_module(cfg, world, WARM_UP)
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(down, across, 3, 84, 84, generator=generator) for down, across in ((1, 1), (1, 2), (2, 2))]
    transform = tiny_vision_transform()
    prompt = prompt_tokens(transform, Slots(8))
    samples = [Sample(str(number), prompt, [[1, 2]], grid) for number, grid in enumerate(grids)]
    kept = KeptEncodings(module, 3, None, 0)
    first, proxy = collate(samples[:2], transform), torch.randn(8, 128, generator=generator)
    kept.fill(first, world.device)
    batch = collate(samples, transform)
    filled = kept.fill(batch, world.device)  # the two known ones come with one that has more tiles
    own = own_image_tokens(module.model, batch.aspect_ratio)
    expected = encode_images(module.model, batch.images, batch.aspect_ratio)
    torch.testing.assert_close(filled.features[own], expected[own], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module(filled, proxy), module(batch, proxy), atol=1e-5, rtol=1e-6)
    sizes = sorted(len(tensor) for tensor in kept._kept.values())
    assert sizes == [37, 74, 148]


def test_changing_pictures_are_refused(train_config, world, monkeypatch):
    cfg = train_config(config="tiny_warmup.yaml")
    loader = build_loader(cfg, world)
    (batch,) = trial_batches(loader, 1)
    kept = KeptEncodings(build_module(cfg, world, WARM_UP), len(batch.images), None, 0)
    assert kept.fill(batch, world.device).features.shape == (4, 37, 128)
    kept.fill(batch, world.device)
    with pytest.raises(UserError, match=r"keep_encoded: the data have 4 pictures, .* something changes them each time"):
        kept.fill(replace(batch, images=batch.images + 0.1), world.device)
    monkeypatch.setattr(loader.dataset, "pictures", None)
    with pytest.raises(ConfigError, match=r"keep_encoded: a dataset shows other pictures each time"):
        count_pictures(loader)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["tuning.encoder=full"],
            r"tuning.encoder is 'full', which changes what the encoder gives in every step",
        ),
        (["tuning.fusion=full"], r"keep_encoded: tuning.fusion is 'full'"),
        (["frozen_weights=sharded"], r"needs the encoder whole on every process, and frozen_weights is sharded"),
        (["cpu_offload=true"], r"needs the encoder whole on every process, and cpu_offload is true"),
    ],
)
def test_what_does_not_go_with_it(train_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(train_config("keep_encoded=true", *overrides, config="tiny_warmup.yaml"))
