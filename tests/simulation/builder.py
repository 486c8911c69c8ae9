"""Builds environments in no time; one that was built may vanish."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from danlu.domain.environments import Environment, EnvironmentSource, Interpreter, PodEnvironment
from danlu.environments.sources import source_digest
from danlu.errors import EnvironmentFailed


@dataclass(frozen=True)
class Built:
    lock_digest: str
    packages: int = 1
    python_version: str = "3.11.7"
    size_bytes: int = 1
    build_s: float = 1.0
    lock: str = "a==1\n"


@dataclass
class SimulatedBuilder:
    random: Random
    vanish: float = 0.0
    there: set[str] = field(default_factory=set)

    def build(self, source: EnvironmentSource, report: Callable[[str], None]) -> Built:
        report("building")
        if "impossible" in (source.requirements or ""):
            raise EnvironmentFailed("no such package", stage="resolve")
        digest = source_digest(source)
        self.there.add(digest)
        return Built(digest)

    def interpreter(self, environment: Environment) -> Interpreter | None:
        if environment.lock_digest not in self.there or self.random.random() < self.vanish:
            return None
        return Interpreter(bin=Path(f"/environments/{environment.lock_digest}/bin"))

    def for_pods(self, environment: Environment) -> PodEnvironment | None:
        digest = environment.lock_digest
        if digest is None or self.interpreter(environment) is None:
            return None
        return PodEnvironment(name=environment.name, digest=digest, image="python")

    def folders(self) -> frozenset[str]:
        return frozenset(self.there)

    def doom(self, names: Collection[str]) -> Callable[[], None]:
        self.there -= set(names)
        return lambda: None

    def bound_caches(self) -> None:
        pass

    def host(self, executable: str) -> Interpreter:
        return Interpreter(bin=Path(executable).parent)
