"""The variables that uv runs with: how the server reaches its package index, and nothing else of the server's environment.

uv does not read pip's configuration. A server whose index is set for pip alone (a company's mirror in pip.conf) would not
reach it, so pip's settings are handed to uv under uv's names, where nothing is set for uv itself.
"""

from __future__ import annotations

import configparser
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

# fmt: off
_KEPT = frozenset({
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "NETRC",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS", "UV_NO_INDEX", "UV_OFFLINE", "UV_KEYRING_PROVIDER", "UV_CONFIG_FILE", "UV_INSECURE_HOST",
    "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_TORCH_BACKEND", "UV_EXCLUDE_NEWER",
})
# fmt: on
_KEPT_PREFIXES = ("UV_INDEX", "UV_HTTP_", "UV_PYTHON_INSTALL_MIRROR", "UV_PYTHON_DOWNLOADS", "UV_CONCURRENT_")
_PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")  # later ones win
_UV_FILES = ("/etc/uv/uv.toml", "~/.config/uv/uv.toml")
_INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX", "UV_CONFIG_FILE")


def uv_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment for uv, made from the server's; reads pip's configuration files."""
    kept = {name: value for name, value in environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    home = Path(environ.get("HOME", "/"))
    files = [home / f[2:] if f.startswith("~/") else Path(f) for f in _UV_FILES]
    pip = _pip_settings(environ, home)
    if not any(name in kept for name in _INDEX_VARIABLES) and not any(f.exists() for f in files):
        kept |= _as_uv(pip)
    if "SSL_CERT_FILE" not in kept and "cert" in pip and Path(pip["cert"]).is_file():
        kept["SSL_CERT_FILE"] = pip["cert"]
    # uv brings its own list of authorities; a company's is in the machine's
    if (
        not kept.keys() & {"SSL_CERT_FILE", "SSL_CERT_DIR", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS"}
        and _machine_has_authorities()
    ):
        kept["UV_SYSTEM_CERTS"] = "1"
    return kept


def without_passwords(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables with which uv finds no saved password: for addresses that users name."""
    return {**variables, "NETRC": os.devnull, "UV_KEYRING_PROVIDER": "disabled", "UV_CREDENTIALS_DIR": "/nonexistent"}


def _machine_has_authorities() -> bool:
    paths = ssl.get_default_verify_paths()
    folder = Path("/etc/ssl/certs")
    return bool(paths.cafile) or (folder.is_dir() and any(folder.iterdir()))


def _pip_settings(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """Returns pip's [global] settings, files first, then variables, which win."""
    parser = configparser.RawConfigParser(strict=False)
    names = [home / f[2:] if f.startswith("~/") else Path(f) for f in _PIP_FILES]
    if "PIP_CONFIG_FILE" in environ:
        names.append(Path(environ["PIP_CONFIG_FILE"]))
    found: dict[str, str] = {}
    for name in names:
        try:
            parser.read(name, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip itself would refuse it; uv works without
    if parser.has_section("global"):
        found = {key.replace("_", "-"): value for key, value in parser.items("global")}
    for variable, value in environ.items():
        if variable.startswith("PIP_"):
            found[variable[4:].lower().replace("_", "-")] = value
    return found


def _as_uv(pip: Mapping[str, str]) -> dict[str, str]:
    given: dict[str, str] = {}
    if pip.get("index-url"):
        given["UV_DEFAULT_INDEX"] = pip["index-url"].strip()
    if pip.get("extra-index-url"):
        given["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
    links = [link for link in pip.get("find-links", "").split() if "://" in link or Path(link).is_dir()]
    if links:
        given["UV_FIND_LINKS"] = ",".join(links)
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        given["UV_NO_INDEX"] = "1"
    if pip.get("trusted-host"):
        given["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"].split())
    return given
