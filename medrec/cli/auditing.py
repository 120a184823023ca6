"""The auditor's commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medrec.cli.common import ConfigOption, HomeOption, open_store

if TYPE_CHECKING:
    from medrec.store import Store

AnchorsOption = Annotated[
    Path | None, typer.Option("--anchors", envvar="MEDREC_ANCHORS", help="Folder of signed anchors.")
]
ExperimentOption = Annotated[str, typer.Option("--experiment", help="The MLflow experiment that nights write to.")]


def verify(
    home: HomeOption = None,
    since: Annotated[
        str, typer.Option("--since", help="Check files and rows from this record on: a number, digest or time.")
    ] = "",
    anchors: AnchorsOption = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", envvar="MEDREC_ANCHOR_KEY", help="Who signed the anchors (PEM).")
    ] = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow/--without-mlflow", help="Hold MLflow against the ledger too.")
    ] = True,
    experiment: ExperimentOption = "medrec",
    by: Annotated[str, typer.Option("--by", help="An auditor, who signs that nothing was found.")] = "",
    key: Annotated[Path | None, typer.Option("--key", envvar="MEDREC_KEY", help="The auditor's private key.")] = None,
    config: ConfigOption = None,
) -> None:
    """Hash the ledger's chain and every file that it names again; name what does not match, the first one first."""
    from medrec import anchors as signed
    from medrec import verification
    from medrec.errors import ConfigError, WorldError

    if (anchors is None) != (public_key is None):
        raise ConfigError(["--anchors and --public-key go together"])
    if by and key is None:
        raise ConfigError(["--by and --key go together: an audit is signed, or it is nobody's"])
    if by and (since or not mlflow):
        raise ConfigError(["--by: who signs looks at everything: without --since, and with MLflow"])
    place, store = open_store(home)
    with store:
        records, head = store.position()  # what comes while this looks is for the next time
        number = verification.number_since(store, since) if since else 0
        problems = [str(p) for p in verification.verify(place, store, number)]
        if anchors is not None and public_key is not None:
            problems += [str(p) for p in signed.check(anchors, public_key, store.digest_of)]
        if mlflow:
            try:
                problems += [str(p) for p in verification.verify_mlflow(place, store, experiment)]
            except WorldError as error:
                problems.append(f"{error}: what it shows was not checked (--without-mlflow leaves it out)")
        if by and key is not None and not problems:
            _sign(by, key, (records, head), store, config)
    for problem in problems:
        typer.echo(problem)
    if problems:
        typer.echo(f"{len(problems)} problem(s) in {records} records: this home is not as it was written")
        raise typer.Exit(1)
    left_out = [f"from record {number + 1} on"] * bool(since) + ["without what MLflow shows"] * (not mlflow)
    scope = f" ({', '.join(left_out)})" if left_out else ""
    typer.echo(f"{records} records, every file as it was written{scope}; head {head}")


def _sign(by: str, key: Path, position: tuple[int, str], store: "Store", config: Path | None) -> None:
    """Put on record that an auditor found nothing."""
    from datetime import UTC, datetime

    from medrec import config as configuration
    from medrec import reviewing
    from medrec.signing import Signer

    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    signer = Signer.load(by, key)
    reviewing.enrol_own(store, configuration.load(config).settings, signer, now)
    store.audited(position, signer, now)
    typer.echo(f"signed by {by}")


def show(case: Annotated[str, typer.Argument(metavar="CASE")], home: HomeOption = None) -> None:
    """Tell the story of one case: every record about it, and what it pins."""
    from medrec import story

    _, store = open_store(home)
    with store:
        for line in story.tell(case, store):
            typer.echo(line)


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the bundle.")],
    home: HomeOption = None,
    anchors: AnchorsOption = None,
) -> None:
    """Write ledger and files as a bundle that a third party verifies with Python alone."""
    from medrec import bundle

    place, store = open_store(home)
    with store:
        records = bundle.export(place, store, output, anchors)
    typer.echo(f"{records} records; to verify: python3 {output / 'verify.py'} {output}")


def make_key(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes.")]) -> None:
    """Make the key that signs anchors; the public one is for those who verify."""
    from medrec import anchors

    typer.echo(f"private key {file}; give {anchors.make_key(file)} to those who verify")


def anchor(
    anchors: Annotated[Path, typer.Option("--anchors", envvar="MEDREC_ANCHORS", help="Folder of signed anchors.")],
    key: Annotated[Path, typer.Option("--key", help="The private key: medrec audit make-key.")],
    home: HomeOption = None,
) -> None:
    """Sign the ledger's head and leave it in a folder, best one that can be written once."""
    from datetime import UTC, datetime

    from medrec import anchors as signed

    _, store = open_store(home)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    with store:
        typer.echo(str(signed.write(anchors, key, store.position(), now)))
