"""Unusual surroundings: names, terminals, pipes, folders and encodings as they happen to be."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
from torch import distributed

from helpers.refusals import assert_one_message
from helpers.signal_handlers import handlers_restored
from llp.commands import dispatch
from llp.commands.messages import unreachable
from llp.language_model import LanguageModel
from llp.signals import LISTENER, Listener, Stopped


@pytest.mark.parametrize("name", ["../out", "..", ".", "/absolute", "a/b", "two\nlines", "bell\a"])
def test_a_name_that_is_no_folder_s_is_refused(run, work, name):
    outcome = run("fit", "--config", "tiny.yaml", f"--name={name}")
    assert_one_message(outcome, f"name = {name!r}: it is the name of a folder in lightning_logs")
    assert {path.name for path in work.iterdir()} == {"tiny.yaml", "wikitext"}


def test_a_name_may_have_spaces_and_any_letters(run, work):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "größer 🙂", "--trainer.max_steps", 1)
    assert status == 0, err
    assert run("test", "--ckpt_path", "lightning_logs/größer 🙂", "--trainer.limit_test_batches", 1)[0] == 0


def test_where_the_other_processes_are_gone_that_is_said_on_rank_0_too(run, work, monkeypatch):
    def lost(self, *_):
        raise RuntimeError("[gloo/pair.cc:537] Read error [127.0.0.1]:29101: Connection reset by peer. And so on.")

    monkeypatch.setattr(LanguageModel, "training_step", lost)
    status, out, err = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert status == 1
    assert "llp fit: rank 0 has lost the others: [gloo/pair.cc:537] Read error" in err
    assert "Traceback" not in out + err


def test_a_file_in_the_place_of_a_folder_is_named(run, work):
    (work / "lightning_logs").write_text("a file")
    outcome = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert_one_message(outcome, "lightning_logs/run: Not a directory; a file is where a folder should be; move it")


def test_where_gloo_has_found_nobody_is_read_from_its_words():
    refused = "timed out connecting: SO_ERROR: Connection refused, remote=[127.0.1.1]:1408$1"
    assert (
        unreachable(RuntimeError(f"Gloo connectFullMesh failed with [transport/tcp/pair.cc:152] {refused}"))
        == "127.0.1.1"
    )
    assert unreachable(RuntimeError("[transport/tcp/pair.cc:553] Connection closed by peer [192.0.2.11]:45468")) is None


def test_a_seed_beyond_numpys_and_a_trainer_of_nothing_are_refused(run, work):
    seed = ("--seed_everything", 2**32)
    assert_one_message(run("fit", "--config", "tiny.yaml", *seed), "seed_everything = 4294967296: set it to 0 or more")
    nothing = ("--config", "{trainer: null}")
    assert_one_message(run("fit", "--config", "tiny.yaml", *nothing), "trainer = None: leave the section out")


def test_a_working_folder_that_is_gone_is_said(run, work):
    (work / "gone").mkdir()
    os.chdir(work / "gone")
    (work / "gone").rmdir()
    assert_one_message(run("test", "--ckpt_path", work), "llp: error: the working folder is gone; cd to one that is")


def test_figures_are_on_disk_before_they_are_shown(run, trained, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llp.evaluation.report.print", full, raising=False)
    assert_one_message(run("test", "--ckpt_path", trained), "No space left on device; make room")
    assert (trained / "test.json").is_file()
    assert (trained / "test.csv").is_file()


@pytest.mark.parametrize("subcommand", ["generate", "test"])
def test_nobody_reading_on_is_no_error(run, trained, monkeypatch, subcommand):
    """As after `| head -1`: the status is that of any program that the broken pipe ends, and nothing is said."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        status, _, err = run(subcommand, "--ckpt_path", trained)
    assert status == 128 + signal.SIGPIPE
    assert "error" not in err


def test_a_prompt_that_is_no_text_is_refused(run, trained):
    outcome = run("generate", "--ckpt_path", trained, "--prompt", os.fsdecode(b"caf\xe9"))
    assert_one_message(outcome, "prompt = 'caf\\udce9': it is not UTF-8; give it in that encoding")


def test_characters_that_the_terminal_lacks_end_nothing(run, trained, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    status, _, err = run("generate", "--ckpt_path", trained, "--prompt", "Ünï", "--max_tokens", 3)
    assert status == 0, err
    out.flush()
    assert out.buffer.getvalue().startswith(b"?n?")


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
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored in a suite that `nohup` started
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


HUNG_UP = """
import os, signal, sys, time
from llp.language_model import LanguageModel
from llp.signals import LISTENER
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored in a suite that `nohup` started
LISTENER.listen()
LISTENER.deferring = True
print("ready", flush=True)
while LISTENER.received is None:
    time.sleep(0.01)
print("written to nowhere", flush=True)
print("and this too", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write("saved")
"""


def test_what_is_said_to_a_terminal_that_is_gone_does_no_harm(tmp_path):
    main, terminal = os.openpty()
    command = [sys.executable, "-c", "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + HUNG_UP, "saved"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    assert os.read(main, 5) == b"ready"
    os.close(main)  # the window is closed: the kernel sends SIGHUP
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "saved").read_text() == "saved"


@pytest.mark.parametrize(("ending", "status"), [(None, 0), (Stopped(signal.SIGUSR1), 128 + signal.SIGUSR1)])
def test_gloo_s_threads_end_with_the_command(tmp_path, monkeypatch, capsys, ending, status):
    """Of thirty processes that left them running two were aborted at their end, all work done: exit status 134."""

    def command(options):
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        if ending is not None:
            raise ending

    monkeypatch.setattr("llp.commands.prepare.run", command)
    assert dispatch.run("prepare", []) == status
    assert not distributed.is_initialized()


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


POOLS = """
from multiprocessing import Pool
from llp.signals import LISTENER
LISTENER.listen()
for _ in range(300):
    with Pool(2) as pool:
        list(pool.imap(abs, range(50)))
"""


def test_pools_end_however_early_or_late_their_processes_are_terminated():
    subprocess.run([sys.executable, "-c", POOLS], check=True, timeout=60)
