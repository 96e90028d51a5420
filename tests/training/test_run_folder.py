"""Whose an output folder is, and what stops a run before it writes anything."""

import shutil
import subprocess

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from ift_components.data.dataset import DatasetContext, ReportDataset
from ift_components.errors import ConfigError, DataError, UserError
from ift_components.models import tiny_vision_transform
from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.training.checks import check_settings
from ift_components.training.data import build_loader, read_batches, trial_batches
from ift_components.training.run import TrainingRun
from ift_components.training.run_folder import RunFolder, input_hashes


@pytest.fixture
def started(train_config, prepared, world, tmp_path):
    """A function that gives the config of a run that has been started, under `resume`, on inputs of its own."""
    for name, source in (("data", prepared), ("model", TINY_CHECKPOINT)):
        shutil.copytree(source, tmp_path / name)
    shutil.copy(TINY_PROXY, tmp_path / "proxy.safetensors")
    inputs = [f"data={tmp_path / 'data'}", f"checkpoint_dir={tmp_path / 'model'}"]
    cfg = train_config(*inputs, f"proxy.path={tmp_path / 'proxy.safetensors'}", "max_steps=1", "resume=true")
    training = TrainingRun(cfg, world, check_settings(cfg))
    training.prepare()
    training.folder.start()
    training.recorder.start(1)
    return cfg


@pytest.mark.parametrize("name", ["data/reports/train.parquet", "data/manifest.json", "model/model.safetensors"])
def test_changed_inputs_are_named(started, world, tmp_path, name):
    RunFolder(started, world).check()
    with (tmp_path / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ConfigError, match=rf"resume: .*{name} is not what the run in .* was started from; put it back"):
        RunFolder(started, world).check()


def test_another_proxy_is_named(started, world, tmp_path):
    shutil.copy(TINY_CHECKPOINT / "model.safetensors.index.json", tmp_path / "proxy.safetensors")
    with pytest.raises(ConfigError, match=r"resume: .*proxy.safetensors is not what the run"):
        RunFolder(started, world).check()


def test_inputs_are_those_a_run_reads(started, tmp_path):
    names = {name.removeprefix(f"{tmp_path}/") for name in input_hashes(started)}
    assert {"data/manifest.json", "data/reports/train.parquet", "proxy.safetensors", "model/model.safetensors"} <= names
    started.instruction = "Describe"
    assert "proxy.safetensors" not in {name.rsplit("/", 1)[-1] for name in input_hashes(started)}


@pytest.mark.parametrize("name", ["checkpoint", "epoch_2"])
def test_a_foreign_checkpoint_is_refused(started, world, tmp_path, name):
    (tmp_path / "out" / name).mkdir()
    with pytest.raises(ConfigError, match=rf"resume: .*out/{name} was not written by this run; move it away"):
        RunFolder(started, world).check()
    assert list((tmp_path / "out" / name).iterdir()) == []


def test_files_of_no_run_are_refused_under_resume(train_config, world, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    cfg = train_config("resume=true")
    with pytest.raises(ConfigError, match="holds files that are no run's"):
        TrainingRun(cfg, world, check_settings_with_proxy(cfg)).run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def check_settings_with_proxy(cfg):
    cfg.proxy.path = str(TINY_PROXY)
    return check_settings(cfg)


def test_a_second_run_on_a_folder_is_refused(train_config, world, tmp_path):
    cfg = train_config("resume=true")
    with (
        FileLock(tmp_path / ".out.lock"),
        pytest.raises(UserError, match=r"output_dir: another run is writing .*out; give another folder, or wait"),
    ):
        TrainingRun(cfg, world, check_settings_with_proxy(cfg)).run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metric_logger._component_=torchtune.training.metric_logging.CometLogger"], "metric_logger: .*CometLogger"),
        (["metric_logger._component_=torchtune.nothing"], "metric_logger._component_: .* cannot be imported"),
        (["tokenizer.image_size=56"], "tokenizer.image_size: pictures are 56 pixels wide, the model's tiles 84"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(train_config, world, tmp_path, overrides, message):
    cfg = train_config(*overrides)
    with pytest.raises(ConfigError, match=message):
        TrainingRun(cfg, world, check_settings_with_proxy(cfg)).run()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def damaged(prepared, tmp_path):
    """A copy of the prepared folder whose sixth image is cut off, and its id."""
    folder = tmp_path / "damaged"
    shutil.copytree(prepared, folder)
    path = folder / "reports" / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[5]["image"]["bytes"] = rows[5]["image"]["bytes"][:60]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    return folder, rows[5]["id"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_names_its_sample(train_config, world, damaged, workers):
    folder, id_ = damaged
    loader = build_loader(train_config(f"data={folder}", f"num_workers={workers}"), world)
    with pytest.raises(DataError, match=rf"^'{id_}': its image cannot be decoded \(.*\); prepare the folder again$"):
        list(read_batches(loader))


def test_the_longest_samples_are_tried_out(train_config, world, prepared):
    loader = build_loader(train_config("dataset.shuffling=null"), world)
    longest, first = trial_batches(loader, 2)
    dataset = loader.dataset
    lengths = sorted((len(dataset[i].responses[0]) for i in range(len(dataset))), reverse=True)
    assert longest.labels_by_source().tolist() == [sum(lengths[:4])]
    assert longest.tokens.shape[1] == lengths[0] + len(dataset[0].prompt)
    assert first.ids != longest.ids


def test_a_full_disk_under_the_image_cache_is_an_error_of_one_line(prepared, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200000", "tmpfs", mount]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    context = DatasetContext(tiny_vision_transform(), 8, 0)
    try:
        with pytest.raises(
            DataError, match=r"^dataset.cache_images: .* takes 0.00135 GB and cannot be made: No space left"
        ):
            ReportDataset(context, source=str(prepared), split="train", cache_images=str(mount / "cache"))
    finally:
        subprocess.run(["umount", mount], check=True)
