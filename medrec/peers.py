"""Who medrec talks to over a network, and what may go there: settings without a network.

Owns the peers (a PACS by DIMSE or by DICOMweb), the intake (where studies come from) and the destinations (where
results may go). Defaults let nothing in and nothing out. Refuses a peer that is named and not described.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from medrec.prediction import Frozen, Name


def _title(text: str) -> str:
    if text != text.strip() or "\\" in text:
        raise ValueError("an AE title has no spaces at its ends and no backslash")
    return text


# DICOM PS3.5 6.2, AE: at most 16 characters of the default repertoire.
Title = Annotated[str, Field(pattern=r"^[ -~]{1,16}$"), AfterValidator(_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Release = Literal["never", "after_review", "unreviewed"]


class Tls(Frozen):
    """PEM files: our certificate with its key, and the authority that the other side's must be signed by."""

    certificate: str
    key: str
    authority: str


class DimsePeer(Frozen):
    """A PACS by its AE title; `ours` is the title that we call ourselves towards it."""

    kind: Literal["dimse"]
    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Port
    title: Title
    ours: Title = "MEDREC"
    tls: Tls | None = None
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30


class WebPeer(Frozen):
    """A PACS by its DICOMweb address; `token` names the environment variable that holds a bearer token."""

    kind: Literal["dicomweb"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")]
    token: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = None
    authority: str | None = None
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30


Peer = Annotated[DimsePeer | WebPeer, Field(discriminator="kind")]


class Destination(Frozen):
    """Where results may go. `release` says what has to happen before; `never` is the default.

    `since` leaves out cases that were finished before that day. `check_patient`: whose the study is there is asked
    before a push, and must be who the objects say.
    `objects`: which kinds of a card's objects go there, where a PACS does not take all of them.
    `commitment_port`: our port for its storage commitment; without one, arrival is confirmed by a query.
    """

    peer: Name
    release: Release = "never"
    since: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "0000-00-00"
    check_patient: bool = True
    objects: Annotated[tuple[Literal["seg", "sr", "pdf"], ...], Field(min_length=1)] = ("seg", "sr", "pdf")
    commitment_port: Port | None = None


class Pull(Frozen):
    """What `medrec pull`, and a night without --input, asks a PACS for. `description` may hold * and ?."""

    peer: Name
    days: Annotated[int, Field(ge=1, le=3660)] = 2
    modality: Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")] = "MR"
    description: Annotated[str, Field(max_length=64)] = ""
    retrieve: Literal["get", "move"] = "get"


class Receive(Frozen):
    """`medrec receive`: who may send, how much at once, and how quiet a study must be to be complete.

    `max_object_mb` bounds one object; `max_memory_mb` those of all senders that are on their way at once.
    """

    title: Title = "MEDREC"
    host: str = "0.0.0.0"
    port: Port = 11112
    callers: Annotated[tuple[Title, ...], Field(min_length=1)]
    max_object_mb: Annotated[int, Field(ge=1, le=2047)] = 512
    max_memory_mb: Annotated[int, Field(ge=1)] = 1024
    max_associations: Annotated[int, Field(ge=1, le=100)] = 8
    max_mb_per_s: Annotated[float, Field(gt=0)] | None = None
    quiet_s: Annotated[float, Field(ge=0, le=86400)] = 60
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30
    tls: Tls | None = None


class Intake(Frozen):
    """Where studies arrive: a folder outside of the home that receive and pull write and a night reads."""

    folder: Annotated[str, Field(pattern=r"^/")]
    receive: Receive | None = None
    pull: Pull | None = None


def unknown_peers(peers: dict[str, Peer], intake: Intake | None, destinations: tuple[Destination, ...]) -> list[str]:
    """What the configuration names and does not describe, or names twice: one sentence each."""
    problems = []
    if intake is not None and intake.pull is not None and intake.pull.peer not in peers:
        problems.append(f"intake.pull.peer: there is no peer named {intake.pull.peer}")
    names = [d.peer for d in destinations]
    problems += [f"destinations: there is no peer named {name}" for name in names if name not in peers]
    problems += [f"destinations: {name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for destination in destinations:
        peer = peers.get(destination.peer)
        if destination.commitment_port is not None and isinstance(peer, WebPeer):
            problems.append(f"destinations: {destination.peer}: DICOMweb has no storage commitment")
    return problems
