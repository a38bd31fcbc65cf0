"""`python -m infra.local.kafka.lock`: write jgo.lock.toml anew after a change of jgo.toml.

Not done by jgo's own command, which downloads a JDK to classify the jars.
"""

import tomllib

from jgo.env import LockFile
from jgo.env._lockfile import compute_spec_hash
from jgo.maven import Dependency, MavenContext

from infra.local.kafka.jars import LOCK_FILE

SPECIFICATION = LOCK_FILE.with_name("jgo.toml")


def main() -> None:
    """Resolve the coordinates with everything they need, and write versions and checksums down."""
    context = MavenContext()
    wanted = [
        _dependency(context, coordinate)
        for coordinate in tomllib.loads(SPECIFICATION.read_text())["dependencies"]["coordinates"]
    ]
    inputs, transitive = context.resolver.resolve(wanted)
    lock = LockFile.from_resolved_dependencies(
        [*inputs, *transitive], environment_name="kafka", spec_hash=compute_spec_hash(SPECIFICATION)
    )
    lock.save(LOCK_FILE)
    print(f"{LOCK_FILE}: {len(lock.dependencies)} jars")


def _dependency(context: MavenContext, coordinate: str) -> Dependency:
    group, artifact, version = coordinate.split(":")
    # As in jgo: "!" keeps an artifact from imposing the versions it was built with on the others.
    raw = version.endswith("!")
    found = context.project(group, artifact).at_version(version.rstrip("!")).artifact(packaging="jar")
    return Dependency(found, scope="compile", raw=raw)


if __name__ == "__main__":
    main()
