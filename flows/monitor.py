"""medrec looks at itself, as a Prefect flow: what changed, and whether all that is checked holds.

Prefect sees counts and words of ours. What is found stands in the ledger, whether Prefect is there or not.
"""

from datetime import UTC, datetime

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from medrec import watching
from medrec.config import Configuration
from medrec.home import Home
from medrec.store import Store


def looked(home: Home, configuration: Configuration) -> "State[None]":
    """Look once; failed is a state that somebody should look at. Raises WorldError."""
    if not home.holds_store():
        return Completed(message="there is nothing to watch yet")
    with Store.open(home.store_url) as store:
        found = watching.look(home, store, configuration, datetime.now(UTC))
    problems = sum(len(p) for p in found.checks.values())
    message = f"{len(found.alarms)} numbers changed, {problems} to look at; {found.streams} watched"
    return (Failed if found.exit_code else Completed)(message=message)
