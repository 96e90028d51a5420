"""The wheel: what is in it, and that `tune run` works with it and with nothing of the checkout."""

import logging
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from ift_components.startup import hide_torchao_notice

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory):
    """The Python of an environment with the wheel installed; third-party packages come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building leaves files behind
    for name in ("ift_components", "configs", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", str(source)]
    subprocess.run(install, check=True, capture_output=True)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    # Read for its packages, not for its .pth files, which may name a checkout.
    (site / "base.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


def run_python(python, *arguments, cwd):
    """Run Python without this process's search path; returns the finished process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [python, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )


TUNE_RUN = ("-c", "from torchtune._cli.tune import main; main()", "run")


def test_a_stage_runs_from_the_wheel(wheel_python, prepared, tmp_path):
    out = tmp_path / "out"
    overrides = [f"data={prepared}", f"output_dir={out}", "max_steps=1"]
    command = [*TUNE_RUN, "ift_warmup_recipe", "--config", "tiny_warmup.yaml", *overrides]
    result = run_python(wheel_python, *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "cpp extensions" not in result.stderr
    assert (out / "proxy_instruction.safetensors").is_file()
    paths = "import ift_components, ift_recipe; print(ift_components.__file__, ift_recipe.__file__)"
    site = str(wheel_python.parents[1])
    assert all(path.startswith(site) for path in run_python(wheel_python, "-c", paths, cwd=tmp_path).stdout.split())


def test_an_error_of_one_line_is_all_that_is_printed(wheel_python, tmp_path):
    result = run_python(wheel_python, *TUNE_RUN, "ift_recipe", "--config", "tiny.yaml", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: config 'tiny.yaml' is neither a file nor a packaged config; packaged configs: ")
    assert "llama32v_ift.yaml" in line


def test_torchaos_other_messages_stay(caplog):
    hide_torchao_notice()
    for text in ("Skipping import of cpp extensions due to a version", "another message"):
        logging.getLogger("torchao").warning(text)
    assert caplog.messages == ["another message"]


def test_every_package_is_listed():
    """The wheel's packages are listed by hand, because the configs lie outside of the package's folder."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("ift_components/**/__init__.py")}
    assert listed == folders | {"ift_components.configs"}
