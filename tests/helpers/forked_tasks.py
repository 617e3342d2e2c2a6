"""Processes of `llp` that are forked from one which has imported everything: a fraction of a start's time.

In the place of the program `llp` stands a small one. It asks the server of its host for a fork with its arguments,
folder, environment and streams, hands signals on to it, and ends as it does; when it is killed, so is the fork.
"""

import array
import atexit
import ctypes
import json
import os
import select
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path

import torch
from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

_PROGRAM = """#!/usr/bin/python3 -IS
import array, json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({folder!r} + "/llp." + socket.gethostname())
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
signals = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
server.sendmsg([len(request).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.sendall(request)
fork = int.from_bytes(server.recv(4), "big")
for signum in signals:
    signal.signal(signum, lambda signum, frame: os.kill(fork, signum))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
status = os.waitstatus_to_exitcode(int.from_bytes(server.recv(4), "big"))
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
_IMPORTED = ("llp.__main__", "llp.commands.dispatch", "helpers.pace")
_IMPORTED += ("torch.utils.tensorboard", "torch.distributed.fsdp", "torch.distributed.checkpoint")
_NAMESPACES = ("pid", "net", "uts", "mnt")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PDEATHSIG = 1


def install(folder: Path) -> None:
    """Import what `llp` needs, and write the small program into `folder`/bin."""
    for name in _IMPORTED:
        import_module(name)
    program = folder / "bin/llp"
    program.parent.mkdir()
    program.write_text(_PROGRAM.format(folder=str(folder)))
    program.chmod(0o755)


def serve(folder: Path, host: str, pid: int | None = None) -> None:
    """Start the server of a host, in the namespaces of the process `pid` there; None: in one's own."""
    server = socket.socket(socket.AF_UNIX)
    path = folder / f"llp.{host}"
    path.unlink(missing_ok=True)
    server.bind(str(path))
    server.listen(64)
    if os.fork():
        server.close()
        return
    _as_started_anew()
    for descriptor in [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in _NAMESPACES] if pid else []:
        if _LIBC.setns(descriptor, 0) != 0:
            os._exit(1)
    if os.fork():  # only a child is in the other namespace of processes
        os._exit(0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that serve one request
    while True:
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            _fork_task(connection)
        connection.close()


def _fork_task(connection: socket.socket) -> None:
    """Fork a task, tell its process number, and in the end its status; kill it when nobody waits for that any more."""
    streams = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(3 * streams.itemsize))
    streams.frombytes(ancillary[0][2])
    request = b""
    while len(request) < int.from_bytes(head, "big"):
        request += connection.recv(1 << 20)
    arguments, folder, environment = json.loads(request)
    task = os.fork()
    if task == 0:
        connection.close()
        _become(arguments, folder, environment, list(streams))
    for stream in streams:
        os.close(stream)
    connection.sendall(task.to_bytes(4, "big"))
    ended = os.pidfd_open(task)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:
        os.kill(task, signal.SIGKILL)
    _, status = os.waitpid(task, 0)
    if ended in ready:
        connection.sendall(status.to_bytes(4, "big"))
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]) -> None:
    """Be the process that `llp` with these arguments would be."""
    _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # what was read at the import
    rank_zero_only.rank = _get_rank() or 0
    sys.argv = ["llp", *arguments]
    status = 1
    try:
        status = import_module("llp.__main__").main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        output.flush()
    os._exit(status)


def _as_started_anew() -> None:
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
