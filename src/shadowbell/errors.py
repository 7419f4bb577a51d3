"""The one error a user is meant to read."""


class UserError(Exception):
    """Something the user asked for can't be done; the message is one line that says what to do.

    The command line prints it as ``shadowbell: error: MESSAGE`` and exits with 2.
    """
