"""`medrec receive`: a listener that fills the spool, and hands over studies that have become quiet."""

import time
from collections.abc import Callable

from medrec.errors import WorldError
from medrec.network.listener import Listener
from medrec.peers import Receive
from medrec.sources.spool import Spool

LOOK_S = 1.0


def receive(
    settings: Receive,
    spool: Spool,
    tell: Callable[[str], None],
    stopped: Callable[[float], bool],
    clock: Callable[[], float] = time.time,
) -> int:
    """Listen until `stopped` (which waits so many seconds) says so; returns how many studies were handed over.

    Raises WorldError when the port cannot be had, ConfigError when spool or TLS cannot be used.
    """
    spool.create()
    handed = 0
    with Listener(settings, spool.keep):
        tell(f"listening as {settings.title} on port {settings.port} for {', '.join(settings.callers)}")
        while not stopped(min(LOOK_S, max(0.1, settings.quiet_s))):
            try:
                settled = spool.settle(clock(), settings.quiet_s)
            except WorldError as error:  # the disk may recover; the studies wait where they are
                tell(str(error))
                continue
            if settled:
                handed += settled
                tell(f"{settled} studies are complete ({handed} so far)")
    return handed
