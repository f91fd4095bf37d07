"""This program as a wheel without dependencies, made from whatever it was imported from.

`pip wheel` would need a checkout and, to build in, setuptools from a registry. With a wheel that
Ray ships it installs all the dependencies it names, torch and Ray included, into each job's path.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import re
import zipfile
from pathlib import Path

from raymtl.errors import InputError

PACKAGES = ("raymtl", "raymtl_jobs", "raymtl_tuning")
SHIPPED = (".py", ".yaml", ".typed")
NEVER_CHANGES = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the wheel, so that the same sources give the same bytes."""
NAME = re.compile(r"[A-Za-z0-9._-]+")
WHEEL = "Wheel-Version: 1.0\nGenerator: raymtl\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def pack(folder: Path) -> Path:
    """Writes the wheel into a folder.

    Its version ends in a hash of its files: Ray ships a wheel of a name it knows no second time.
    """
    files = sources()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    version = f"{base_version()}+{digest.hexdigest()[:12]}"
    info = f"raymtl-{version}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: raymtl\nVersion: {version}\n".encode()
    )
    files[f"{info}/WHEEL"] = WHEEL.encode()
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nraymtl = raymtl_jobs.cli:main\n"
    record = [f"{name},sha256={_hash(c)},{len(c)}" for name, c in sorted(files.items())]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    path = folder / f"raymtl-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, NEVER_CHANGES)
            wheel.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return path


def sources() -> dict[str, bytes]:
    """The packages' files by their names in a wheel."""
    found = {}
    for package in PACKAGES:
        root = package_folder(package)
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix in SHIPPED:
                found[f"{package}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return found


def package_folder(package: str) -> Path:
    """Where a package of ours was found."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, package
    return Path(spec.submodule_search_locations[0])


def base_version() -> str:
    """The installed version without a local part; 0 for a source tree that is not installed."""
    try:
        return importlib.metadata.version("raymtl").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "0"


def pinned_requirements() -> list[str]:
    """What raymtl needs besides Ray, at the versions of this environment.

    Raises:
        InputError: raymtl is not installed here, so nothing says what it needs.
    """
    try:
        lines = importlib.metadata.requires("raymtl") or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "nothing says what the nodes are to install",
            "raymtl runs from a source tree",
            "an installed raymtl, a requirements file, or nodes that have it all",
            "add --requirements FILE or --no-install",
        ) from None
    names = [NAME.match(line) for line in lines if "extra ==" not in line]
    wanted = [found[0] for found in names if found and found[0] != "ray"]
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in wanted]


def _hash(content: bytes) -> str:
    digest = hashlib.sha256(content).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
