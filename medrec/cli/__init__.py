"""What people type. Only typer and rich are imported here; a command imports what it needs when it runs.

Exit codes: 0 all accounted for, 1 something failed for a reason of ours, 2 a mistake in the command or configuration.
One module holds the commands of one job; here they are put together.
"""

import os
import sys
from typing import Annotated

import typer

from medrec.cli import (
    archive,
    auditing,
    keeping,
    labelling,
    nights,
    operating,
    people,
    replaying,
    reviewing,
    scans,
    training,
    watching,
)
from medrec.cli.common import complain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Nightly DICOM batches to auditable tumour-detection reports. Research use; not a medical device.",
)
audit = typer.Typer(no_args_is_help=True, help="Check that nothing was changed since it was written.")
for command in (
    nights.nightly,
    nights.demo,
    reviewing.ui,
    scans.convert,
    scans.inspect,
    scans.doctor,
    replaying.replay,
):
    app.command()(command)
for private in (people.whois, people.find, people.erase, people.hold, people.prune, people.rotate_key):
    app.command()(private)
for operators in (operating.status, operating.serve, operating.pools, operating.backfill, operating.restore_reports):
    app.command()(operators)
app.command()(people.deidentify)
app.command()(keeping.backup)
app.command()(keeping.restore)
app.command()(keeping.upgrade)
app.command()(watching.monitor)
for spoken in (archive.receive, archive.pull, archive.deliver, archive.recall, archive.match, archive.conformance):
    app.command()(spoken)
review = typer.Typer(
    cls=reviewing.Answering,
    no_args_is_help=True,
    subcommand_metavar="CASE accept|reject|edit | COMMAND",
    help="Answer to reports, and what was answered: medrec review CASE accept --by NAME --key FILE.",
)
review.command("case")(reviewing.answer)
review.command("list")(reviewing.show)
for reviewers in (reviewing.sync, reviewing.make_key, reviewing.enrol):
    review.command()(reviewers)
app.add_typer(review, name="review")
for auditors in (auditing.verify, auditing.show, auditing.export, auditing.make_key, auditing.anchor):
    audit.command()(auditors)
app.add_typer(audit, name="audit")
app.command()(labelling.ingest)
labels = typer.Typer(no_args_is_help=True, help="What people say of images, so that a model can learn it.")
labels.command()(labelling.add)
labels.command("list")(labelling.show)
labels.command()(labelling.suggest)
app.add_typer(labels, name="labels")
app.command()(training.retrain)
models = typer.Typer(no_args_is_help=True, help="Versions of models: which there are, which is in force, who decided.")
models.command("list")(training.show_models)
models.command("show")(training.show_model)
for decided in (training.promote, training.rollback, training.disable, training.shadow):
    models.command()(decided)
models.command("export")(training.export_bundle)
models.command("import")(training.import_bundle)
models.command()(training.evaluate)
app.add_typer(models, name="models")


def main() -> None:
    """Entry point: turns our errors into words and exit codes."""
    os.umask(0o077)
    os.environ["PYTHONSAFEPATH"] = "1"  # no process that we start runs code from the folder that it is started in
    from medrec.errors import AlreadyRunningError, ConfigError, DataError, MedrecError

    try:
        app()
    except ConfigError as error:
        complain("This cannot start; please mend:", error.problems)
        sys.exit(2)
    except (DataError, AlreadyRunningError) as error:
        complain(str(error))
        sys.exit(2)
    except MedrecError as error:
        complain(str(error))
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        complain(f"the answer cannot be written: {os.strerror(error.errno or 0)}")
        sys.exit(1)
    except KeyboardInterrupt:
        if (isolation := sys.modules.get("medrec.dicom.isolation")) is not None:
            isolation.abandon()
        complain("stopped; what was finished stays, the next night goes on from there")
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        from medrec import __version__

        typer.echo(f"medrec {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    pass
