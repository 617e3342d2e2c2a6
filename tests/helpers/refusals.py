"""What `llp` answers where it refuses something."""


def assert_one_message(outcome, message, status=1):
    """Of status, standard output and standard error: the message, once, and no traceback."""
    code, out, err = outcome
    assert message in err, err
    assert code == status
    assert "Traceback" not in out + err
    assert len([line for line in err.splitlines() if "error: " in line]) == 1, err
