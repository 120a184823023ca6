"""The two families of trouble: the data is wrong, or the world is down.

`DataError`: trying again changes nothing; a person must change the input, the card or the command.
`WorldError`: disk, database, network or memory; trying again may help, so Prefect's retries get to see it.
No message ever holds a patient's name or a path below an input folder.
"""

from collections.abc import Sequence


class MedrecError(Exception):
    """What all errors of ours share; its text is for a person: what was wanted, what came, where, what to do."""


class DataError(MedrecError):
    """The input is wrong; trying again changes nothing."""


class ScanError(DataError):
    """A scan contradicts itself or the standard."""


class WeightsError(DataError):
    """Weights are missing, or are not the ones that their card names."""


class ConfigError(DataError):
    """A card, the configuration or the command line has mistakes: all of them at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class WorldError(MedrecError):
    """Something outside is down; trying again may help."""


class SentinelError(MedrecError):
    """A study with a known answer came out otherwise: no patient's study may be touched."""

    def __init__(self, wrong: Sequence[str]) -> None:
        self.wrong = tuple(wrong)
        what = "stopped before any study was touched: what is known of phantoms did not come out on this machine"
        super().__init__("; ".join((what, *wrong)))


class AlreadyRunningError(WorldError):
    """Another night works on this home."""
