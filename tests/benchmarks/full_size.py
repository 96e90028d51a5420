"""The whole way at the 11B model's shape on a CPU: `python tests/benchmarks/full_size.py --folder DIR [--tiny]`.

Writes a checkpoint of random weights in Hugging Face layout (21 GB) and a few drawn smears, then runs what a user would type,
with the 11B configs over a 4-bit base: one step of warm-up, one step of instruction-free tuning by LoRA on all parts, and one
question put to the saved adapter. Each stage is a process of its own; its time and the most memory that it held at once are
written to `DIR/stages.json`, and a stage that is there already is not run again, so that the same command goes on where it was
stopped.

`--tiny` does all of it with the miniature's shape. A stage is ended when the machine has less than 1.5 GiB of memory left;
`activation_checkpointing=encoder` behind the folder takes less of it.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ift_components.files import write_json

LEAST_FREE = 1.5 * 2**30
TINY = [
    "model._component_=ift_components.models.tiny_llama3_2_vision",
    "model.image_size=84",
    "tokenizer._component_=ift_components.models.tiny_vision_transform",
    "tokenizer.path=null",
    "tokenizer.image_size=84",
    "tokenizer.max_seq_len=1024",
]
FILES = {"warm-up": "warm-up/proxy_instruction.safetensors", "fine-tuning": "fine-tuning/adapter"}


def commands(folder, overrides, *, tiny):
    """Return the stages and what each runs."""
    tune = [str(Path(sys.executable).with_name("tune")), "run"]
    script = Path(__file__).with_name("random_checkpoint.py")
    model = [f"checkpoint_dir={folder / 'checkpoint'}", "frozen_dtype=nf4", "device=cpu", f"data={folder / 'data'}"]
    model += ["batch_size=1", *(TINY if tiny else [])]
    step = ["max_steps=1", "num_workers=0", *overrides]
    return {
        "checkpoint": [sys.executable, str(script), str(folder / "checkpoint"), *(["--tiny"] if tiny else [])],
        "data": [
            *(*tune, "ift_data_recipe", "--config", "data_smears.yaml", f"builder.root={folder / 'drawn'}"),
            *("builder.train=1", "builder.val=1", "builder.test=1", f"output_dir={folder / 'data'}"),
        ],
        "warm-up": [
            *(*tune, "ift_warmup_recipe", "--config", "llama32v_lora_warmup.yaml", *model, *step),
            f"output_dir={folder / 'warm-up'}",
        ],
        "fine-tuning": [
            *(*tune, "ift_recipe", "--config", "llama32v_lora.yaml", *model, *step),
            *(f"proxy.path={folder / FILES['warm-up']}", f"output_dir={folder / 'fine-tuning'}"),
        ],
        "evaluation": [
            *(*tune, "ift_eval_recipe", "--config", "llama32v_eval.yaml", *model),
            *(f"adapter_dir={folder / FILES['fine-tuning']}", "limit=1", "max_new_tokens=3"),
            f"output_dir={folder / 'evaluation'}",
        ],
    }


def status(path):
    """Return the sizes in a `/proc` file in bytes; empty if the process has ended."""
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


def group_memory(group):
    """Return what the processes of a group hold: all of it, and what is not a mapped file that can be read again."""
    total = private = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            member = os.getpgid(int(path.name)) == group
        except ProcessLookupError:
            continue
        sizes = status(path / "status") if member else {}
        total += sizes.get("VmRSS", 0)
        private += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
    return total, private


def run(name, command, log):
    """Run a stage; return its seconds and its memory's peaks, which are looked at five times a second."""
    started, peaks = time.monotonic(), [0, 0]
    # By default glibc keeps freed tensors of up to 32 MB; from 1 MB on they go back to the system.
    environment = {"MALLOC_MMAP_THRESHOLD_": "1000000", **os.environ}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            while process.poll() is None:
                peaks = [max(pair) for pair in zip(peaks, group_memory(process.pid), strict=True)]
                available = status(Path("/proc/meminfo"))["MemAvailable"]
                if available < LEAST_FREE:
                    sys.exit(
                        f"{name}: stopped, because the machine has {available / 2**30:.1f} GiB of memory left; the stage held "
                        f"{peaks[1] / 2**30:.1f} GiB. Run again when there is more: it goes on with this stage"
                    )
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        sys.exit(f"{name}: ended with {process.returncode}; the end of {log}:\n{tail}")
    return {"seconds": time.monotonic() - started, "peak_bytes": peaks[0], "private_peak_bytes": peaks[1]}


def report(done, folder):
    """Print the table, and what came out."""
    print("| stage | minutes | peak, GiB | of it not mapped files |\n|---|---:|---:|---:|")
    for name, row in done.items():
        sizes = f"{row['peak_bytes'] / 2**30:.1f} | {row['private_peak_bytes'] / 2**30:.1f}"
        print(f"| {name} | {row['seconds'] / 60:.1f} | {sizes} |")
    for stage in ("warm-up", "fine-tuning"):
        (line,) = (folder / stage / "metrics.jsonl").read_text().splitlines()
        print(f"{stage}: {line}")
    print((folder / "evaluation" / "predictions.jsonl").read_text().strip())


def main():
    """Run every stage that has not been run yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="takes 22 GB")
    parser.add_argument("--tiny", action="store_true", help="the miniature's shape")
    parser.add_argument(
        "overrides", nargs="*", help="for both training stages, such as activation_checkpointing=encoder"
    )
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    Path("/proc/self/oom_score_adj").write_text("1000")  # the first to go, before what others run
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the stage is ended too
    record = folder / "stages.json"
    done = json.loads(record.read_text()) if record.exists() else {}
    for name, command in commands(folder, args.overrides, tiny=args.tiny).items():
        if name in done:
            continue
        shutil.rmtree(folder / name, ignore_errors=True)  # of a run that was stopped
        print(f"{name}: {' '.join(command)}", flush=True)
        done[name] = run(name, command, folder / f"{name}.log")
        write_json(record, done)
        print(f"{name}: {json.dumps(done[name])}", flush=True)
    print(f"{os.cpu_count()} cores, {status(Path('/proc/meminfo'))['MemTotal'] / 2**30:.0f} GiB, {platform.machine()}")
    report(done, folder)


if __name__ == "__main__":
    main()
