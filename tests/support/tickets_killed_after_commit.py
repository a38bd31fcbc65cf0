"""The tickets service, which dies by SIGKILL between the COMMIT of a creation and its answer."""

import os
import signal
from typing import NoReturn

from services.tickets import __main__ as service
from services.tickets import routes_people, routes_tickets


def die(*_arguments: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit


for routes in (routes_tickets, routes_people):
    vars(routes)["reply_response"] = die
service.commands(["serve"])
