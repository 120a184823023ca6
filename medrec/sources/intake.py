"""The configured intake: where its spool lies, and what its PACS is asked for."""

from datetime import date, timedelta
from pathlib import Path

from medrec.dicom import Pseudonyms
from medrec.errors import ConfigError
from medrec.home import Home
from medrec.network import Wanted, reach
from medrec.peers import Intake, Peer, Pull
from medrec.sources.pull import Pulled, Tell, pull
from medrec.sources.spool import Spool


def spool_of(home: Home, intake: Intake | None) -> Spool:
    """The intake's folder, beside the home, whose key names the studies in it; makes the home.

    Raises ConfigError when there is none, or it lies in the home or around it.
    """
    if intake is None:
        raise ConfigError(["medrec.yaml: intake.folder is not there: where studies arrive"])
    root, place = Path(intake.folder), home.root.resolve()
    if root.resolve().is_relative_to(place) or place.is_relative_to(root.resolve()):
        raise ConfigError([f"medrec.yaml: intake.folder: {root} and the home {place} must lie beside each other"])
    home.create()
    return Spool(root, Pseudonyms.load(home.key))


def question(asked: Pull, today: date) -> Wanted:
    """The studies of the last days, as a PACS is asked for them."""
    first = today - timedelta(days=asked.days - 1)
    return Wanted(f"{first:%Y%m%d}", f"{today:%Y%m%d}", asked.modality, asked.description)


def fill(home: Home, intake: Intake, peers: dict[str, Peer], wanted: Wanted | None, today: date, tell: Tell) -> Pulled:
    """Pull what is `wanted`, or else what the configuration asks for, into the spool.

    Raises ConfigError where no pull is configured, UnreachableError when the PACS is away.
    """
    asked = intake.pull
    if asked is None:
        raise ConfigError(["medrec.yaml: intake.pull is not there: which PACS is asked"])
    pacs = reach(asked.peer, peers[asked.peer], receive=intake.receive, retrieve=asked.retrieve)
    return pull(pacs, wanted or question(asked, today), spool_of(home, intake), tell)
