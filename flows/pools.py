"""Work pools and queues on a Prefect server: where workers look for what they shall do, and in which order."""

import asyncio
from contextlib import suppress

from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

POOLS = ("cpu", "gpu")
QUEUES = {"urgent": 1, "nightly": 2, "backfill": 3}  # 1 is first


def create() -> None:
    """Make the pools and queues that are not there yet. Needs PREFECT_API_URL."""
    asyncio.run(_create())


async def _create() -> None:
    async with get_client() as client:
        for pool in POOLS:
            with suppress(ObjectAlreadyExists):
                await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            for queue, priority in QUEUES.items():
                with suppress(ObjectAlreadyExists):
                    await client.create_work_queue(queue, work_pool_name=pool, priority=priority)
