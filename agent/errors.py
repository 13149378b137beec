"""The one tree of errors; each class names the exit code that the command line ends with."""

from __future__ import annotations


class AgentError(Exception):
    """Something a person can act on: the message says what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(AgentError):
    """The configuration, or an argument, is wrong (EX_CONFIG; systemd does not restart on it)."""

    exit_code = 78


class DataError(AgentError):
    """The training or test data cannot be used (EX_DATAERR)."""

    exit_code = 65


class JournalError(AgentError):
    """The journal cannot be opened or written (EX_IOERR)."""

    exit_code = 74


class OutputError(AgentError):
    """Results cannot be written: no room, or no right to (EX_IOERR)."""

    exit_code = 74


class NetworkError(AgentError):
    """The broker or the discovery cannot do what the run needs (EX_UNAVAILABLE)."""

    exit_code = 69


class EnergyError(AgentError):
    """No usable source of energy readings (EX_OSFILE)."""

    exit_code = 72


class TrainingError(AgentError):
    """The model cannot be built or trained on this device (EX_SOFTWARE)."""

    exit_code = 70


class ContractViolation(AgentError):  # noqa: N818  it is the name of what happened
    """A driver broke the rules of the RoundMachine: a bug of ours, never of a peer (EX_SOFTWARE)."""

    exit_code = 70
