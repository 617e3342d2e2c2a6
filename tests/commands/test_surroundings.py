"""Unusual surroundings: names, terminals, pipes, folders and encodings as they happen to be."""

import os
import signal
import sys

import pytest

from helpers.signal_handlers import handlers_restored
from llp.signals import LISTENER, Listener, Stopped


def test_nobody_reading_on_is_no_error(run, trained, monkeypatch):
    """As after `| head -1`: the status is that of any program that the broken pipe ends, and nothing is said."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        status, _, err = run("generate", "--ckpt_path", trained)
    assert status == 128 + signal.SIGPIPE
    assert "error" not in err


def test_a_closed_terminal_lets_the_step_be_saved(run, work, monkeypatch):
    from llp import LLP

    step, calls = LLP.training_step, []

    def hung_up(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGHUP)
        return step(self, *arguments)

    monkeypatch.setattr(LLP, "training_step", hung_up)
    with handlers_restored():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
        status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert status == 128 + signal.SIGHUP
    assert "Resume from step 3 with: llp fit --ckpt_path lightning_logs/run/checkpoints/last.ckpt" in err
    assert (work / "lightning_logs/run/checkpoints/last.ckpt").is_file()


def test_a_run_under_nohup_goes_on(monkeypatch):
    with handlers_restored():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        listener = Listener()
        listener.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        assert listener.received is None
    with handlers_restored():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        listener.listen()
        with pytest.raises(Stopped, match="SIGHUP"):
            os.kill(os.getpid(), signal.SIGHUP)


def test_a_forked_process_is_ended_by_sigterm_itself():
    """`llp evaluate` waited for ever for the process of a pool that had been about to wait for a lock itself."""
    with handlers_restored():
        LISTENER.listen()
        handler = signal.getsignal(signal.SIGTERM)
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(tell, b"!")
                signal.pause()
            finally:
                os._exit(0)
        assert os.read(ready, 1) == b"!"
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert signal.getsignal(signal.SIGTERM) == handler  # this process still finishes its step
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for descriptor in (ready, tell):
        os.close(descriptor)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
