"""A terminal to run a command in, and what stands on it in the end."""

import os
import re
import subprocess
import termios


def run_in_terminal(command, columns=120, **kwargs):
    """Run a command whose outputs are a terminal; returns its status and all that it wrote."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (40, columns))
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, **kwargs)
    os.close(its)
    written = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        written += block
    os.close(ours)
    return process.wait(), written.decode().replace("\r\n", "\n")


def screen(written):
    """The lines that are left when each carriage return has let the next text overwrite its line."""
    assert "\x1b" not in written
    lines = []
    for line in written.split("\n"):
        shown = ""
        for text in line.split("\r"):
            shown = text + shown[len(text) :]
        lines.append(shown.rstrip())
    return lines


def states(written):
    """All states of the bar that were drawn, in their order."""
    return [text for text in re.split("[\r\n]", written) if re.match(r"step [\d,]+( of [\d,]+)? ", text)]
