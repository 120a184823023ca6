"""The reviewer's command: MLflow's pages over a home."""

from typing import Annotated

import typer

from medrec.cli.common import HomeOption, say


def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 5000,
) -> None:
    """Open the reports: start MLflow's server on 127.0.0.1."""
    from medrec.home import Home
    from medrec.server import serve

    serve(Home(home or Home.default()), port, say)
