"""The plan's runs as a Snakemake workflow: which run needs which, how many at a time, and where.

Snakemake is an extra (`tables`): this file is imported when a plan is run, by nothing else.
"""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snakemake.api import SnakemakeApi
from snakemake.scheduling.greedy import SchedulerSettings
from snakemake.settings.enums import Quietness, RerunTrigger
from snakemake.settings.types import (
    DAGSettings,
    ExecutionSettings,
    OutputSettings,
    ResourceSettings,
    SchedulingSettings,
)
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from ift_components.errors import ConfigError, UserError
from ift_components.files import write_text
from ift_components.tables.folder import DONE
from ift_components.tables.plan import Plan
from ift_components.tables.runs import PlannedRun

_TIMES_LONGER = 3  # a cluster's time limit beside what a run is expected to take
_PLUGIN = "snakemake_executor_plugin_slurm"
_FIRST_LOOK = 10  # seconds after submission
_SILENT = 100  # above every level: failures are shown from the runs' own logs


def check_slurm(partition: str | None) -> None:
    """Check that there is a Slurm to submit to, before any work.

    Raises:
        ConfigError: if its plugin is not installed, or its commands are not there or have nobody to answer them.
    """
    if importlib.util.find_spec(_PLUGIN) is None:
        raise ConfigError(f"executor: slurm needs Snakemake's plugin: pip install {_PLUGIN.replace('_', '-')}")
    missing = [name for name in ("sbatch", "sinfo", "squeue") if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"executor: slurm is not here: no {missing[0]} on the PATH; log in to a node that submits jobs, or set "
            "executor=local"
        )
    command = ["sinfo", "--noheader", *(["--partition", partition] if partition else [])]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (the cluster's own command)
    if answer.returncode:
        raise ConfigError(f"executor: slurm does not answer: {' '.join(answer.stderr.split())}; or set executor=local")
    if not answer.stdout.strip():
        raise ConfigError(f"partition: slurm has no partition '{partition}'; `sinfo` lists them")


def write_snakefile(plan: Plan, runs: Iterable[PlannedRun]) -> Path:
    """Write the workflow, a rule a run; return its path.

    What a rule leaves is the run's mark that it has ended. Inputs are `ancient`: a run is repeated only if its mark is not
    there, never because of a time stamp. Priorities fall along the plan, so that the table fills row by row.
    """
    runs = list(runs)
    # Braces would be wildcards.
    marks = {run.id: str(run.folder / DONE).replace("{", "{{").replace("}", "}}") for run in runs}
    targets = list(marks.values())
    lines = ["localrules: all", "rule all:", f"    input: {targets!r}"]
    for number, run in enumerate(runs):
        command = shlex.join([sys.executable, "-m", "ift_components.tables.stage", str(run.folder)])
        inputs = ", ".join(f"ancient({marks[needed]!r})" for needed in run.needs)
        lines += [f"rule run_{number}:  # {run.id}"]
        lines += [f"    input: {inputs}"] if inputs else []
        lines += [f"    output: {marks[run.id]!r}", "    threads: 1"]
        lines += [f"    priority: {len(runs) - number}", "    resources:"]
        lines += [f"        {key}={value!r}," for key, value in _resources(plan, run).items()]
        lines += [f"    shell: {command.replace('{', '{{').replace('}', '}}')!r}"]
    path = plan.output / "Snakefile"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _resources(plan: Plan, run: PlannedRun) -> dict[str, Any]:
    wanted: dict[str, Any] = {"mem_mb": int(1000 * run.settings.memory_gb)}
    if run.settings.minutes is not None:
        wanted["runtime"] = max(10, int(_TIMES_LONGER * run.settings.minutes))
    if plan.settings.partition is not None:
        wanted["slurm_partition"] = plan.settings.partition
    if plan.settings.account is not None:
        wanted["slurm_account"] = plan.settings.account
    return wanted | run.settings.resources


def _slurm_settings(plan: Plan) -> Any:
    """Return the settings of Snakemake's plugin.

    Without an account it is not to guess one. It asks sacct how jobs are, wherever that is installed, and would wait for ever
    for one that keeps no accounts: squeue knows too.
    """
    sacct = subprocess.run(["sacct", "--noheader", "--starttime", "now"], capture_output=True, check=False)  # noqa: S607
    settings = ExecutorPluginRegistry().get_plugin("slurm").settings_cls
    return settings(
        no_account=plan.settings.account is None,
        init_seconds_before_status_checks=_FIRST_LOOK,
        status_command="squeue" if sacct.returncode else "sacct",
    )


def run_workflow(plan: Plan, snakefile: Path) -> None:
    """Do all runs that are not done; one that fails does not stop those that do not need it.

    Raises:
        UserError: if Snakemake itself could not go on; that runs failed is told by their folders.
    """
    slurm = plan.settings.executor == "slurm"
    resources = ResourceSettings(nodes=plan.settings.jobs) if slurm else ResourceSettings(cores=plan.settings.jobs)
    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, log_level_override=_SILENT)) as api:
            workflow = api.workflow(resource_settings=resources, snakefile=snakefile, workdir=plan.output)
            # Locks and marks are our own, and a killed run is gone on with inside: what Snakemake notes of it is not needed.
            dag = workflow.dag(DAGSettings(targets={"all"}, rerun_triggers={RerunTrigger.MTIME}, force_incomplete=True))
            dag.execute_workflow(
                executor=plan.settings.executor,
                executor_settings=_slurm_settings(plan) if slurm else None,
                execution_settings=ExecutionSettings(
                    keep_going=True, lock=False, latency_wait=60 if slurm else 2, keep_metadata=False
                ),
                scheduling_settings=SchedulingSettings(scheduler="greedy"),
                scheduler_settings=SchedulerSettings(),
            )
    except WorkflowError as error:
        # Also how it says at its end that jobs failed.
        text = " ".join(str(error).split())
        if text and "At least one job did not complete successfully" not in text:
            raise UserError(f"snakemake: {text}") from error
