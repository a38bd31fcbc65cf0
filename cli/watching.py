"""`relaydesk watch`: events of the organization as they happen, over Socket.IO."""

import asyncio
import collections
import contextlib
import datetime as dt
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Protocol

import aiohttp
import msgspec
import socketio
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli import output
from cli.client import Api, connect
from cli.credentials import Target
from cli.errors import CommandError, NotAuthorisedError, UnreachableError
from libs.common.people import RealtimeToken

CONNECT_SECONDS = 10
LONGEST_WAIT_SECONDS = 10.0
TABLE_ROWS = 20

Event = dict[str, Any]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`count` ends the watch after so many events, `idle_seconds` after so long without one."""

    as_json: bool = False
    count: int | None = None
    idle_seconds: float | None = None


async def run(target: Target, options: Options) -> None:
    """Show events until an option ends it.

    Raises:
        CommandError: when the first connection fails, or the key is not valid any more.
    """
    async with connect(target.url, target.api_key) as api:
        organization = (await api.session()).organization.slug
        link = Link(api, organization)
        with _printer(as_json=options.as_json) as show:
            async for seen, event in _numbered(link.events(options.idle_seconds)):
                show.event(event)
                if seen == options.count:
                    break


async def _numbered(events: AsyncGenerator[Event]) -> AsyncGenerator[tuple[int, Event]]:
    seen = 0
    async with contextlib.aclosing(events) as source:
        async for event in source:
            seen += 1
            yield seen, event


class Link:
    """A connection that is made anew, with a fresh token, whenever it ends."""

    def __init__(self, api: Api, organization: str) -> None:
        self._api = api
        self._organization = organization
        self._queue: asyncio.Queue[Event | CommandError] = asyncio.Queue()
        self._connections = 0

    async def events(self, idle_seconds: float | None) -> AsyncGenerator[Event]:
        """Events in the order of their arrival; ends after `idle_seconds` without one.

        Raises:
            CommandError: when no connection can be had any more.
        """
        keeper = asyncio.create_task(self._keep())
        try:
            while True:
                try:
                    item = await asyncio.wait_for(self._queue.get(), idle_seconds)
                except TimeoutError:
                    return
                if isinstance(item, CommandError):
                    raise item
                yield item
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    async def _keep(self) -> None:
        delay = 0.5
        while True:
            before = self._connections
            try:
                await self._stay_connected()
                reason = "The connection ended"
            except UnreachableError as error:
                if not self._connections:
                    self._queue.put_nowait(error)
                    return
                reason = str(error).rstrip(".")
            except CommandError as error:
                self._queue.put_nowait(error)
                return
            if self._connections > before:
                delay = 0.5
                output.notice(f"{reason}; connecting again. Events in between are not shown.", "yellow")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_WAIT_SECONDS)

    async def _stay_connected(self) -> None:
        """Connect, subscribe, and return when the connection has ended."""
        ticket = await self._api.realtime_token()
        # A session of its own: the API's carries the key, and one made by the client is not closed on cancellation.
        async with aiohttp.ClientSession() as session:
            client = socketio.AsyncClient(reconnection=False, http_session=session, handle_sigint=False)
            await self._subscribe(ticket, client)

    async def _subscribe(self, ticket: RealtimeToken, client: socketio.AsyncClient) -> None:
        client.on("notifications", self._take)
        try:
            await client.connect(
                ticket.url, auth={"token": ticket.token}, transports=["websocket"], wait_timeout=CONNECT_SECONDS
            )
            answer = await client.call("subscribe", {"room": "organization"}, timeout=CONNECT_SECONDS)
            if not isinstance(answer, dict) or not answer.get("ok"):
                detail = answer.get("detail") or answer.get("code") if isinstance(answer, dict) else answer
                raise NotAuthorisedError(f"{ticket.url} refuses the subscription: {detail}.")
            again = " again" if self._connections else ""
            self._connections += 1
            output.notice(f"Watching {self._organization}{again}; Ctrl-C ends it.")
            await client.wait()
        except socketio.exceptions.SocketIOError as error:
            raise UnreachableError(f"{ticket.url} cannot be reached: {error or 'no answer'}.") from error
        finally:
            await client.disconnect()

    async def _take(self, batch: Any) -> None:
        for event in batch if isinstance(batch, list) else [batch]:
            if isinstance(event, dict):
                self._queue.put_nowait(event)


class Printer(Protocol):
    """Shows one event."""

    def event(self, event: Event) -> None: ...


class _Lines:
    """One JSON object a line, as it came."""

    def event(self, event: Event) -> None:
        output.line(msgspec.json.encode(event).decode())


class _Plain:
    """One line of text an event, for a pipe."""

    def event(self, event: Event) -> None:
        output.line("  ".join(cell.plain for cell in cells(event)))


class _LiveTable:
    """The latest events, newest first."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._events: collections.deque[Event] = collections.deque(maxlen=TABLE_ROWS)
        self._seen = 0

    def event(self, event: Event) -> None:
        self._events.appendleft(event)
        self._seen += 1
        table = Table(caption=f"{self._seen:,} events", box=None, pad_edge=False, expand=True)
        for column in ("time", "event", "number", "status", "priority"):
            table.add_column(column, no_wrap=True)
        table.add_column("title", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("by", no_wrap=True, overflow="ellipsis", max_width=24)
        for row in self._events:
            table.add_row(*cells(row))
        self._live.update(table)


@contextlib.contextmanager
def _printer(*, as_json: bool) -> Iterator[Printer]:
    if as_json:
        yield _Lines()
    elif not output.data.is_terminal:
        yield _Plain()
    else:
        waiting = Text("no events yet", style="dim")
        with Live(waiting, console=output.data, refresh_per_second=5, redirect_stderr=True) as live:
            yield _LiveTable(live)


def cells(event: Event) -> list[Text]:
    """The columns of an event: time, type, number, status, priority, title, actor."""
    ticket, actor = _part(event, "ticket"), _part(event, "actor")
    kind = str(event.get("type", "")).removeprefix("ticket.").rpartition(".v")[0]
    words = [str(ticket.get(name, "")) for name in ("status", "priority")]
    return [
        Text(_clock(str(event.get("time", "")))),
        output.styled(kind),
        Text(output.plain(f"#{ticket.get('number', '?')}")),
        *map(output.styled, words),
        Text(output.plain(str(ticket.get("title", "")))),
        Text(output.plain(str(actor.get("name", "")))),
    ]


def _part(event: Event, name: str) -> Event:
    part = event.get(name)
    return part if isinstance(part, dict) else {}


def _clock(time: str) -> str:
    """The local time of day of an RFC 3339 time."""
    try:
        return dt.datetime.fromisoformat(time).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return output.plain(time)
