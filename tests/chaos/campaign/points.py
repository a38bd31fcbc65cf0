"""The named points of the write path, and the faults that a campaign causes there.

A plan follows from its seed alone. What the processes do between two faults does not: a campaign repeats the same
faults in the same order, not the same interleaving.
"""

import dataclasses
import enum
import random
from collections.abc import Iterator, Sequence

SERVICE_POINTS = (
    "before_commit",  # everything is written, COMMIT is not sent
    "after_commit",  # COMMIT has succeeded, the client has no answer
)
RELAY_POINTS = (
    "before_send",  # rows have been read, nothing is sent
    "after_send",  # a message is sent, its acknowledgement is not there
    "after_acknowledge",  # Kafka has acknowledged, the rows still stand in the outbox
    "after_delete",  # the rows are deleted
)
POINTS = SERVICE_POINTS + RELAY_POINTS

SERVICES = ("service-1", "service-2")
RELAYS = ("service-1", "relay-1", "relay-2")  # the first service carries a relay as small installations do
PROCESSES = ("service-1", "service-2", "relay-1", "relay-2")
# These live through the whole campaign, so that their memory can be watched.
SPARED = frozenset({"service-2", "relay-2"})


class Actor(enum.StrEnum):
    """Who is hit."""

    SERVICE = "service"
    RELAY = "relay"
    BROKER = "broker"
    DATABASE = "database"


class Blow(enum.StrEnum):
    """SIGKILL and a new start, or SIGSTOP and SIGCONT."""

    KILL = "kill"
    PAUSE = "pause"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault: when `process` passes `point` for the `passes`-th time from now, `actor` is hit.

    `seconds` is how long the actor stays dead or paused. A process at whose point broker or database are hit waits
    there: until the blow has fallen (`early`), or until the actor is back.
    """

    number: int
    actor: Actor
    blow: Blow
    point: str
    process: str
    passes: int
    seconds: float
    early: bool

    def __str__(self) -> str:
        return f"{self.blow} {self.actor} at {self.point} of {self.process}, pass {self.passes}, {self.seconds:.1f} s"


def combinations() -> dict[str, list[tuple[Actor, Blow]]]:
    """What can happen at each point."""
    return {
        point: [(actor, blow) for actor in (_own(point), Actor.BROKER, Actor.DATABASE) for blow in Blow]
        for point in POINTS
    }


def plan(seed: int) -> Iterator[Fault]:
    """Faults without end. Any six in a row are at six points; 36 in a row from the first are all different."""
    chance = random.Random(seed)
    number = 0
    while True:
        rounds = {point: chance.sample(found, len(found)) for point, found in combinations().items()}
        for turn in range(len(next(iter(rounds.values())))):
            for point in chance.sample(POINTS, len(POINTS)):
                number += 1
                yield _fault(chance, number, point, *rounds[point][turn])


def _fault(chance: random.Random, number: int, point: str, actor: Actor, blow: Blow) -> Fault:
    processes: Sequence[str] = SERVICES if point in SERVICE_POINTS else RELAYS
    if actor is _own(point) and blow is Blow.KILL:
        processes = [name for name in processes if name not in SPARED]
    seconds = chance.uniform(0, 2) if blow is Blow.KILL else chance.uniform(1, 3)
    if chance.random() < 0.25:
        # Longer than the relay waits for an acknowledgement; longer than a lease and than a writer waits for an answer.
        if actor is Actor.BROKER:
            seconds = chance.uniform(16, 18)
        elif blow is Blow.PAUSE:
            seconds = chance.uniform(7, 10)
    return Fault(
        number=number,
        actor=actor,
        blow=blow,
        point=point,
        process=chance.choice(processes),
        passes=chance.randint(1, 40) if point == "after_send" else chance.randint(1, 5),
        seconds=seconds,
        early=chance.random() < 0.75,
    )


def _own(point: str) -> Actor:
    return Actor.SERVICE if point in SERVICE_POINTS else Actor.RELAY
