"""The tickets service, as far as the index asks it."""

import http
import uuid

import aiohttp
import msgspec

from libs.common import tracing
from libs.common.identity import HEADER, Signer
from libs.common.models import TicketDocument
from libs.common.problems import Problem, ProblemDetails, unavailable

_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=2)
_document = msgspec.json.Decoder(TicketDocument)
_problem = msgspec.json.Decoder(ProblemDetails)


class TicketsClient:
    """`GET /internal/tickets/{id}` of the tickets service at `url`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, signer: Signer) -> None:
        self._session = session
        self._url = url
        self._signer = signer

    async def refetch(self, organization_id: uuid.UUID, ticket_id: uuid.UUID) -> TicketDocument:
        """The newest state of a ticket, with all its comments.

        Raises:
            Problem: `ticket_not_found` when the service says so, else `service_unavailable`.
        """
        headers = {HEADER: self._signer.service_token("tickets")}
        tracing.inject(headers)
        try:
            async with self._session.get(
                f"{self._url}/internal/tickets/{ticket_id}",
                params={"organization_id": str(organization_id)},
                headers=headers,
                timeout=_TIMEOUT,
            ) as response:
                body = await response.read()
                if response.status == http.HTTPStatus.OK:
                    return _document.decode(body)
                # Only the service's own word counts: a 404 may also come from something that stands in between.
                if response.status == http.HTTPStatus.NOT_FOUND and _problem.decode(body).code == "ticket_not_found":
                    raise Problem("ticket_not_found", f"There is no ticket {ticket_id}.")
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
            raise unavailable("The tickets service") from error
        raise unavailable("The tickets service")
