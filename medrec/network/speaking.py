"""From a peer's settings to the PACS that speaks its protocol."""

from medrec.network.dimse import DimsePacs
from medrec.network.pacs import Pacs
from medrec.network.web import WebPacs
from medrec.peers import DimsePeer, Peer, Receive


def reach(
    name: str, peer: Peer, *, receive: Receive | None = None, retrieve: str = "get", commitment_port: int | None = None
) -> Pacs:
    """The PACS; nothing is opened before it is asked something. Raises ConfigError when a token is not there."""
    if isinstance(peer, DimsePeer):
        return DimsePacs(name, peer, receive, retrieve, commitment_port)
    return WebPacs(name, peer)
