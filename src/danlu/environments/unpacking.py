"""A build backend that builds nothing: uv fetches a source with it, checks its hash and unpacks it, and none of it runs.

It is copied into an empty environment in setuptools' place. uv has no command that only fetches a source.
"""

from __future__ import annotations

import shutil
import zipfile
from email.parser import HeaderParser
from pathlib import Path


class Unpacking:
    """The one hook of PEP 517 that uv calls; it runs in the unpacked source's folder."""

    def build_wheel(self, wheel_directory: str, config_settings: dict[str, str], _metadata: str | None = None) -> str:
        """Copies the source to the setting ``destination``; returns the name of a wheel that has nothing in it."""
        with Path("PKG-INFO").open(encoding="utf-8") as file:
            said = HeaderParser().parse(file)
        shutil.copytree(".", config_settings["destination"], symlinks=True)
        named = f"Name: {said['Name']}\nVersion: {said['Version']}\n"
        stem = f"{said['Name'].replace('-', '_')}-{said['Version']}"
        name = f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(Path(wheel_directory, name), "w") as wheel:
            wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\n{named}")
            wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{stem}.dist-info/RECORD", "")
        return name


__legacy__ = Unpacking()
build_wheel = __legacy__.build_wheel
