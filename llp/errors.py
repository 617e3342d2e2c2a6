"""The one error that a user can cause."""


class SettingError(ValueError):
    """A setting that can't be used. The message names the setting, its value and the remedy.

    The command line prints it without a traceback and ends with a non-zero status.
    """

    def __init__(self, setting: str, value: object, remedy: str) -> None:
        super().__init__(setting, value, remedy)  # as they are, so that it can come from another process

    def __str__(self) -> str:
        return "{} = {}: {}".format(*self.args)


def require(condition: bool, setting: str, value: object, remedy: str) -> None:
    """Raise a `SettingError` unless `condition` holds."""
    if not condition:
        raise SettingError(setting, value, remedy)
