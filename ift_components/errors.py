"""Errors that a user can mend: shown as one message without a traceback, before any work is lost."""


class UserError(Exception):
    """Something the user gave is wrong; the message names the value, what was expected and the fix."""


class ConfigError(UserError):
    """A config file, an override or a component's arguments are wrong."""


class DataError(UserError):
    """A dataset folder, table or image is wrong."""
