"""Every method of tuning: what it trains, saves and loads is what answers; it resumes to the bit; processes agree."""

import json

import pytest
import torch

from ift_components.data.dataset import Sample, collate
from ift_components.data.prompts import Slots, Text, prompt_tokens, response_tokens
from ift_components.errors import ConfigError
from ift_components.evaluation.engine import Engine
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.adapter_reader import load_adapter
from ift_components.models.adapters import initialise_added
from ift_components.models.build import build_for_inference
from ift_components.models.forward import Batch, ResponseLoss
from ift_components.models.tile_padding import set_tile_padding
from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.models.trainable import METHODS, PARTS, Tuning, apply_tuning, part_parameters
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun

MODEL = {"_component_": "ift_components.models.tiny_llama3_2_vision"}
# Tuning, and the trained parameters by part by hand: width 96 in the encoder (4 layers, hidden 384), 128 in the decoder (6
# layers, 4 heads of 32, 2 for keys and values, hidden 384); the fusion has 3 cross-attention layers and one of width 96.
CASES = {
    "lora": (
        {"encoder": "lora", "fusion": "lora", "decoder": {"method": "lora", "rank": 4, "alpha": 16}},
        {
            "encoder": 4 * 2 * 8 * (96 + 96),
            "fusion": 2 * 8 * (96 + 96) + 3 * 8 * (128 + 128 + 128 + 64),
            "decoder": 6 * 4 * (128 + 128 + 128 + 64),
        },
    ),
    "dora": (
        {"encoder": "frozen", "fusion": {"method": "dora", "targets": ["v_proj", "w3"]}, "decoder": "dora"},
        None,
    ),
    "ia3": (
        {"encoder": "ia3", "fusion": "ia3", "decoder": "ia3"},
        {
            "encoder": 4 * (96 + 96 + 384),
            "fusion": 96 + 96 + 384 + 3 * (64 + 64 + 384),
            "decoder": 6 * (64 + 64 + 384),
        },
    ),
    "prefix": (
        {"encoder": "full", "fusion": "full", "decoder": {"method": "prefix", "tokens": 5, "hidden": 32}},
        {"encoder": 566_211, "fusion": 740_264, "decoder": 5 * 128 + 2 * 32 * 128},
    ),
    "ptuning_v2": (
        {part: {"method": "ptuning_v2", "tokens": 3} for part in PARTS},
        {"encoder": 4 * 2 * 3 * 96, "fusion": 3 * 2 * 3 * 64, "decoder": 6 * 2 * 3 * 64},
    ),
    "full and lora": ({"encoder": "full", "fusion": "lora", "decoder": "lora"}, None),
    "lora and full": (
        {"encoder": "lora", "fusion": {"method": "scaffold", "keep": 0.5}, "decoder": "lora"},
        None,
    ),
}
OPTIONS = ["batch_size=2", f"checkpoint_dir={TINY_CHECKPOINT}", f"proxy.path={TINY_PROXY}", "max_steps=3", "epochs=9"]
FAST = "optimizer.lr=3.0e-2"


def node(tuning):
    return "tuning=" + json.dumps(tuning).replace('"', "")


def logits_by_engine(model, picture, prompt, answer):
    """The logits before every token of an answer, [n, vocabulary], with the cache, one token at a time."""
    engine = Engine(model, tiny_vision_transform())
    state = engine.start(engine.encode([picture]), [prompt], len(answer))
    rows = [state.logits]
    for token in answer[:-1]:
        engine.feed(state, torch.tensor([[token]]))
        rows.append(state.logits)
    return torch.cat(rows)


def load(folder, layout="none"):
    model = build_for_inference(MODEL, str(TINY_CHECKPOINT), torch.device("cpu"), torch.float32)
    set_tile_padding(model, layout)
    if folder is not None:
        load_adapter(model, folder, TINY_CHECKPOINT)
    return model


@pytest.fixture
def train(train_config, world, tmp_path):
    def run(tuning, *overrides, name="out"):
        cfg = train_config(*OPTIONS, node(tuning), f"output_dir={tmp_path / name}", *overrides)
        made = TrainingRun(cfg, world, check_settings(cfg))
        made.run()
        return made

    return run


def question(transform):
    torch.manual_seed(0)
    picture = torch.randn(1, 1, 3, 84, 84)
    prompt = prompt_tokens(transform, Text("What is the cell size?"))
    answer = response_tokens(transform, "The correct answer is big.")
    return picture, prompt, answer


@pytest.mark.parametrize("layout", ["none", "meta"])
@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_answers(train, tmp_path, case, layout):
    tuning, _ = CASES[case]
    if layout == "meta" and case not in ("ptuning_v2", "lora"):
        pytest.skip("as under none")
    made = train(tuning, FAST, f"tile_padding={layout}")
    transform = tiny_vision_transform()
    picture, prompt, answer = question(transform)
    trained = made.trainer.module
    loaded = load(tmp_path / "out" / "adapter", layout)
    logits = logits_by_engine(loaded, picture, prompt, answer)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
    batch: Batch = collate([Sample("q", prompt, [answer], picture)], transform)
    if "scaffold" in str(tuning):  # what is saved is not what was trained: set it back here too
        start = dict(part_parameters(load(None), "fusion"))
        for name, parameter in part_parameters(trained.model, "fusion"):
            parameter.data.lerp_(start[name], 0.5)
    with torch.no_grad():
        assert float(trained(batch, None)) == pytest.approx(float(loss), rel=1e-4)
    base = logits_by_engine(load(None, layout), picture, prompt, answer)
    assert (logits - base).abs().max() > 1e-2


@pytest.mark.parametrize("case", [case for case, (_, counts) in CASES.items() if counts])
def test_trained_parameters_are_as_many_as_by_hand(case):
    tuning, counts = CASES[case]
    model = tiny_llama3_2_vision()
    apply_tuning(model, Tuning.parse(tuning))
    for part in PARTS:
        assert sum(p.numel() for _, p in part_parameters(model, part) if p.requires_grad) == counts[part]


def test_every_method_is_tried_here():
    used = {how.method for tuning, _ in CASES.values() for _, how in Tuning.parse(tuning).items()}
    assert used | {"frozen"} == set(METHODS)


@pytest.mark.parametrize("case", ["dora", "ptuning_v2", "prefix"])
def test_resumed_run_is_bit_identical(train, tmp_path, case, train_config, world):
    tuning, _ = CASES[case]
    whole = train(tuning, "max_steps=5", name="whole")
    cfg = train_config(
        *OPTIONS,
        node(tuning),
        f"output_dir={tmp_path / 'parts'}",
        "max_steps=5",
        "checkpoint_every_steps=2",
        "resume=true",
    )
    killed = TrainingRun(cfg, world, check_settings(cfg))
    killed.prepare()
    step = killed.trainer.step

    def deadly(batches):
        if killed.trainer.steps == 3:
            killed.checkpointer.wait()
            raise KeyboardInterrupt
        return step(batches)

    killed.trainer.step = deadly
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    parts = TrainingRun(cfg, world, check_settings(cfg))
    parts.run()
    expected = dict(whole.trainer.module.model.named_parameters())
    for name, parameter in parts.trainer.module.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"encoder": "lora2"}, r"tuning.encoder: 'lora2' is not one of frozen, full, lora"),
        (
            {"encoder": "prefix"},
            r"tuning.encoder: 'prefix' puts virtual tokens before the decoder's text.*use ptuning_v2",
        ),
        ({"decoder": {"method": "lora", "targets": ["q"]}}, r"tuning.decoder.targets: 'q' is not one of q_proj"),
        ({"decoder": {"method": "lora", "rank": 0}}, r"tuning.decoder.rank: 0 is not a whole number above 0"),
        ({"decoder": {"method": "lora", "tokens": 3}}, r"tuning.decoder.tokens: the method takes no such.*rank, alpha"),
        ({"decoder": "lora", "fusion": "ia3"}, r"tuning: ia3 and lora do not go into one adapter"),
    ],
)
def test_wrong_method_is_refused(train_config, tuning, message):
    cfg = train_config(*OPTIONS, node({"encoder": "full", "fusion": "full", "decoder": "frozen"} | tuning))
    with pytest.raises(ConfigError, match=message):
        check_settings(cfg)


@pytest.mark.parametrize(
    ("part", "arguments", "message"),
    [
        (
            "encoder",
            {"method": "lora", "targets": ["w3"]},
            r"targets: the encoder has no w3; it has k_proj, output_proj",
        ),
        (
            "decoder",
            {"method": "dora", "rank": 65},
            r"rank: 65 is above 64, the rank of decoder.layers.0.attn.k_proj \(64",
        ),
    ],
)
def test_method_that_does_not_fit_the_model_is_refused(part, arguments, message):
    with pytest.raises(ConfigError, match=f"tuning.{part}.{message}"):
        apply_tuning(tiny_llama3_2_vision(), Tuning.parse(dict.fromkeys(PARTS, "frozen") | {part: arguments}))


def test_adapter_needs_its_base(train_config, train, tmp_path):
    with pytest.raises(ConfigError, match=r"tuning.decoder: an adapter by 'lora' belongs to checkpoint_dir's weights"):
        check_settings(train_config(*OPTIONS, "tuning.decoder=lora", "checkpoint_dir=null"))
    train({"encoder": "frozen", "fusion": "frozen", "decoder": "ia3"}, "max_steps=1")
    facts = json.loads((tmp_path / "out" / "adapter" / "ift_adapter.json").read_text())
    (tmp_path / "out" / "adapter" / "ift_adapter.json").write_text(json.dumps(facts | {"base_sha256": "0" * 64}))
    with pytest.raises(
        ConfigError, match=r"was trained on a base with hash 000000000000 .* has [0-9a-f]{12}; give the ch"
    ):
        load(tmp_path / "out" / "adapter")


def test_packed_responses_and_slots_go_through_the_prefix():
    """Two responses packed behind one prompt of proxy slots give what each gives alone."""
    transform = tiny_vision_transform()
    torch.manual_seed(0)
    picture, proxy = torch.randn(1, 1, 3, 84, 84), torch.randn(8, 128)
    prompt = prompt_tokens(transform, Slots(8))
    answers = [response_tokens(transform, text) for text in ("round cell", "a longer report of it")]
    model = tiny_llama3_2_vision()
    tuning = {"encoder": "frozen", "fusion": "ptuning_v2", "decoder": {"method": "prefix", "tokens": 4}}
    apply_tuning(model, Tuning.parse(tuning))
    initialise_added(model, 0)
    loss = ResponseLoss(model)
    with torch.no_grad():
        packed = loss(collate([Sample("p", prompt, answers, picture)], transform), proxy)
        alone = sum(loss(collate([Sample("a", prompt, [answer], picture)], transform), proxy) for answer in answers)
    assert float(packed) == pytest.approx(float(alone), rel=1e-5)


def test_share_of_trained_parameters_is_printed(train, capsys):
    tuning, counts = CASES["lora"]
    train(tuning, "max_steps=1")
    total = sum(p.numel() for p in tiny_llama3_2_vision().parameters())
    trained = ", ".join(f"{part} lora {count:,}" for part, count in counts.items())
    share = 100 * sum(counts.values()) / total
    assert (
        f"trained: proxy 1,024, {trained}; {share:.3f} % of the model's {total:,} parameters" in capsys.readouterr().out
    )


MIX = {"encoder": "dora", "fusion": "full", "decoder": {"method": "dora", "targets": ["q_proj", "w2"]}}


def step_losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (["dtype=bf16"], 3e-2),
        (["activation_checkpointing=all"], 1e-5),
        (["cpu_offload=true"], 1e-5),
        pytest.param(["compile=true"], 1e-4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("tuning", [MIX, CASES["ptuning_v2"][0] | {"decoder": "prefix"}])
def test_option_keeps_the_losses(train, tmp_path, tuning, options, tolerance):
    train(tuning, name="plain")
    made = train(tuning, *options, name="option")
    assert step_losses(tmp_path / "option") == pytest.approx(step_losses(tmp_path / "plain"), rel=tolerance)
    dtypes = {p.dtype for group in made.trainer.groups.values() for p in group}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize(
    ("tuning", "more"),
    [
        ({"encoder": "dora", "fusion": "full", "decoder": {"method": "prefix", "tokens": 3}}, []),
        (dict.fromkeys(PARTS, "lora"), ["frozen_dtype=nf4"]),
    ],
)
def test_two_processes_train_as_one(tune, prepared, train, tmp_path, *, tuning, more):
    train(tuning, *more, name="alone")
    options = [f"data={prepared}", "num_workers=0", *OPTIONS[1:], node(tuning), f"output_dir={tmp_path / 'two'}", *more]
    tune("--nproc_per_node", "2", "ift_recipe", "--config", "tiny_ift.yaml", *options, "batch_size=1", cwd=tmp_path)
    assert step_losses(tmp_path / "two") == pytest.approx(step_losses(tmp_path / "alone"), rel=1e-5)
    alone, two = load(tmp_path / "alone" / "adapter"), load(tmp_path / "two" / "adapter")
    for (name, one), other in zip(alone.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-3, msg=name)
