"""A base in NF4: quantised as it is read, trained under LoRA and DoRA, the same when it answers."""

import subprocess
import sys

import pytest
import torch
from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4
from torchtune.models.llama3_2_vision import llama3_2_vision_11b

from ift_components.data.prompts import Text, prompt_tokens
from ift_components.errors import ConfigError
from ift_components.models import tiny_llama3_2_vision, tiny_vision_transform
from ift_components.models.adapter_reader import load_adapter
from ift_components.models.build import build_for_inference
from ift_components.models.forward import embed_tokens, encode_images, run_decoder
from ift_components.models.hf_layout import hf_config, read_weights, save_checkpoint
from ift_components.models.quantised import BITS, HostNF4, quantisable, quantise
from ift_components.models.tiny import TINY_CHECKPOINT, TINY_PROXY
from ift_components.training.checks import check_settings
from ift_components.training.run import TrainingRun

MODEL = {"_component_": "ift_components.models.tiny_llama3_2_vision"}
OPTIONS = [f"checkpoint_dir={TINY_CHECKPOINT}", f"proxy.path={TINY_PROXY}", "max_steps=2", "batch_size=2"]
LORA = "tuning={encoder: lora, fusion: lora, decoder: lora}"
PEAK = """
import resource, sys, torch
from ift_components.models.build import build_for_inference
from ift_components.models.quantised import quantisable
node = {"_component_": "ift_components.models.tiny_llama3_2_vision", "decoder_dim": 1024, "num_layers": 10}
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = build_for_inference(node, sys.argv[1], torch.device("cpu"), torch.bfloat16, frozen_dtype="nf4")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@torch.no_grad()
def logits(model):
    picture = torch.randn(1, 1, 1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([prompt_tokens(tiny_vision_transform(), Text("What is the cell size?"))])
    image = encode_images(model, picture, torch.ones(1, 1, 2, dtype=torch.int))
    return model.decoder.unembed(run_decoder(model, embed_tokens(model.decoder, tokens), image=image))


@pytest.mark.parametrize(("method", "dtype"), [("lora", "fp32"), ("dora", "fp32"), ("lora", "bf16")])
def test_adapter_on_a_quantised_base(train_config, world, tmp_path, method, dtype):
    tuning = f"tuning={{encoder: {method}, fusion: {method}, decoder: {method}}}"
    cfg = train_config(*OPTIONS, tuning, "frozen_dtype=nf4", f"dtype={dtype}", "optimizer.lr=1.0e-2")
    run = TrainingRun(cfg, world, check_settings(cfg))
    run.run()
    trained = run.trainer.module.model
    layers = quantisable(trained)
    assert len(layers) == 5 * 6 + 9 * 7  # layers of the encoder and its projection, and of the decoder with 3 that fuse
    assert all(isinstance(layer.weight, NF4Tensor) for layer in layers.values())
    if dtype == "fp32":
        base = build_for_inference(MODEL, str(TINY_CHECKPOINT), world.device, torch.float32, frozen_dtype="nf4")
        before = logits(base)
        load_adapter(base, tmp_path / "out" / "adapter", TINY_CHECKPOINT)
        torch.testing.assert_close(logits(base), logits(trained), rtol=0, atol=1e-5)
        assert (logits(base) - before).abs().max() > 1e-2


def test_quantised_weights_are_near_the_checkpoint(world):
    model = build_for_inference(MODEL, str(TINY_CHECKPOINT), world.device, torch.float32, frozen_dtype="nf4")
    start = dict(read_weights(TINY_CHECKPOINT))
    layers = quantisable(model)
    for name, layer in layers.items():
        blocks = start[name].float().view(-1, 64)
        error = (layer.weight.get_original_weight().float().view(-1, 64) - blocks).abs().amax(dim=1)
        # The widest gap between neighbours of the 16 values is 0.3 of a block's largest: half of it, and the scale's 8 bits.
        assert (error <= 0.18 * blocks.abs().amax(dim=1) + 1e-3).all(), name
    for name, parameter in model.state_dict().items():
        if name not in layers:
            assert torch.equal(parameter, start[name].float()), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_host_memory_holds_what_torchao_would(dtype):
    """To the bit: random weights of all sizes, blocks of zeros or of one value, the largest and the smallest numbers."""
    weight = torch.randn(300, 256, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-38, 35, 300)[:, None]
    weight[0], weight[1, :64], weight[2] = 0, 0.5, torch.linspace(-1, 1, 256)
    numbers = torch.finfo(dtype)
    weight[3, :3] = torch.tensor([numbers.max / 4, numbers.tiny / 2, -numbers.tiny])
    ordinary = torch.randn(512, 128, generator=torch.Generator().manual_seed(1)) * 0.02
    for case in (weight.to(dtype), ordinary.to(dtype), weight[2:3].to(dtype)):
        ours = quantise(case)
        theirs = to_nf4(case, 64, ours.scaler_block_size)
        assert type(ours.data) is HostNF4
        for name in ("quantized_data", "quantized_scalers", "quantization_factor", "scaler_mean"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
        assert ours.get_original_weight().isfinite().all()
        assert torch.equal(ours.get_original_weight().view(bits), theirs.get_original_weight().view(bits))
    x = torch.randn(3, 128, dtype=dtype, requires_grad=True)
    weight = quantise(ordinary.to(dtype))
    torch.nn.functional.linear(x, weight).sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 512, dtype=dtype) @ weight.get_original_weight())
    assert type(weight.detach()) is HostNF4


def test_memory_of_the_11b_model():
    with torch.device("meta"):
        model = llama3_2_vision_11b()
    model.requires_grad_(requires_grad=False)
    quantised = sum(layer.weight.numel() for layer in quantisable(model).values())
    others = sum(p.numel() for p in model.parameters()) - quantised
    assert pytest.approx(4.127, abs=1e-3) == BITS
    assert (quantised * BITS / 8 + others * 2) / 1e9 == pytest.approx(7.1, abs=0.2)


@pytest.mark.slow
def test_peak_memory_while_loading(tmp_path):
    """At most one and a half times the quantised model and one file of the checkpoint are in memory."""
    model = tiny_llama3_2_vision(decoder_dim=1024, num_layers=10)
    folder, size = tmp_path / "checkpoint", 50_000_000
    save_checkpoint(
        folder,
        model.state_dict(),
        hf_config(model),
        dtype=torch.bfloat16,
        max_file_bytes=size,
        transform=tiny_vision_transform(),
    )
    model.requires_grad_(requires_grad=False)
    quantised = sum(layer.weight.numel() for layer in quantisable(model).values())
    held = quantised * BITS / 8 + 2 * (sum(p.numel() for p in model.parameters()) - quantised)
    assert 2 * sum(p.numel() for p in model.parameters()) > 2.5 * held
    result = subprocess.run([sys.executable, "-c", PEAK, folder], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1.5 * held + size


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["tuning.decoder=lora"],
            r"frozen_dtype: nf4 cannot be trained, and encoder, fusion would be by 'full'; set tuning.e",
        ),
        ([LORA, "cpu_offload=true"], r"cpu_offload: True does not go with frozen_dtype: nf4; set cpu_offload=false"),
        ([LORA, "frozen_dtype=int8"], r"frozen_dtype: 'int8' is not nf4 or null"),
    ],
)
def test_wrong_quantisation_is_refused(train_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(train_config(*OPTIONS, "frozen_dtype=nf4", *overrides))
