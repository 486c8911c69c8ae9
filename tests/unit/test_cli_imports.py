"""The terminal starts light, and client and terminal import where POSIX's own modules do not exist."""

import subprocess
import sys

POSIX_ONLY = ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "posix_ipc", "syslog", "crypt", "nis", "spwd")

IMPORT_ALL = """
import sys, importlib, pkgutil
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ImportError(name + " does not exist on this system")
for name in BLOCKED:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocked())
import danlu.cli, danlu.client
for package in (danlu.cli, danlu.client):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
from danlu.cli.commands import build, COMMANDS
app = build()
for command in COMMANDS:
    app[command.name]
"""

LOADED = """
import sys
before = set(sys.modules)
sys.argv = ["danlu", *%r]
from danlu.cli.main import main
code = main()
print(sorted(name for name in {m.partition(".")[0] for m in set(sys.modules) - before}
             if name not in sys.stdlib_module_names and name != "danlu"), code, file=sys.stderr)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)


def test_client_and_cli_import_without_posix():
    done = run(f"BLOCKED = {POSIX_ONLY!r}" + IMPORT_ALL)
    assert done.returncode == 0, done.stderr


def test_version_and_overview_import_the_standard_library_alone():
    for words in (["--version"], ["--help"], []):
        done = run(LOADED % (words,))
        assert done.stderr == "[] 0\n", done.stderr
        assert "danlu" in done.stdout


def test_version_prints_the_version():
    import danlu

    done = run("import sys; sys.argv = ['danlu', '--version']; from danlu.cli.main import main; main()")
    assert done.stdout == f"danlu {danlu.__version__}\n"


def test_getting_jobs_loads_no_server_and_no_terminal_library():
    done = run(
        "import sys; import danlu.cli.get, danlu.cli.dispatch, danlu.client.transport\n"
        "print([n for n in ('fastapi', 'sqlalchemy', 'uvicorn', 'plotext', 'rich.progress', 'yaml', 'danlu.database',"
        " 'danlu.services') if n in sys.modules])"
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
