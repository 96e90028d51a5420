"""A Slurm of one node on the loopback: its daemons, keys and records lie in a folder of the test's own."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
_GPUS = 4
_CREDENTIALS = 10  # seconds that a job's last, which a requeued one has to wait; Slurm's default is 120
_WAIT = 30.0  # seconds for the daemons to find each other


def missing() -> list[str]:
    """Return the daemons that are not installed."""
    return [name for name in DAEMONS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Slurm:
    """The cluster; a context manager that starts and ends its daemons.

    Args:
        folder: an empty folder for all that it keeps.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "Slurm":
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        folder, host = self._folder, socket.gethostname().split(".")[0]
        controller, node = _free_ports(2)
        socket_name = folder / "munge.socket"
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        for number in range(_GPUS):
            (folder / f"gpu{number}").symlink_to("/dev/null")  # stands for a device; nothing opens it
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{_GPUS - 1}]\n")
        (folder / "slurm.conf").write_text(
            f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={socket_name},cred_expire={_CREDENTIALS}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=60
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 Gres=gpu:{_GPUS}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
        )
        munge = [f"--socket={socket_name}", f"--key-file={key}", f"--pid-file={folder}/munged.pid"]
        munge += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
        self._start("munged", "--foreground", "--force", *munge)
        while not socket_name.exists():
            time.sleep(0.05)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", "localhost")
        deadline = time.monotonic() + _WAIT
        while "idle" not in self.run("sinfo", "--noheader", "--format=%T", check=False):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        if len(self._daemons) == len(DAEMONS):  # its jobs would outlive the daemons
            self.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
            deadline = time.monotonic() + _WAIT
            while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
                self.run("scancel", "--user=root", check=False)
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait()

    def _start(self, name: str, *options: str) -> None:
        with (self._folder / f"{name}.out").open("wb") as log:
            process = subprocess.Popen([name, *options], env=self.environment, stdout=log, stderr=log)
        self._daemons.append(process)

    def logs(self) -> str:
        """Return what the daemons have said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.out")))

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """Run one of Slurm's commands and return its output."""
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, check=False)
        assert not (check and done.returncode), f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout + done.stderr
