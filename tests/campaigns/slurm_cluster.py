"""A SLURM cluster of two nodes on one machine, each with a network, a host name, mounts and processes of its own.

The script that uses it runs in namespaces of its own, and the nodes in further ones below it: no address, interface,
file or process of the machine is touched, and all are gone when the script ends, however it ends. The controller and
the switch, a bridge, are where the script is.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path("/srv")  # what the machine has there is covered by an empty file system in the script's own mounts
SHARED = FOLDER / "shared"
SLURM = FOLDER / "slurm"
ADDRESSES = {"head": "192.0.2.1", "node1": "192.0.2.11", "node2": "192.0.2.12"}  # reserved for documentation
NODES = ("node1", "node2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
NODE_LOST_S = 20
"""SlurmdTimeout: after so many seconds without an answer the controller gives a node up."""
REQUEUE_WAITS_S = 10
"""cred_expire: how long a job that returned to the queue waits there at least; 120 s unless a cluster sets it."""
KILL_WAIT_S = 5
"""KillWait: the seconds between SIGTERM and SIGKILL at a job's time limit."""
GRACE_S = 30
"""GraceTime: the seconds between the warning of a pre-emption and its execution."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_NAMESPACES = 0x00020000 | 0x04000000 | 0x20000000 | 0x40000000
"""Of mounts, host name, processes and network, as <sched.h> has them."""
_PDEATHSIG = 1

_CONFIGURATION = f"""
ClusterName=two
SlurmctldHost=head
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={SLURM}/munge.socket,cred_expire={REQUEUE_WAITS_S}
StateSaveLocation={SLURM}/state
SlurmdSpoolDir={SLURM}/spool.%n
SlurmctldPidFile={SLURM}/slurmctld.pid
SlurmdPidFile={SLURM}/slurmd.%n.pid
SlurmctldLogFile={SLURM}/slurmctld.log
SlurmdLogFile={SLURM}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout={NODE_LOST_S}
KillWait={KILL_WAIT_S}
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=node[1-2] CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime={GRACE_S} State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF State=UP
"""
_INIT = """
hostname "$0"
ip link set lo up
until ip link set eth0 up 2> /dev/null; do sleep 0.1; done
ip address add "$1/24" dev eth0
slurmd -D &
sleep infinity &
wait
"""
"""The first process of a node, which takes over orphans, as init does."""


def run_in_namespaces() -> int | None:
    """Go on in a fork with namespaces of its own; returns its exit status here, and None there."""
    for program in ("slurmctld", "slurmd", "munged"):
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(["apt-get", "install", "-y", "-qq", "slurm-wlm", "munge"], check=True)
    if outside := os.fork():
        try:
            return os.waitstatus_to_exitcode(os.waitpid(outside, 0)[1])
        finally:
            with suppress(ProcessLookupError):
                os.kill(outside, signal.SIGKILL)
    _die_with_parent()
    if _LIBC.unshare(_NAMESPACES) != 0:
        raise OSError(ctypes.get_errno(), "namespaces can't be made; call it as root")
    if inside := os.fork():
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # they are for the one inside
        os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1])))
    _die_with_parent()  # this is the first process in its namespace: with it go all
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    return None


def _die_with_parent() -> None:
    _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)


def wait_for(what: str, condition: Callable[[], object], seconds: float = 120.0) -> float:
    """Wait until a condition holds, and say so; returns after how many seconds it did.

    Raises:
        TimeoutError: If it doesn't in that time.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.25)
    print(f"  {what}: after {time.monotonic() - started:.1f} s", flush=True)
    return time.monotonic() - started


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _children() -> dict[int, list[int]]:
    """The processes, by the one that started them."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            found = re.search(r"^PPid:\s+(\d+)", status.read_text(), re.MULTILINE)
        except OSError:  # it has just ended
            continue
        children.setdefault(int(found[1]), []).append(int(status.parent.name))
    return children


def _inside(node: subprocess.Popen[bytes]) -> list[str]:
    """What lets a command see the files and processes of a node."""
    wait_for("the node has processes", lambda: node.pid in _children())
    return ["nsenter", "--mount", "--pid", "--target", str(_children()[node.pid][0])]


class Cluster:
    """Munge, a controller and two nodes, joined by a bridge, with a folder that all of them share.

    Jobs see the environment of this process: `PATH` and `PYTHONPATH` lead to the code under test.
    """

    def __init__(self) -> None:
        path = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]
        os.environ["PATH"] = os.pathsep.join(path)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        os.environ["SLURM_CONF"] = str(SLURM / "slurm.conf")
        os.environ["OMP_NUM_THREADS"] = "1"
        self.controller: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        for used in (ROOT, Path(sys.prefix)):
            assert FOLDER not in used.parents, f"{FOLDER} is covered by the cluster's own; move {used}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(FOLDER)], check=True)
        for made in (SHARED, SLURM, SLURM / "state"):
            made.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "shared", str(SHARED)], check=True)
        hosts = SLURM / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in ADDRESSES.items()))
        subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
        subprocess.run(["hostname", "head"], check=True)
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "bridge", "type", "bridge")
        _ip("address", "add", f"{ADDRESSES['head']}/24", "dev", "bridge")
        _ip("link", "set", "bridge", "up")
        self._write_configuration()
        (SLURM / "munge.key").write_bytes(os.urandom(1024))
        (SLURM / "munge.key").chmod(0o400)
        options = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        files = [f"--{option}={SLURM}/munge.{option.partition('-')[0]}" for option in options]
        self._daemon("munged", "--foreground", "--force", *files)
        wait_for("munge answers", (SLURM / "munge.socket").exists)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        with (SLURM / f"{command[0]}.out").open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out)

    def _write_configuration(self, without: str | None = None) -> None:
        lines = [
            line for line in _CONFIGURATION.splitlines(keepends=True) if not (without and line.startswith(without))
        ]
        (SLURM / "slurm.conf").write_text("".join(lines))

    def configure(self, without: str | None = None) -> None:
        """Let the daemons read the configuration again, without one of its settings."""
        self._write_configuration(without)
        self("scontrol", "reconfigure")

    def start_controller(self) -> None:
        self.controller = self._daemon("slurmctld", "-D")

    def kill_controller(self) -> None:
        assert self.controller is not None
        self.controller.kill()
        self.controller.wait()

    def start_node(self, name: str) -> None:
        isolated = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (SLURM / f"{name}.out").open("ab") as out:
            command = [*isolated, "bash", "-c", _INIT, name, ADDRESSES[name]]
            node = self.nodes[name] = subprocess.Popen(command, stdout=out, stderr=out)
        own = os.readlink("/proc/self/ns/net")
        wait_for(f"{name} has a network", lambda: os.readlink(f"/proc/{node.pid}/ns/net") != own)
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
        _ip("link", "set", name, "master", "bridge", "up")

    def kill_node(self, name: str) -> None:
        """As a power cut: the network is silent at once, and no process says good-bye."""
        _ip("link", "delete", name)
        self.nodes[name].kill()
        self.nodes[name].wait()

    def cut(self, name: str) -> None:
        """Take down the link between a node and the switch."""
        _ip("link", "set", name, "down")

    def join(self, name: str) -> None:
        """Bring the link of `cut` up again."""
        _ip("link", "set", name, "up")

    def make_read_only(self, folder: Path) -> None:
        """Let both nodes see a folder of the shared ones as one that can't be written."""
        for node in self.nodes.values():
            self(*_inside(node), "mount", "-o", "bind", str(folder), str(folder))
            self(*_inside(node), "mount", "-o", "remount,bind,ro", str(folder))

    def name_loopback(self) -> None:
        """Let each node's own name stand for 127.0.1.1 there, as Debian sets it up."""
        for name, node in self.nodes.items():
            hosts = SLURM / f"hosts.{name}"
            hosts.write_text(
                f"127.0.1.1 {name}\n" + (SLURM / "hosts").read_text().replace(f"{ADDRESSES[name]} {name}\n", "")
            )
            self(*_inside(node), "mount", "--bind", str(hosts), "/etc/hosts")

    def name_addresses(self) -> None:
        """Undo `name_loopback`."""
        for node in self.nodes.values():
            self(*_inside(node), "umount", "--lazy", "/etc/hosts")

    def make_writable(self, folder: Path) -> None:
        for node in self.nodes.values():
            self(*_inside(node), "umount", "--lazy", str(folder))

    def tasks(self, name: str) -> list[int]:
        """The processes of a node in which a task of `llp` runs."""
        children = _children()
        below, found_tasks = [self.nodes[name].pid], []
        while below:
            pid = below.pop()
            below += children.get(pid, [])
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(b"/llp") for word in words[1:3]):
                found_tasks.append(pid)
        return sorted(found_tasks)

    def wait_until_idle(self) -> None:
        wait_for("the nodes are idle", lambda: self("sinfo", "-h", "-N", "-o", "%T").split()[::2] == ["idle"] * 2)

    def __call__(self, *command: str, fails: bool = False) -> str:
        """Carry out a command in the shared folder on the head; returns its output."""
        done = subprocess.run(command, cwd=SHARED, capture_output=True, text=True, check=False)
        assert fails or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, script: Path = ROOT / "configs/slurm/fit.sbatch", sbatch: list[str]) -> str:
        """Submit a batch file; returns the job's number."""
        return self("sbatch", "--parsable", *sbatch, str(script), *arguments).strip()

    def show(self, job: str) -> str:
        return self("scontrol", "show", "job", job, fails=True)

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self.show(job))
        return found[1] if found else ""

    def restarts(self, job: str) -> int:
        found = re.search(r"Restarts=(\d+)", self.show(job))
        return int(found[1]) if found else 0

    def wait_for_state(self, job: str, *states: str, seconds: float = 300.0) -> float:
        """Wait until a job is in one of the states; returns after how many seconds it was."""

        def is_there() -> bool:
            return self.state(job) in states

        return wait_for(f"job {job} is {' or '.join(states)}", is_there, seconds)

    def finish(self, job: str, seconds: float = 300.0) -> str:
        """Wait for a job to end; returns how it did."""
        self.wait_for_state(job, *ENDED, seconds=seconds)
        return self.state(job)


def end_at_signals() -> None:
    """Let SIGTERM, and a closed terminal, end the script as an exception does."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: sys.exit(1))
