"""Starts recipes as processes of their own without importing torch anew each time.

One server process a test session imports the recipes once; every launch is a fork of it, with arguments, environment, folder,
output and exit status of its own. One process goes through the code of the `tune` command; several get torchrun's variables.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 900.0  # seconds that a launch may take
RECIPES = (
    "ift_data_recipe",
    "ift_papers_recipe",
    "ift_generate_recipe",
    "ift_warmup_recipe",
    "ift_recipe",
    "ift_stages_recipe",
    "ift_eval_recipe",
    "ift_judge_recipe",
    "ift_saliency_recipe",
    "ift_serve_recipe",
    "ift_table_recipe",
    "tiny_pretrain",
)

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "torchtune._cli.tune", *RECIPES])


def tune_command(*arguments: str) -> list[str]:
    """Return the real command of this environment, for a process that imports everything itself."""
    return [str(Path(sys.executable).with_name("tune")), "run", *arguments]


def _enter(cwd: Path, environment: dict[str, str], streams: tuple[Path, Path]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # what a process has that nobody forked
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)


def _tune(cwd: Path, environment: dict[str, str], streams: tuple[Path, Path], arguments: tuple[str, ...]) -> None:
    """Run in the forked process: what the `tune` script does."""
    from torchtune._cli.tune import main  # noqa: PLC0415 (imported already in the server; not needed in the tests' process)

    _enter(cwd, environment, streams)
    sys.argv = ["tune", "run", *arguments]
    main()


def _rank(cwd: Path, environment: dict[str, str], streams: tuple[Path, Path], arguments: tuple[str, ...]) -> None:
    """Run in the forked process: what torchrun's child does."""
    _enter(cwd, environment, streams)
    sys.path.append(str(cwd))
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__")


@dataclass
class Launch:
    """A recipe that runs in one process or several.

    Attributes:
        arguments: what was launched.
        ranks: its processes.
        streams: the files that hold its output and its error output.
    """

    arguments: tuple[str, ...]
    ranks: list[multiprocessing.process.BaseProcess]
    streams: tuple[Path, Path]

    @property
    def output(self) -> str:
        """What it has printed so far, output first."""
        return "".join(path.read_text(encoding="utf-8") for path in self.streams)

    def running(self) -> bool:
        """Whether every process is still at work."""
        return all(rank.exitcode is None for rank in self.ranks)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process and what it started."""
        for rank in self.ranks:
            while rank.exitcode is None and os.getpgid(rank.pid) != rank.pid:
                time.sleep(0.01)  # it has just been forked and has no group of its own yet
            os.killpg(rank.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end; where one process fails the others are ended. The status is that of the first that failed."""
        deadline = time.monotonic() + TIMEOUT
        while any(rank.exitcode is None for rank in self.ranks):
            failed = [rank for rank in self.ranks if rank.exitcode]
            if failed or time.monotonic() > deadline:
                for rank in self.ranks:
                    rank.join(10 if failed else 0)
                    rank.kill()
                    rank.join()
            self.ranks[0].join(0.02)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{' '.join(self.arguments)} took more than {TIMEOUT:.0f} s:\n{self.output}")
        status = next((rank.exitcode for rank in self.ranks if rank.exitcode), 0)
        out, err = (path.read_text(encoding="utf-8") for path in self.streams)
        return subprocess.CompletedProcess(self.arguments, status, out, err)


def launch(*arguments: str, cwd: Path, streams: tuple[Path, Path], processes: int = 1) -> Launch:
    """Start `tune run ARGUMENTS`, or as many ranks of the recipe.

    Args:
        arguments: the recipe and its arguments.
        cwd: the folder it starts in.
        streams: files for its output and its error output.
        processes: number of ranks.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes == 1:
        started = [_SERVER.Process(target=_tune, args=(cwd, environment, streams, arguments))]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        numbers = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        started = [
            _SERVER.Process(target=_rank, args=(cwd, {**environment, **shared, **own}, streams, arguments))
            for own in numbers
        ]
    for process in started:
        process.start()
    return Launch(arguments, started, streams)
