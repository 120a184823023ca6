"""A worker's part of a shared night, as a Prefect flow in a work pool; parameters are a batch and two numbers.

Where MEDREC_SLOT names a concurrency limit of Prefect's, the worker takes its one slot first: one set of networks on
one device at a time. The slot is strict (a limit that does not exist is an error, not no limit) and lent: a worker that
died gives it back within `SLOT_S`.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.deployments import run_deployment
from prefect.states import Completed, Failed

from flows import told_to_stop
from medrec import config, notices, shards
from medrec.errors import MedrecError
from medrec.home import Home
from medrec.pace import AT_ONCE

SLOT_S = 60.0  # the shortest that Prefect lends


@flow(name="shard", flow_run_name="shard {number} of {batch}", validate_parameters=False)
def shard(batch: str, number: int, of: int) -> "State[None]":
    """Take cases of a shared night until none is free."""
    home = Home(Home.default())
    folder = os.environ.get("MEDREC_CONFIG")
    try:
        configuration = config.load(Path(folder) if folder else None)
        with _slot(), shards.Shard(home, configuration, batch, number, of) as part, told_to_stop(part):
            part.scan()
            if part.has_work:
                part.get_ready()
                part.prove()
                with ThreadPoolExecutor(AT_ONCE, "study") as threads:
                    part.lead(lambda p: threads.submit(part.analyse, p), lambda done, total: None)
            return Completed(message=part.told())
    except MedrecError as error:
        return Failed(message=" ".join(notice.text for notice in notices.of_error(error)))  # quotes no path


def start(batch: str, number: int, of: int) -> None:
    """Ask Prefect for a worker."""
    run_deployment("shard/shard", parameters={"batch": batch, "number": number, "of": of}, timeout=0, as_subflow=False)


@contextmanager
def _slot() -> Iterator[None]:
    name = os.environ.get("MEDREC_SLOT")
    held = (
        concurrency(name, strict=True, lease_duration=SLOT_S, raise_on_lease_renewal_failure=False)
        if name
        else nullcontext()
    )
    with held:
        yield
