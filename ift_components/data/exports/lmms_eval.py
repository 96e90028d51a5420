"""lmms-eval: a dataset folder, a task file for each split and the task's functions."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import yaml

from ift_components.data.exports.common import Job, choices, image_bytes
from ift_components.data.mcq import LETTERS

_FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image_id": datasets.Value("string"),
        "image": datasets.Image(),
        "question": datasets.Value("string"),
        "options": datasets.List(datasets.Value("string")),
        "answer": datasets.Value("string"),
        "category": datasets.Value("string"),
    }
)
_FUNCTIONS = ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results")


class _Function(str):
    """A function of the task, named as lmms-eval's YAML names it."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def export_lmms_eval(job: Job) -> None:
    """Write `data/` (for `load_from_disk`), `NAME_SPLIT.yaml` and `utils.py`.

    Run with `lmms-eval --include_path OUT --tasks NAME_test`; the tasks name the data by the folder's absolute path.

    Raises:
        DataError: if there are no questions.
    """
    cache = job.out / "cache"
    loaded = {
        split: datasets.Dataset.from_generator(
            _rows, _FEATURES, str(cache), gen_kwargs={"folder": job.folder, "split": split}
        )
        for split in job.choice_splits()
    }
    datasets.DatasetDict(loaded).save_to_disk(str(job.out / "data"))
    shutil.rmtree(cache)
    shutil.copyfile(Path(__file__).with_name("lmms_eval_utils.py"), job.out / "utils.py")
    for split in loaded:
        name = f"{job.name}_{split}"
        (job.out / f"{name}.yaml").write_text(_task(name, split, job.final / "data"), encoding="utf-8")


def _rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    for row in choices(folder, split):
        shown = {key: row[key] for key in ("id", "image_id", "question", "options")}
        image = {"bytes": image_bytes(row["image"]), "path": None}
        yield {**shown, "image": image, "answer": LETTERS[row["answer"]], "category": row["attribute"]}


def _task(name: str, split: str, data: Path) -> str:
    task = {
        "dataset_path": str(data),
        "dataset_kwargs": {"load_from_disk": True},
        "task": name,
        "test_split": split,
        "output_type": "generate_until",
        **{function: _Function(f"utils.{function}") for function in _FUNCTIONS},
        "generation_kwargs": {"max_new_tokens": 50, "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
        "cluster_key": "image_id",
        "metadata": [{"version": 1.0}],
    }
    return yaml.dump(task, Dumper=_Dumper, sort_keys=False)
