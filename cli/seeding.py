"""`relaydesk seed`: demo tickets that read like real ones, the same for the same seed."""

import asyncio
import random
from collections.abc import Callable, Iterator

import msgspec

from cli import output
from cli.client import Patience, connect, connect_check
from cli.credentials import Target
from cli.errors import CommandError, Exit
from cli.sending import EncodedTicket, Sender, batches
from libs.common.models import BulkResult, NewTicket, Priority

BATCH_ROWS = 200
PARALLEL = 4

PRIORITIES = {Priority.LOW: 20, Priority.NORMAL: 55, Priority.HIGH: 18, Priority.URGENT: 7}
CHANNELS = {"email": 45, "web form": 30, "phone": 15, "chat": 10}
PRODUCTS = (
    "Atlas CRM", "Beacon Mail", "Cobalt Billing", "Delta Sync", "Ember Analytics", "Fjord Storage",
    "Grove Calendar", "Harbor Pay", "Indigo Forms", "Juniper Mobile",
)  # fmt: skip
PLANS = ("free", "team", "business", "enterprise")
REGIONS = ("eu-central", "eu-west", "us-east", "us-west", "ap-south", "ap-northeast")
PLATFORMS = ("Firefox 141", "Chrome 139", "Safari 18", "Edge 138", "the iOS app", "the Android app", "the API")
TEAMS = ("sales team", "finance department", "night shift", "Lisbon office", "warehouse", "support team", "interns")
MOMENTS = (
    "since this morning", "since the update on Tuesday", "for about two weeks", "every Monday around nine",
    "since we moved to the new plan", "only at the end of the month", "on and off since yesterday",
)  # fmt: skip
ERRORS = ("E-1042", "HTTP 502", "TLS handshake failed", "quota exceeded", "E-2207", "permission denied", "timeout")

# Subject and what happened: `{…}` is filled from the lists above.
TOPICS = {
    "Cannot sign in to {product}": (
        "After the password is entered in {platform}, the page loads again without a message. Three people of"
        " the {team} see the same; the others can work."
    ),
    "{product}: invoice {number} shows the wrong amount": (
        "Invoice {number} charges {count} seats, but we have {less}. The {team} cannot approve it like this. "
        "Please send a corrected one."
    ),
    "Export from {product} stops at {percent} %": (
        "The export of about {count},000 records stops at {percent} % and then reports {error}. A smaller one"
        " of {less} records works."
    ),
    "Refund for order {number}": (
        "We ordered twice by mistake, since the first click in {platform} seemed to do nothing. Please cancel"
        " order {number} and refund it."
    ),
    "{product} is slow {moment}": (
        "Opening a record takes {less} seconds {moment}. Other sites are fast here, so it is not our line. It"
        " is the same in {platform} and for the whole {team}."
    ),
    "How do we move from {product} to {other}?": (
        "We would like to use {other} for the {team} and take our data along. Is there a guide, and how long "
        "would {count},000 records take?"
    ),
    "Webhook of {product} delivers twice": (
        "Our endpoint gets the same event two times within a second, {moment}. The delivery ids differ, so we"
        " cannot drop the second one. Example: {number}."
    ),
    "Please add {count} seats to {product}": (
        "The {team} grows next month. Please add {count} seats on the {plan} plan and tell us the new monthly price."
    ),
    "Error {error} while saving in {product}": (
        "Saving fails with {error} {moment}. What was typed is lost, which is the worst part. We use {platform}."
    ),
    "{product} does not send notifications": (
        "Nobody of the {team} gets an e-mail any more {moment}. Nothing is in the spam folder. The log in the"
        " settings lists them as sent."
    ),
    "Delete the data of a former customer": (
        "A former customer asks for erasure (our reference {number}). Please confirm that backups of "
        "{product} are covered as well, and when."
    ),
    "Dates in {product} are one day off": (
        "Entries made after 22:00 appear on the day before in {platform}. We are in {region}, and the "
        "account's time zone is set correctly."
    ),
    "Two-factor code is refused": (
        "My phone was replaced and the codes of the new one are refused by {product}. I still have {less} "
        "recovery codes. Can the second factor be reset?"
    ),
    "Integration between {product} and {other} broke": (
        "The connection reports {error} {moment}. We created a new key, without success. {count} records wait"
        " to be transferred."
    ),
    "Feature request: bulk edit in {product}": (
        "The {team} changes {count} records a week one by one. Editing several at once, as {other} can, would"
        " save us hours."
    ),
    "Attachment cannot be opened in {product}": (
        "A PDF of {less} MB is shown as damaged in {platform}. The same file opens after a download on "
        "another computer."
    ),
}
OPENINGS = ("Hello,", "Good morning,", "Hi there,", "Dear support team,", "Hi,", "")
DETAILS = (
    "We have tried another browser and a private window already.",
    "Account: {plan} plan, region {region}.",
    "A screenshot can be sent if that helps.",
    "It started {moment}, and we changed nothing on our side.",
    "It is reproducible: it happens in {less} of {count} attempts.",
    "The {team} depends on this, so a workaround would help for now.",
    "Our ticket {number} from last year looked similar.",
    "The status page of {region} shows no incident.",
)
CLOSINGS = ("Thank you!", "Kind regards", "Thanks in advance.", "Please call back if anything is unclear.", "")


def tickets(count: int, seed: int) -> Iterator[NewTicket]:
    """`count` tickets; ticket n of a seed is always the same and has the external id `seed:<seed>:<n>`."""
    for number in range(1, count + 1):
        yield _ticket(random.Random(f"{seed}:{number}"), f"seed:{seed}:{number}")  # noqa: S311 (demo data)


def _ticket(chance: random.Random, external_id: str) -> NewTicket:
    product, other = chance.sample(PRODUCTS, 2)
    details = {
        "product": product,
        "other": other,
        "plan": chance.choice(PLANS),
        "region": chance.choice(REGIONS),
        "platform": chance.choice(PLATFORMS),
        "team": chance.choice(TEAMS),
        "moment": chance.choice(MOMENTS),
        "error": chance.choice(ERRORS),
        "number": str(chance.randint(10_000, 99_999)),
        "count": str(chance.randint(12, 90)),
        "less": str(chance.randint(2, 11)),
        "percent": str(chance.randint(11, 98)),
    }
    subject, story = chance.choice(tuple(TOPICS.items()))
    more = " ".join(chance.sample(DETAILS, chance.randint(0, 3)))
    parts = (chance.choice(OPENINGS), story, more, chance.choice(CLOSINGS))
    return NewTicket(
        title=subject.format_map(details),
        description="\n\n".join(part.format_map(details) for part in parts if part),
        priority=chance.choices(tuple(PRIORITIES), tuple(PRIORITIES.values()))[0],
        external_id=external_id,
        fields={
            "product": product,
            "plan": details["plan"],
            "region": details["region"],
            "channel": chance.choices(tuple(CHANNELS), tuple(CHANNELS.values()))[0],
        },
    )


def _encoded(count: int, seed: int) -> Iterator[EncodedTicket]:
    for number, ticket in enumerate(tickets(count, seed), 1):
        yield EncodedTicket(number, msgspec.json.encode(ticket))


class Seeded(msgspec.Struct):
    """What `--json` prints."""

    organization: str
    seed: int
    created: int = 0
    exists: int = 0
    refused: int = 0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`retry_seconds` bounds one outage of the platform."""

    count: int
    seed: int
    organization: str | None = None
    retry_seconds: float = 300.0
    as_json: bool = False


async def run(target: Target, options: Options) -> Exit:
    """Create the tickets.

    Raises:
        CommandError: see `cli.errors`.
    """
    async with connect(target.url, target.api_key) as api:
        patience = Patience(options.retry_seconds, output.warning)
        session = await patience.run(lambda: connect_check(api, target, options.organization))
        seeded = Seeded(organization=session.organization.slug, seed=options.seed)
        with output.progress() as bar:
            task = bar.add_task("seed", total=options.count, rows=0)

            def on_result(_ticket: EncodedTicket, result: BulkResult) -> None:
                outcome = result.status if result.status in {"created", "exists"} else "refused"
                setattr(seeded, outcome, getattr(seeded, outcome) + 1)

            def on_turn() -> None:
                done = seeded.created + seeded.exists + seeded.refused
                bar.update(task, completed=done, rows=done)

            await _send(Sender(api, patience, PARALLEL, on_result), options, on_turn)
    if options.as_json:
        output.line(msgspec.json.encode(seeded).decode())
    else:
        output.pairs((name, str(value)) for name, value in msgspec.structs.asdict(seeded).items())
    return Exit.REFUSED if seeded.refused else Exit.OK


async def _send(sender: Sender, options: Options, on_turn: Callable[[], None]) -> None:
    try:
        await sender.run(batches(_encoded(options.count, options.seed), BATCH_ROWS), on_turn)
    except (CommandError, asyncio.CancelledError):
        output.notice(f"Run it again with --tickets {options.count} --seed {options.seed} for the rest.")
        raise
