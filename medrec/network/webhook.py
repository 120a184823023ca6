"""Telling somebody by HTTP: one JSON object, posted. Knows no PACS and no identity."""

import os
from collections.abc import Mapping

import requests

from medrec.errors import WorldError
from medrec.schedule import Notify


def post(notify: Notify, facts: Mapping[str, str | None]) -> None:
    """Post facts to the configured webhook, if there is one. Raises WorldError when it does not take them."""
    if notify.webhook is None:
        return
    token = os.environ.get(notify.token, "") if notify.token else ""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = requests.post(
            notify.webhook, json=dict(facts), headers=headers, timeout=notify.timeout_s, allow_redirects=False
        )
    except requests.RequestException as error:  # its text holds the address, which may hold a secret
        raise WorldError(f"the webhook cannot be reached ({type(error).__name__})") from None
    if not answer.ok:
        raise WorldError(f"the webhook answers {answer.status_code}")
