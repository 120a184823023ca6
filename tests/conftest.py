"""What tests share: phantom studies, a home, and a night without Prefect."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: threads of one would only hold up the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from orthanc import Orthanc

from medrec import config
from medrec.accounts import Summary
from medrec.home import Home
from medrec.night import Night, Request
from medrec.phantom import Known, demo_studies

if TYPE_CHECKING:
    from teaching import Shot

    from medrec.retraining import Outcome

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scans with truth; they are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"real scans are not here ({SHARED.name} is missing beside the checkout)")
    return SHARED


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Known, ...]]:
    """The studies of `medrec demo`, read only."""
    folder = tmp_path_factory.mktemp("studies")
    return folder, demo_studies(folder)


@pytest.fixture(scope="session")
def configuration() -> config.Configuration:
    """The packaged configuration."""
    return config.load()


@pytest.fixture
def pacs() -> Iterator[Orthanc]:
    """A PACS that runs, with nothing in it."""
    server = Orthanc()
    try:
        server.start()
        yield server
    finally:
        server.close()


def a_night(folder: Path, home: Path, own: config.Configuration | None = None, *, reanalyse: bool = False) -> Summary:
    """A night over a folder, exactly as the flow runs it."""
    with Night(Request(folder, Home(home), own or config.load(), reanalyse)) as night:
        night.index()
        for planned in night.planned:
            night.analyse(planned)
        return night.close()


def copy_home(source: Path, target: Path) -> Home:
    """A copy of a home to be spoilt."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # by run: within one process the copy's artifacts would be the original's
    shutil.copytree(source, target)
    moved_artifacts(target / "mlflow.db", str(source), str(target))
    return Home(target)


def moved_artifacts(database: Path, before: str, now: str) -> None:
    """MLflow's database names artifacts by path: let it follow."""
    with sqlite3.connect(database) as connection:
        places = (("runs", "artifact_uri"), ("experiments", "artifact_location"), ("model_versions", "source"))
        for table, column in places:
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, now))


RunNight = Callable[..., Summary]


@pytest.fixture
def run_night(tmp_path: Path, configuration: config.Configuration) -> RunNight:
    """A night over a folder, in the home `tmp_path/home`, exactly as the flow runs it."""

    def run(folder: Path, *, own: config.Configuration | None = None, reanalyse: bool = False) -> Summary:
        return a_night(folder, tmp_path / "home", own or configuration, reanalyse=reanalyse)

    return run


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> "tuple[Home, Path, list[Shot]]":
    """A home with labelled stills of 24 patients, for the card of `test_retraining.draft`; read only."""
    from teaching import shots, teach

    root = tmp_path_factory.mktemp("taught")
    home, made = Home(root / "home"), shots(root / "dicom", 24)
    teach(home, "toy", made)
    return home, root / "dicom", made


@pytest.fixture(scope="session")
def first(
    taught: "tuple[Home, Path, list[Shot]]", tmp_path_factory: pytest.TempPathFactory
) -> "tuple[Home, Path, Outcome]":
    """Such a home after its first training, the card's file, and what came of it; read only."""
    from test_retraining import retrain, write

    root = tmp_path_factory.mktemp("first")
    shutil.copytree(taught[0].root, root / "home")
    card = write(root)
    return Home(root / "home"), card, retrain(Home(root / "home"), card, taught[1], page=True)
