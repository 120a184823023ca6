"""Commands about scans without a model: what a folder holds, volumes as NIfTI, decoders that work."""

from pathlib import Path
from typing import Annotated

import typer

from medrec.cli.common import counted, out, stdout_kept, table


def convert(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM files, or one file.", metavar="DIR|FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the NIfTI files.")],
    gzip: Annotated[bool, typer.Option("--gzip", help="Write .nii.gz: smaller, slower.")] = False,
    tilted: Annotated[
        bool, typer.Option("--tilted", help="Also stacks with a gantry tilt, as they lie, by a sheared affine.")
    ] = False,
) -> None:
    """Write each volume as NIfTI, with rescaled values, and say what could not be written and why."""
    from medrec.conversion import convert

    done = convert(source, output, gzip=gzip, tilted=tilted)
    for name in done.written:
        typer.echo(name)
    for problem in done.problems:
        out.print(problem, markup=False, highlight=False, soft_wrap=True)
    out.print(f"{counted(done.files)}; {len(done.written)} volumes written")


def inspect(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM files, or one file.", metavar="DIR|FILE")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Say what a folder holds: every file, every series, usable or the reason why not."""
    from dataclasses import asdict

    from medrec.conversion import inspect

    with stdout_kept(json) as print_json:
        inventory = inspect(source)
        if json:
            from json import dumps

            print_json(dumps(asdict(inventory), indent=1, allow_nan=False))
            return
        rows = [
            [
                f"{f.study}.{f.series}",
                f.modality,
                f.kind,
                str(f.files),
                " x ".join(map(str, f.size)),
                " x ".join(f"{s:g}" for s in f.spacing_mm) if f.spacing_mm else "",
                f.orientation or "",
                f.transfer_syntax,
                "; ".join(filter(None, (f.reason, f.detail, f.part))),
            ]
            for f in inventory.found
        ]
        header = ("study.series", "modality", "kind", "files", "pixels", "mm", "axes", "transfer syntax", "reason")
        table("Series", header, rows)
        for reason, count in inventory.refused.items():
            out.print(f"{count} refused: {reason}", highlight=False)
        out.print(counted(inventory.files))


def doctor() -> None:
    """Decode a tiny sample of each transfer syntax and say which decoders work here."""
    from medrec.dicom.selftest import check

    rows = list(check())
    table("Transfer syntaxes", ("name", "decoder"), [[name, problem or "works"] for name, problem in rows])
    raise typer.Exit(1 if any(problem for _, problem in rows) else 0)
