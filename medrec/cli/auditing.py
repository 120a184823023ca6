"""The auditor's commands."""

import typer

from medrec.cli.common import HomeOption


def verify(home: HomeOption = None) -> None:
    """Hash the ledger's chain and every file that it names again; name what does not match."""
    import hashlib
    from functools import cache

    from medrec.errors import ConfigError
    from medrec.home import Home
    from medrec.store import Store

    place = Home(home or Home.default())
    if not place.holds_store():
        raise ConfigError([f"--home: there is no store at {place.root}: nothing to verify, or it was taken away"])

    @cache  # all cases of one model name the same weights
    def digest(relative: str) -> str | None:
        path = place.root / relative
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with Store.open(place.store_url) as store:
        problems = [str(p) for p in store.verify(digest)]
        known = {c.case for c in store.cases()}
        records = sum(1 for _ in store.ledger())
        head = store.head()
    for folder in sorted(place.reports.glob("[!.]*")):
        if folder.name not in known:
            problems.append(f"report of case {folder.name}: the ledger knows nothing of it")
    for folder in sorted(place.outbox.glob("[!.]*")):
        if folder.name.removesuffix("-accepted").removesuffix("-rejected") not in known:
            problems.append(f"objects of case {folder.name}: the ledger knows nothing of it")
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.echo(f"{len(problems)} problem(s) in {records} records: this home is not as it was written")
        raise typer.Exit(1)
    typer.echo(f"{records} records, every file as it was written; head {head}")
