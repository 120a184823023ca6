"""Where studies come from: a listener that is sent them, and jobs that ask a PACS for them.

Both end in a `Spool`, a folder outside of the home that a night reads. Invariants: a file in it is whole; a study in it
is complete as far as anybody can tell; nothing of a person is in a name. `receiver` and `pull` do not know each other.
"""

from medrec.sources.spool import Spool

__all__ = ["Spool"]
