"""What leaves: which results may go where, on their way, arrived, and taken back.

Knows the outbox by its files and the PACS by its protocol; the store holds where each delivery stands. Invariants:
nothing leaves but by a destination's release rule; nothing is `confirmed` before the PACS has shown that it has it; a
PACS that is down delays and never loses or doubles; no person and no UID of a study gets into the store.

`release` decides what may go, `matching` which lesions are known, `push` brings one case to one PACS, `recall` takes
back.
"""

from medrec.dispatch.derived import derived
from medrec.dispatch.matching import match, tracked
from medrec.dispatch.push import deliver
from medrec.dispatch.recall import Affected, recall, take_back
from medrec.dispatch.release import plan
from medrec.dispatch.values import Delivered

__all__ = ["Affected", "Delivered", "deliver", "derived", "match", "plan", "recall", "take_back", "tracked"]
