"""On CUDA the losses are those of the CPU, in every way that only a GPU computes in."""

import json

import pytest

pytestmark = pytest.mark.gpu
LORA = ["tuning={encoder: lora, fusion: lora, decoder: lora}", "proxy.lr=1.0e-3"]
WAYS = {  # options on CUDA, and how far losses in nats may be from those in fp32 on the CPU
    "fp32": (["dtype=fp32"], 1e-3),
    "bf16": (["dtype=bf16"], 5e-2),
    "bf16, fused optimizer, offloaded activations": (
        ["dtype=bf16", "optimizer.fused=true", "activation_offloading=true"],
        5e-2,
    ),
    "compiled": (["dtype=bf16", "compile=true"], 5e-2),
}


@pytest.fixture
def losses(tune, prepared, tmp_path):
    """A function that gives the losses of three steps."""

    def run(*options):
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        common = [f"data={prepared}", f"output_dir={out}", "max_steps=3", "batch_size=4", "num_workers=0"]
        tune(
            "ift_recipe", "--config", "tiny_ift.yaml", *common, *options, cwd=tmp_path, real=True
        )  # CUDA is lost in a fork
        return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize("way", WAYS)
def test_losses_on_cuda_are_those_of_the_cpu(losses, way):
    options, tolerance = WAYS[way]
    on_cpu = losses("device=cpu", "dtype=fp32")
    on_cuda = losses("device=cuda", *options)
    assert on_cuda == pytest.approx(on_cpu, abs=tolerance)
    assert on_cuda[-1] < on_cuda[0]


def test_adapters_on_a_quantised_base_on_cuda(losses):
    on_cpu = losses("device=cpu", "dtype=fp32", "frozen_dtype=nf4", *LORA)
    assert losses("device=cuda", "dtype=bf16", "frozen_dtype=nf4", *LORA) == pytest.approx(on_cpu, abs=5e-2)
