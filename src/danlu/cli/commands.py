"""Every command once: its name, where it lies, its group and its line in the overview. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cyclopts import App


class Command(NamedTuple):
    """A command: ``target`` is the module in this package and the function or, of a nested one, the app."""

    name: str
    target: str
    group: str
    summary: str
    usage: str


C = Command
COMMANDS: Final = (
    C("run", "run:run", "Work", "run a command with this folder's code as a job, and follow it", "[FLAGS] -- COMMAND..."),
    C("init", "init:init", "Work", "write a job file for this folder, with every field explained", "[FILE] [FLAGS]"),
    C("apply", "apply:apply", "Work", "submit the jobs described in a file", "-f FILE"),
    C("stop", "jobs:stop", "Work", "stop jobs", "JOB... [FLAGS]"),
    C("hold", "jobs:hold", "Work", "let waiting jobs wait until they are released", "JOB... [FLAGS]"),
    C("release", "jobs:release", "Work", "let held jobs go", "JOB... [FLAGS]"),
    C("attach", "attach:attach", "Work", "follow a job again, as run did; Ctrl-C asks", "JOB [FLAGS]"),
    C("retry", "retry:retry", "Work", "run an ended job again, with changes if need be", "JOB [FLAGS]"),
    C("wait", "wait:wait", "Work", "wait for jobs to end, or to be in a state", "JOB... [FLAGS]"),
    C("get", "get:get", "Look", "list jobs, nodes, envs, events, or show one", "jobs|nodes|envs|events [NAME...] [FLAGS]"),
    C("describe", "describe:describe", "Look", "all about a job: attempts, limits, events, what it left", "JOB [FLAGS]"),
    C("why", "why:why", "Look", "why a job waits, or why it ended", "JOB [FLAGS]"),
    C("diff", "diff:diff", "Look", "what differs between two jobs, or a job and a file", "JOB [JOB] [FLAGS]"),
    C("logs", "logs:logs", "Look", "what a job printed", "JOB [FLAGS]"),
    C("metrics", "metrics:metrics", "Look", "what a job measured, drawn in the terminal", "JOB [FLAGS]"),
    C("top", "top:top", "Look", "what is in use now: nodes, tasks, GPUs; and what waits", "[FLAGS]"),
    C("events", "events:events", "Look", "what happened, and with --calls who did it", "[FLAGS]"),
    C("simulate", "simulate:simulate", "Look", "what would be with other quotas, nodes or another policy", "[TRACE] [FLAGS]"),
    C("usage", "usage:usage", "Look", "who held what, what was not used of it, what it costs", "[FLAGS]"),
    C("artifacts", "artifacts:app", "Look", "the files that a job left: ls, get", "ls|get JOB [FLAGS]"),
    C("explain", "explain:explain", "Look", "what a field, a reason, a state or an error means", "job.FIELD|CODE [FLAGS]"),
    C("exec", "sessions:execute", "Look", "run a command inside a running job", "[-it] [FLAGS] JOB -- COMMAND..."),
    C("cp", "copying:cp", "Look", "copy files from or to a running job", "JOB:PATH LOCAL | LOCAL JOB:PATH [FLAGS]"),
    C("up", "platform:up", "Platform", "start the platform on this machine", "[FLAGS]"),
    C("down", "platform:down", "Platform", "stop it; jobs go on unless --jobs", "[FLAGS]"),
    C("status", "platform:status", "Platform", "is it running, where, with what", "[FLAGS]"),
    C("doctor", "doctor:doctor", "Platform", "what is not well here, and what to do about it", "[FLAGS]"),
    C("nodes", "nodes:nodes", "Platform", "machines, what they have and what is free", "[FLAGS]"),
    C("env", "environments:app", "Platform", "ready-made environments: ls, show, build, lock, export ...",
      "ls|show|build|test|lock|export|rm|prune [NAME] [FLAGS]"),
    C("blobs", "blobs:app", "Platform", "stored bytes that nobody uses: prune", "prune [FLAGS]"),
    C("login", "login:login", "Access", "use a platform elsewhere from now on", "URL [FLAGS]"),
    C("logout", "login:logout", "Access", "forget a platform and its key", "[FLAGS]"),
    C("profile", "profiles:app", "Access", "the platforms that you logged in to: ls, use", "ls|use [PROFILE] [FLAGS]"),
    C("whoami", "whoami:whoami", "Access", "who you are here, and your role in each project", "[FLAGS]"),
    C("project", "projects:app", "Access", "projects: ls, create, set", "ls|create|set [NAME] [FLAGS]"),
    C("quota", "quotas:app", "Access", "what projects are guaranteed, and may have at most: set, get, rm",
      "set|get|rm [NAME] [FLAGS]"),
    C("user", "users:app", "Access", "users of the platform: ls, create, set, rm", "ls|create|set|rm [NAME] [FLAGS]"),
    C("member", "members:app", "Access", "who may do what in a project: ls, add, rm", "ls|add|rm [USER] [FLAGS]"),
    C("key", "keys:app", "Access", "access keys: ls, create, rotate, rm", "ls|create|rotate|rm [KEY] [FLAGS]"),
    C("token", "tokens:app", "Access", "tokens for what cannot sign: ls, create, rm", "ls|create|rm [TOKEN] [FLAGS]"),
    C("secret", "secrets:app", "Access", "values that jobs get and nobody reads: ls, set, rm", "ls|set|rm [NAME] [FLAGS]"),
    C("price", "prices:app", "Platform", "what resources cost: ls, set, rm", "ls|set|rm [RESOURCE=AMOUNT] [FLAGS]"),
    C("db", "db:app", "Platform", "the platform's database: status, migrate, move, backup, restore",
      "status|migrate|move|backup|restore [FILE] [FLAGS]"),
    C("api", "api:api", "Platform", "send a request of your own", "METHOD PATH [FLAGS]"),
    C("completion", "completion:completion", "Platform", "completion for bash, zsh or fish", "bash|zsh|fish"),
)  # fmt: skip
BY_NAME: Final = {command.name: command for command in COMMANDS}
NESTED: Final = frozenset(
    {
        "artifacts",
        "blobs",
        "env",
        "profile",
        "project",
        "quota",
        "user",
        "member",
        "key",
        "token",
        "secret",
        "price",
        "db",
    }
)


def overview() -> str:
    """Returns what ``danlu`` alone prints: one screen."""
    lines = ["danlu: submit training code as it is, watch it, keep the result", ""]
    for group in dict.fromkeys(command.group for command in COMMANDS):
        lines.append(f"{group}:")
        lines += [f"  {command.name:<11} {command.summary}" for command in COMMANDS if command.group == group]
    lines += [
        "",
        "Every command takes --url, --profile, --project; its own: danlu COMMAND --help",
        "",
        "Begin with:  danlu run -- python train.py",
    ]
    return "\n".join(lines)


def build() -> App:
    """Returns the parser of all commands. A command's module is imported when it is used."""
    from cyclopts import App

    import danlu
    from danlu.cli.help import Formatter

    app = App(
        name="danlu",
        help="Submit training code as it is, watch it, keep the result.",
        version=danlu.__version__,
        help_format="plaintext",
        help_formatter=Formatter(),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for command in COMMANDS:
        nested = command.name in NESTED
        extra = {} if nested else {"usage": f"Usage: danlu {command.name} {command.usage}"}
        app.command(f"danlu.cli.{command.target}", name=command.name, **extra)
    return app
