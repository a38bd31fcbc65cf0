"""Which parts a stack has: every server whose address is not given from outside, and the services."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from infra.local import ports as port_numbers
from infra.local.credentials import SERVICES, Credentials
from infra.local.environment import Addresses, require_consistent, service_environment, without_password
from infra.local.kafka.broker import KafkaBroker
from infra.local.part import Part
from infra.local.ports import HOST
from infra.local.postgres import PostgresPrimary, PostgresServer
from infra.local.postgres_replica import PostgresReplica
from infra.local.redis import CACHE_SETTINGS, DURABLE_SETTINGS, RedisServer
from infra.local.services import WITH_DATABASE, Service

ANALYTICS = "analytics"
USED_SERVERS: dict[str, tuple[type[Part], ...]] = {
    "gateway": (RedisServer,),
    "tickets": (PostgresServer, KafkaBroker),
    "notifier": (RedisServer, KafkaBroker),
    "search": (PostgresServer, RedisServer, KafkaBroker),
}


class Composition:
    """The parts of a stack and where everything answers. Starts nothing.

    Attributes:
        parts: By name; what a part needs stands before it.
        external: Name of a part that is not started → its address, fit to be shown.
        addresses: Where everything answers, for the services and for tests.
        primary: The embedded primary, None when all databases are external.
        analytics: The replica for analytics, where one was asked for.

    Raises:
        LauncherError: The addresses in `environ` contradict each other.
    """

    def __init__(
        self,
        root: Path,
        credentials: Credentials,
        *,
        environ: Mapping[str, str],
        ports: Mapping[str, int],
        replicas: int,
        analytics: bool,
        services: Sequence[str],
    ) -> None:
        require_consistent(environ)
        self._root = root
        self._credentials = credentials
        self._environ = environ
        self._ports = ports
        self.parts: dict[str, Part] = {}
        self.external: dict[str, str] = {}
        self.primary: PostgresPrimary | None = None
        self.analytics: PostgresReplica | None = None
        tickets, search = self._databases()
        readers = self._replicas(replicas)
        self.addresses = Addresses(
            tickets_database=tickets,
            search_database=search,
            replicas=readers,
            kafka=self._kafka(),
            redis=self._redis("redis", "REDIS", credentials.redis, DURABLE_SETTINGS),
            cache_redis=self._redis("cache-redis", "CACHE_REDIS", credentials.cache_redis, CACHE_SETTINGS),
            services={name: f"http://{HOST}:{ports[f'{name.upper()}_PORT']}" for name in SERVICES},
            analytics=self._analytics(readers, own=analytics),
        )
        for name in SERVICES:
            if name in services:
                self._service(name)

    def _add(self, part: Part) -> None:
        self.parts[part.name] = part

    def _log(self, name: str) -> Path:
        return self._root / "logs" / f"{name}.log"

    def _databases(self) -> tuple[str, str]:
        """Addresses of the databases `tickets` and `search`."""
        given = {name: self._environ.get(f"{name.upper()}_DATABASE_URL", "") for name in ("tickets", "search")}
        for name, url in given.items():
            if url:
                self.external[f"postgres ({name})"] = without_password(url)
        if all(given.values()):
            return given["tickets"], given["search"]
        self.primary = PostgresPrimary(
            "postgres",
            self._ports["POSTGRES_PORT"],
            "POSTGRES_PORT",
            root=self._root,
            log=self._log("postgres"),
            credentials=self._credentials,
        )
        self._add(self.primary)
        return (
            given["tickets"] or self.primary.url("tickets"),
            given["search"] or self.primary.url("search"),
        )

    def _replicas(self, count: int) -> list[str]:
        """Addresses of the database `tickets` on the replicas that serve reads."""
        if given := self._environ.get("TICKETS_REPLICA_URLS"):
            return [url for url in given.split(",") if url]
        if self.primary is None or self._environ.get("TICKETS_DATABASE_URL"):
            return []  # the embedded replicas would not have the tickets
        numbers = [self._ports["POSTGRES_REPLICA_PORT"], *port_numbers.free_ports(max(0, count - 1))]
        return [
            self._replica(f"replica-{index + 1}", numbers[index], self.primary).url("tickets") for index in range(count)
        ]

    def _analytics(self, readers: Sequence[str], *, own: bool) -> str:
        """Address of the database `tickets` on the server that reports are read from; '' where there is none."""
        if given := self._environ.get("TICKETS_ANALYTICS_URL"):
            return given
        if own and self.primary:
            self.analytics = self._replica(ANALYTICS, port_numbers.free_ports(1)[0], self.primary)
            return self.analytics.url("tickets")
        # A small installation has its reports from the replica that serves reads.
        return readers[0] if readers and self.primary and not self._environ.get("TICKETS_DATABASE_URL") else ""

    def _replica(self, name: str, port: int, primary: PostgresPrimary) -> PostgresReplica:
        replica = PostgresReplica(
            name,
            port,
            "POSTGRES_REPLICA_PORT",
            root=self._root,
            log=self._log(name),
            credentials=self._credentials,
            primary=primary,
        )
        self._add(replica)
        return replica

    def _kafka(self) -> str:
        if given := self._environ.get("KAFKA_BOOTSTRAP_SERVERS"):
            self.external["kafka"] = given
            return given
        broker = KafkaBroker(
            "kafka",
            self._ports["KAFKA_PORT"],
            "KAFKA_PORT",
            controller_port=self._ports["KAFKA_CONTROLLER_PORT"],
            folder=self._root / "kafka",
            log=self._log("kafka"),
        )
        self._add(broker)
        return broker.address

    def _redis(self, name: str, prefix: str, password: str, settings: dict[str, str]) -> str:
        if given := self._environ.get(f"{prefix}_URL"):
            self.external[name] = without_password(given)
            return given
        server = RedisServer(
            name,
            self._ports[f"{prefix}_PORT"],
            f"{prefix}_PORT",
            folder=self._root / name,
            log=self._log(name),
            password=password,
            settings=settings,
        )
        self._add(server)
        return server.url

    def _service(self, name: str) -> None:
        variable = f"{name.upper()}_PORT"
        environment = partial(service_environment, name, self.addresses, self._credentials, self._environ)
        service = Service(name, self._ports[variable], variable, environment=environment, log=self._log(name))
        if name in WITH_DATABASE and self.primary is not None:
            service.prepared_after = [self.primary.name]
        service.started_after = [other.name for other in self.parts.values() if isinstance(other, USED_SERVERS[name])]
        self._add(service)
