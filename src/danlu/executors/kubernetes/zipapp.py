"""The runner as one file, which every image with Python 3.8 or later can run: the same bytes for the same sources."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Final

import danlu
from danlu.runner.pod import NAMES

TOO_OLD: Final = 4
"""With what it ends where the image's Python is older than 3.8."""
ENTRY: Final = f"""import sys

if sys.version_info < (3, 8):
    sys.stderr.write("danlu: the python3 of this image is %d.%d, and the runner needs 3.8 or later\\n" % sys.version_info[:2])
    sys.exit({TOO_OLD})

from danlu.runner.entry import main

sys.exit(main(sys.argv[1:]))
""".encode()
TIME: Final = (1980, 1, 1, 0, 0, 0)
"""The first that a zip file can tell."""
HASH_DIGITS: Final = 16


@functools.cache
def build() -> bytes:
    """Returns the file: what jobs may import of Danlu, the runner among it."""
    package = Path(danlu.__file__).parent
    files = {"__main__.py": ENTRY, "danlu/__init__.py": (package / "__init__.py").read_bytes()}
    files |= {f"danlu/runner/{path.name}": path.read_bytes() for path in (package / "runner").glob("*.py")}
    files[NAMES] = "\n".join(sorted(name for name in files if name.startswith("danlu/"))).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, TIME), data, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def name(data: bytes) -> str:
    """Returns the name of the ConfigMap that holds this file: another one for other sources."""
    return f"danlu-runner-{hashlib.sha256(data).hexdigest()[:HASH_DIGITS]}"
