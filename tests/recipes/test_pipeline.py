"""The four stages through `tune run`, from a folder that is not the project's, in one process and in two."""

import json
import re

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from ift_components.data import report_dataset
from ift_components.data.dataset import DatasetContext, collate
from ift_components.data.images import ImageTransform
from ift_components.data.prompts import Text, prompt_tokens
from ift_components.evaluation.engine import Engine
from ift_components.evaluation.items import question_items
from ift_components.models import tiny_vision_transform
from ift_components.models.build import build_for_inference
from ift_components.models.forward import ResponseLoss
from ift_components.models.tiny import TINY_CHECKPOINT
from ift_components.proxy import load_proxy
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun

PROXY = "proxy_instruction.safetensors"


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def warm(prepared, tune, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    out = folder / "warm"
    result = tune(
        "ift_warmup_recipe", "--config", "tiny_warmup.yaml", f"data={prepared}", f"output_dir={out}", "batch_size=16",
        cwd=folder,
    )  # fmt: skip
    assert "warm-up: 100%" in result.stderr
    return out


def fine_tune(tune, prepared, warm, out, *overrides, processes=1, real=False):
    launch = ["--nproc_per_node", str(processes)] if processes > 1 else []
    common = [f"data={prepared}", f"proxy.path={warm / PROXY}", f"output_dir={out}", "epochs=2", "batch_size=16"]
    return tune(*launch, "ift_recipe", "--config", "tiny_ift.yaml", *common, *overrides, cwd=out.parent, real=real)


@pytest.fixture(scope="module")
def tuned(prepared, tune, warm):
    out = warm.parent / "tuned"
    logger = [
        "metric_logger._component_=torchtune.training.metric_logging.DiskLogger",
        f"metric_logger.log_dir={out / 'logs'}",
    ]
    fine_tune(tune, prepared, warm, out, *logger, real=True)
    return out


def test_warm_up_leaves_the_proxy_alone_changed(warm):
    with safe_open(warm / PROXY, "pt") as file:
        metadata, vectors = file.metadata(), file.get_tensor("proxy_instruction")
    assert metadata == {
        "K": "8",
        "d": "128",
        "model": "ift_components.models.tiny_llama3_2_vision",
        "step": "4",
        "rule": "update",
        "tiles": "1",
        "tile_padding": "none",
        "resize": "bilinear",
    }
    assert vectors.shape == (8, 128)
    assert vectors.dtype is torch.float32
    run = json.loads((warm / "run.json").read_text())
    assert run["trained_parameters"] == {"proxy": 1024}
    assert losses(warm)[-1] < losses(warm)[0]
    assert not (warm / "checkpoint").exists()


def test_fine_tuning_leaves_a_checkpoint_and_its_records(tuned, warm):
    run = json.loads((tuned / "run.json").read_text())
    assert run["steps"] == 8
    assert run["trained_parameters"] == {"proxy": 1024, "encoder": 566_211, "fusion": 740_264}
    assert losses(tuned)[-1] < losses(tuned)[0] - 0.5
    assert {p.name for p in (tuned / "checkpoint").iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        PROXY,
    }
    momentum = load_file(tuned / "checkpoint" / PROXY)["proxy_instruction"]
    moved = (momentum - load_file(warm / PROXY)["proxy_instruction"]).abs().max().item()
    assert 0 < moved < 1e-3  # eight steps of a momentum of 0.999
    curve = Image.open(tuned / "loss_curve.png")
    assert curve.size == (840, 480)
    rows = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    (log,) = (tuned / "logs").iterdir()
    assert log.read_text().count("loss:") == 8
    assert {"epoch", "tokens", "lr_fusion", "samples_per_second", "grad_norm_proxy", "grad_norm_encoder"} <= rows[
        0
    ].keys()


def test_two_processes_repeat_one(tune, prepared, warm, tuned):
    out = warm.parent / "two"
    fine_tune(tune, prepared, warm, out, "batch_size=8", processes=2)
    assert losses(out) == pytest.approx(losses(tuned), abs=1e-5)
    one, two = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (tuned, out))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def report_loss(prepared, checkpoint, proxy):
    """Nats per token of held-out reports under a proxy."""
    node = {"_component_": "ift_components.models.tiny_llama3_2_vision"}
    model = build_for_inference(node, str(checkpoint), torch.device("cpu"), torch.float32)
    transform = tiny_vision_transform()
    dataset = report_dataset(DatasetContext(transform, 8, 0), source=str(prepared), split="test")
    batch = collate([dataset[i] for i in range(len(dataset))], transform)
    with torch.no_grad():
        return float(ResponseLoss(model)(batch, load_proxy(proxy, 8, 128)[0]).sum()) / len(batch.labels)


def test_evaluation_reads_the_tuned_checkpoint(tune, prepared, warm, tuned):
    """Tuning has taught what reports look like, and the recipe's answers are those of the weights that it was handed."""
    checkpoint = tuned / "checkpoint"
    before, after = (
        report_loss(prepared, TINY_CHECKPOINT, warm / PROXY),
        report_loss(prepared, checkpoint, checkpoint / PROXY),
    )
    assert after < before - 0.5
    out = tuned.parent / "evaluation"
    options = [f"data={prepared}", f"output_dir={out}", f"checkpoint_dir={checkpoint}"]
    tune("ift_eval_recipe", "--config", "tiny_eval.yaml", *options, cwd=tuned.parent, real=True)
    results = json.loads((out / "results.json").read_text())
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 64  # every question once more with another image's pixels
    rows = {row["id"]: row for row in lines if row["task"] == "choice"}
    assert results["questions"] == len(rows) == 32  # 8 images, 4 attributes
    assert set(results["attributes"]) == {"shape", "colour", "size", "border"}
    right = sum(row["predicted"] == row["answer"] for row in rows.values())
    assert results["accuracy"] == pytest.approx(right / 32, abs=1e-6)
    node = {"_component_": "ift_components.models.tiny_llama3_2_vision"}
    model = build_for_inference(node, str(checkpoint), torch.device("cpu"), torch.float32)
    transform = tiny_vision_transform()
    for item in question_items(prepared, "test", "shapes")[:6]:
        engine = Engine(model, transform)
        picture = ImageTransform(transform)(item.picture()).unsqueeze(0)
        state = engine.start(engine.encode(picture), [prompt_tokens(transform, Text(item.prompt))], item.max_new_tokens)
        assert engine.generate(state, item.max_new_tokens) == [rows[item.id]["generated"]]


@pytest.mark.parametrize("rule", ["restart", "fix", "update"])
def test_other_rules_move_the_proxy_as_they_say(train_config, warm, world, rule, tmp_path):
    cfg = train_config(f"proxy.path={warm / PROXY}", f"proxy.rule={rule}", "max_steps=2", "proxy.lr=1.0e-2")
    TrainingRun(cfg, world, check_settings(cfg)).run()
    path = tmp_path / "out" / "checkpoint" / PROXY
    with safe_open(path, "pt") as file:
        assert (file.metadata()["rule"], file.metadata()["step"]) == (rule, "2")
    before, after = (load_file(folder)["proxy_instruction"] for folder in (warm / PROXY, path))
    moved = (after - before).abs().max().item()
    # AdamW's first steps are as long as the learning rate: two whole ones, two thousandths of one, none.
    assert moved == pytest.approx({"update": 2e-2, "restart": 2e-5, "fix": 0}[rule], rel=0.1)


def test_text_instruction_needs_no_proxy(tune, prepared, warm):
    out = warm.parent / "none"
    instruction = ["instruction=Describe this medical scan.", "max_steps=2"]
    fine_tune(tune, prepared, warm, out, *instruction)
    assert not (out / "checkpoint" / PROXY).exists()
    assert "proxy" not in json.loads((out / "run.json").read_text())["trained_parameters"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["proxy.num_vectors=4"], "proxy.num_vectors: 4 does not match the 8 vectors"),
        (["model.decoder_dim=64", "checkpoint_dir=null"], "128 wide and the model's embeddings 64"),
        (["epoch=3"], "unknown key 'epoch'; did you mean 'epochs'?"),
        (["dataset.splt=val"], "dataset: ift_components.data.report_dataset: .*splt"),
        (["checkpoint_dir=nowhere"], "checkpoint_dir: nowhere"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(tune, prepared, warm, overrides, message):
    out = warm.parent / "never"
    options = [f"data={prepared}", f"proxy.path={warm / PROXY}", f"output_dir={out}", *overrides]
    result = tune("ift_recipe", "--config", "tiny_ift.yaml", *options, cwd=warm.parent, check=False)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line)
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_an_output_folder_is_never_written_over(tune, prepared, warm):
    before = {path: path.read_bytes() for path in warm.iterdir()}
    options = [f"data={prepared}", f"output_dir={warm}"]
    result = tune("ift_warmup_recipe", "--config", "tiny_warmup.yaml", *options, cwd=warm.parent, check=False)
    assert result.returncode == 2
    assert "already holds files" in result.stderr
    assert {path: path.read_bytes() for path in warm.iterdir()} == before
