"""A real Slurm of two nodes for tests, on this machine and its loopback only: munge, one controller, two daemons.

The nodes are named like addresses, so that what runs on them can reach each other by a node's name.
"""

import contextlib
import ctypes
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
NODES = ("127.0.0.1", "127.0.0.2")
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=1,sched_interval=1
ReturnToService=2
KillWait=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=debug Nodes=127.0.0.[1-2] Default=YES MaxTime=INFINITE State=UP
"""
_SUBREAPER = 36  # prctl: what outlives its parent becomes a child of this process
# Of a session that itself runs inside a cluster.
_FOREIGN = ("SLURM_", "SBATCH_", "JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "OMPI_", "TPU_")


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"no {', '.join(absent)} (Debian: slurm-wlm, munge)"
    return "" if os.getuid() == 0 else "the daemons of Slurm need root"


class Slurm:
    """The cluster: `environment` for the commands that talk to it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def run(self, *command, check: bool = True) -> subprocess.CompletedProcess:
        """A command that talks to the cluster; what it printed is in the result."""
        return subprocess.run([str(c) for c in command], env=self.environment, capture_output=True, text=True,
                              timeout=60, check=check)

    def jobs(self) -> dict[str, str]:
        """Job (of arrays: each task's) -> state, of those that the controller remembers."""
        out = self.run("squeue", "--all", "--states=all", "--noheader", "--array", "--format=%i %T").stdout
        return dict(line.split() for line in out.splitlines())

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` knows of it."""
        fields = self.run("scontrol", "--oneliner", "show", "job", job).stdout.split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, job: str, *states: str, seconds: float = 240) -> str:
        """Waits until a job is in one of these states; a requeued one does not wait for the clock to start again."""
        end = time.monotonic() + seconds
        while (state := self.jobs().get(job)) not in states:
            assert time.monotonic() < end, f"job {job} is {state}, not {' or '.join(states)}:\n{self.logs()}"
            if state == "PENDING" and self.job(job)["Restarts"] != "0":
                time.sleep(2)  # at once, the nodes would take the new start for the old one
                self.run("scontrol", "update", f"jobid={job}", "starttime=now", check=False)
            time.sleep(0.2)
        return state

    def logs(self) -> str:
        return "\n".join(f"-- {log}\n{log.read_text(errors='replace')[-3000:]}"
                         for log in sorted(self.folder.rglob("*.log")))


@contextlib.contextmanager
def cluster():
    """A Slurm that is up, and gone when the block ends, with all that ran on it."""
    libc = ctypes.CDLL(None)
    before = ctypes.c_int()
    libc.prctl(37, ctypes.byref(before))
    libc.prctl(_SUBREAPER, 1)  # Slurm's step daemons outlive it
    others, daemons = _children(), []
    # Not below pytest's folders: a socket's path is short, and munge wants parents that only their owner can write to.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        stack.callback(lambda: (_end(others, daemons), libc.prctl(_SUBREAPER, before.value)))
        slurm = Slurm(folder)
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        # launch/slurm.sh takes the port of a run from the job's number: another cluster on this machine has others.
        first = random.SystemRandom().randrange(1, 1 << 24)
        (folder / "slurm.conf").write_text(_CONFIG.format(host=host, folder=folder, ports=_free_ports(3), nodes=NODES,
                                                          first=first))
        munge = [f"--{what}={folder}/munge{end}" for what, end in (
            ("key-file", ".key"), ("socket", ".socket"), ("pid-file", "d.pid"), ("seed-file", ".seed"),
            ("log-file", "d.log"))]
        for command in (["munged", "-F", "--force", *munge], ["slurmctld", "-D", "-c"],
                        *(["slurmd", "-D", "-c", "-N", node] for node in NODES)):
            with open(folder / f"{command[0]}-{command[-1].strip('-').rpartition('/')[2]}.log", "w") as log:
                daemons.append(subprocess.Popen(command, env=slurm.environment, stdin=subprocess.DEVNULL, stdout=log,
                                                stderr=subprocess.STDOUT))
            if command[0] == "munged":
                _until(lambda: (folder / "munge.socket").exists(), slurm)
        _until(lambda: slurm.run("sinfo", "-h", "-o", "%D %t", check=False).stdout == "2 idle\n", slurm)
        yield slurm
        for job in slurm.jobs():
            slurm.run("scancel", "--signal=KILL", "--full", job, check=False)


def _until(ready, slurm: Slurm, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.1)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _children() -> set[int]:
    tasks = pathlib.Path(f"/proc/{os.getpid()}/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def _end(others: set[int], daemons: list[subprocess.Popen]) -> None:
    """Ends all children that were not there before; those they leave behind become ours, and go the same way."""
    for daemon in daemons:
        daemon.kill()
        daemon.wait()
    end = time.monotonic() + 20
    while (mine := _children() - others) and time.monotonic() < end:
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in mine:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
