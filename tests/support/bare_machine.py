"""The inner half of tests/bare_machine.sh: runs where there is nothing but Python's standard library.

Types `make run` on a terminal of its own, uses what comes up, presses Ctrl-C, and looks for what is left.
"""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORTS = {"gateway": 8080, "tickets": 8081, "notifier": 8082, "search": 8083}
GATEWAY = f"http://127.0.0.1:{PORTS['gateway']}"
FIRST_START_SECONDS = 900
SECOND_START_SECONDS = 60
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`make run` with a terminal: what it shows is kept, and Ctrl-C can be pressed."""

    def __init__(self, folder: Path) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvp("make", ["make", "run"])  # noqa: S606 (the forked half becomes make)
        self._shown: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def text(self) -> str:
        """Everything it has shown, without colours."""
        return ESCAPES.sub("", b"".join(self._shown).decode(errors="replace"))

    def press_ctrl_c(self) -> None:
        os.write(self._descriptor, b"\x03")

    def ended(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) != (0, 0)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(self._descriptor, 65_536):
                self._shown.append(chunk)


def call(path: str, key: str, body: dict[str, Any] | None = None) -> Any:
    """GET, or POST JSON, at the gateway."""
    request = urllib.request.Request(  # noqa: S310 (a constant http address)
        f"{GATEWAY}{path}",
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def wait_for(what: str, check: Callable[[], bool], seconds: float) -> float:
    """Wait until a check holds; the seconds it took."""
    begun = time.monotonic()
    while True:
        with contextlib.suppress(OSError, ValueError):
            if check():
                return time.monotonic() - begun
        if time.monotonic() - begun > seconds:
            processes = "\n".join(line[:150] for line in others())
            raise SystemExit(f"Not within {seconds} s: {what}. Processes:\n{processes}")
        time.sleep(0.1)


def others() -> list[str]:
    """Command lines of all processes here but this one, the first, which the ended ones wait for."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (folder / "stat").read_text().rpartition(") ")[2][0] != "Z":
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(f"{folder.name} {line}")
    return found


def alive() -> bool:
    """Whether all four services answer."""
    for port in PORTS.values():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
            if answer.status != 200:
                return False
    return True


def report(what: str, seconds: float) -> None:
    print(f"         {what}: {seconds:.1f} s", flush=True)


def start(folder: Path, what: str, patience: float) -> Terminal:
    terminal = Terminal(folder)

    def ready() -> bool:
        if terminal.ended():
            raise SystemExit(f"make run ended:\n{terminal.text()[-4000:]}")
        return "Create a ticket" in terminal.text()

    report(what, wait_for("all is ready", ready, patience))
    if not alive():
        raise SystemExit("A service does not answer /livez.")
    return terminal


def stop(terminal: Terminal, what: str, act: Callable[[], object]) -> None:
    begun = time.monotonic()
    act()
    terminal.wait()
    report(what, time.monotonic() - begun)
    wait_for("no process is left", lambda: not others(), 10)


def send_ticket(key: str, title: str) -> None:
    """A ticket goes in through the gateway and comes out of the search."""
    ticket = call("/api/tickets", key, {"title": title})

    def found() -> bool:
        results = call(f"/api/search?q={title.rpartition(' ')[2]}", key)["results"]
        return ticket["id"] in [result["ticket"]["id"] for result in results]

    report("ticket to search result", wait_for("the ticket is found", found, 30))


def try_everything(folder: Path) -> None:
    terminal = start(folder, "first start, everything downloaded", FIRST_START_SECONDS)
    key = json.loads((folder / ".local/demo.json").read_text())["api_key"]["key"]
    send_ticket(key, "printer zebra")
    stop(terminal, "Ctrl-C", terminal.press_ctrl_c)

    terminal = start(folder, "second start", SECOND_START_SECONDS)
    send_ticket(key, "scanner okapi")
    titles = [ticket["title"] for ticket in call("/api/tickets", key)["tickets"]]
    if titles != ["scanner okapi", "printer zebra"]:
        raise SystemExit(f"The second start has other tickets: {titles}")
    stop(terminal, "make stop", lambda: subprocess.run(["make", "-s", "stop"], cwd=folder, check=True))
    subprocess.run(["make", "-s", "clean"], cwd=folder, check=True)


def show_logs(folder: Path) -> None:
    for log in sorted(folder.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-5:]
        print(f"--- {log.name}", *(line[:400] for line in lines), sep="\n")


def main() -> None:
    folder = Path(sys.argv[1])
    try:
        try_everything(folder)
    except BaseException:
        show_logs(folder / ".local/logs")
        raise


if __name__ == "__main__":
    main()
