"""The commands about people: whose report it is, who asked to be forgotten, what must be kept."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from medrec.cli.common import ConfigOption, HomeOption, open_store, say

ArchiveOption = Annotated[
    Path, typer.Option("--input", envvar="MEDREC_INPUT", help="The archive: folder of the DICOM files.")
]
CaseArgument = Annotated[str, typer.Argument(metavar="CASE", help="The case's key.")]


def whois(case: CaseArgument, input: ArchiveOption, home: HomeOption = None) -> None:
    """Say whose case this is; the look-up goes into the ledger, the answer only to this terminal."""
    from dataclasses import asdict

    from medrec import privacy

    place, store = open_store(home)
    with store:
        place.check_input(input)
        for name, value in asdict(privacy.look_up(case, input, place, store)).items():
            # A header may hold control characters that would steer a terminal.
            shown = "".join(c if c.isprintable() else " " for c in str(value))
            typer.echo(f"{name.replace('_', ' ')}: {shown}")


def find(
    input: ArchiveOption,
    accession: Annotated[
        bool, typer.Option("--accession", help="Read an accession number from stdin, where no process list shows it.")
    ],
    home: HomeOption = None,
) -> None:
    """Say which cases belong to an accession number; the look-up goes into the ledger."""
    from medrec import privacy
    from medrec.errors import ConfigError, DataError

    wanted = sys.stdin.readline().strip() if accession else ""
    if not wanted:
        raise ConfigError(["find --accession reads the number from stdin: echo NUMBER | medrec find --accession …"])
    place, store = open_store(home)
    with store:
        place.check_input(input)
        rows = privacy.find_accession(wanted, input, place, store)
    if not rows:
        raise DataError("no case has this accession number")
    for row in rows:
        typer.echo(f"{row.case}  {row.status}  {row.verdict or row.reason}  {row.report or ''}")


def erase(
    patient: Annotated[
        str, typer.Argument(metavar="PATIENT", help="The patient's pseudonym; - reads PatientID and issuer from stdin.")
    ],
    home: HomeOption = None,
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget a patient: reports, pixels, salt and MLflow runs go, a tombstone stays, the ledger still verifies."""
    from medrec import config as configuration
    from medrec import privacy
    from medrec.dicom import Pseudonyms
    from medrec.dicom.identity import patient_of

    place, store = open_store(home)
    with store, place.alone():
        if patient == "-":
            patient_id, issuer = sys.stdin.readline(), sys.stdin.readline()
            patient = patient_of(Pseudonyms.load(place.key), patient_id, issuer)
        if not yes:
            typer.confirm(f"Erase {len(store.of_patient(patient))} cases for good?", abort=True, err=True)
        loaded = configuration.load(config)
        before = len(store.shadows())
        done = privacy.erase(patient, place, store, loaded)
        if len(store.shadows()) < before:
            from medrec import shadow

            shadow.show(place, store, loaded)  # without this patient
    typer.echo(f"erased {len(done.cases)} cases: {', '.join(done.cases)}")
    for model in done.models:
        typer.echo(f"trained on this patient, and not erased by this: {model}")
    for left in done.left:
        typer.echo(f"still to do: {left}")
    typer.echo("not erased: the archive's own files, backups, and what was delivered elsewhere")


def hold(
    case: CaseArgument,
    why: Annotated[str, typer.Option("--why", help="For the ledger; no names.")],
    lift: Annotated[bool, typer.Option("--lift", help="Let it go again.")] = False,
    home: HomeOption = None,
) -> None:
    """Keep a case from erasure and retention."""
    from medrec import privacy

    _, store = open_store(home)
    with store:
        privacy.hold(case, why, store, lift=lift)
    typer.echo(f"case {case}: {'no longer on hold' if lift else 'on hold'}")


def prune(
    home: HomeOption = None,
    config: ConfigOption = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and leave it.")] = False,
) -> None:
    """Clear away what is older than the configured retention; what is on hold stays."""
    from datetime import UTC, datetime

    from medrec import config as configuration
    from medrec import privacy

    place, store = open_store(home)
    with store, place.lock():
        for line in privacy.prune(place, store, configuration.load(config), datetime.now(UTC), dry=dry):
            typer.echo(line)


def deidentify(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of DICOM files, or one file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the copies.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="Makes UIDs the same on every run; made when it is not there.")
    ] = None,
    clean_pixels: Annotated[bool, typer.Option("--clean-pixels", help="Cover burned-in text (113101).")] = False,
    modified_dates: Annotated[bool, typer.Option("--modified-dates", help="Shift dates (113107).")] = False,
    characteristics: Annotated[
        bool, typer.Option("--retain-characteristics", help="Keep age, sex, size, weight (113108).")
    ] = False,
    device: Annotated[bool, typer.Option("--retain-device", help="Keep the device's identity (113109).")] = False,
) -> None:
    """Write copies without identity: DICOM's basic confidentiality profile (PS3.15 Annex E), with options."""
    import secrets

    from medrec.dicom import Pseudonyms
    from medrec.dicom.confidentiality import Options, deidentify

    secret = secrets.token_bytes(32) if key is None else Pseudonyms.load(key).key
    options = Options(clean_pixels, modified_dates, characteristics, device)
    done = deidentify(source, output, secret, options)
    typer.echo(f"{done.written} files written, with record.csv")
    for reason, count in sorted(done.withheld.items()):
        typer.echo(f"{count} withheld: {reason}")
    typer.echo("Faces can be rebuilt from scans of heads: they remain. Look before you give anything away.")
    raise typer.Exit(1 if done.withheld else 0)


def rotate_key(home: HomeOption = None, config: ConfigOption = None) -> None:
    """Put a new key on top of the pseudonyms' key; everything known already gets its new name."""
    from medrec import config as configuration
    from medrec import privacy

    place, store = open_store(home)
    with store:
        count = privacy.rotate(place, store, configuration.load(config))
    say(f"{count} names changed; copy key and renamed to the other hosts of this store, and make a new backup")
