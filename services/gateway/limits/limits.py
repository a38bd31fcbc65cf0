"""Rate limits that are decided in the process and agreed on with the others behind the requests' backs.

Every gateway keeps a bucket for each client it sees and decides by it at once. What it has let through it adds to the
bucket in Redis, many buckets in one call: every 200 ms, and without waiting once a client has used half of what a
process may give away unshared, a tenth of its burst. The answer is the debt that all processes know of. A client that
has used all of that tenth waits for the next exchange, so n processes together let through at most (n - 1) tenths of
a burst more than the limit. See docs/decisions/0015-rate-limits.md.
"""

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Sequence

import cachebox
import msgspec
import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError

from libs.common.identity import Principal
from libs.common.problems import Problem
from services.gateway.limits.gcra import Bucket, Policy, Rate, Told

EXCHANGE_SECONDS = 0.2
_REDIS_SECONDS = 1.0
_REMEMBERED = 20_000
_KEYS_A_CALL = 200
_MICROSECONDS = 1_000_000

# Adds debts to buckets and returns what each then amounts to, in microseconds of the server's clock. A bucket's value
# is the time at which it is paid for, and it is gone then.
# KEYS: buckets; ARGV: debts to add
_ADD = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local debts = {}
for i, key in ipairs(KEYS) do
  local paid_at = tonumber(redis.call('GET', key) or now)
  if paid_at < now then paid_at = now end
  paid_at = paid_at + tonumber(ARGV[i])
  local debt = paid_at - now
  if debt > 0 then
    redis.call('SET', key, string.format('%.0f', paid_at), 'PX', math.ceil(debt / 1000))
  else
    debt = 0
    redis.call('DEL', key)
  end
  debts[i] = debt
end
return debts
"""

# What each limit is of, for whoever meets it.
_OF = {
    "credential": "this API key or session",
    "organization": "the organization, which all its API keys and sessions share,",
    "address": "this address for requests without a valid credential",
    "sign-in": "this address for attempts to sign in",
    "account": "this account for attempts to sign in",
}
RATE_LIMITED = Counter("rate_limited_total", "Requests refused by a rate limit.", ["policy"])
RATE_LIMITS_SHARED = Gauge(
    "rate_limits_shared", "1 while gateways agree on rate limits through Redis, 0 while each limits by itself."
)
log = structlog.get_logger()

Buckets = tuple[Bucket, ...]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """`address` is for requests without a valid credential, `sign_in` and `account` for attempts to sign in."""

    credential: Rate
    organization: Rate
    address: Rate
    sign_in: Rate
    account: Rate


class Limits:
    """`take` and `admit` decide; `run` agrees with the other processes as long as it is awaited."""

    def __init__(self, redis: Redis, rates: Rates, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._add = redis.register_script(_ADD)
        self._clock = clock
        self._credential = Policy("credential", rates.credential)
        self._organization = Policy("organization", rates.organization)
        self._address = Policy("address", rates.address)
        self._sign_in = Policy("sign-in", rates.sign_in)
        self._account = Policy("account", rates.account)
        _advertise_together(self._credential, self._organization)
        _advertise_together(self._sign_in, self._account)
        policies = (self._credential, self._organization, self._address, self._sign_in, self._account)
        self._refusals = {policy.name: RATE_LIMITED.labels(policy.name) for policy in policies}
        self._buckets: cachebox.LRUCache[str, Bucket] = cachebox.LRUCache(_REMEMBERED)
        self._of_principals: cachebox.LRUCache[str, Buckets] = cachebox.LRUCache(_REMEMBERED)
        self._dirty: list[Bucket] = []
        self._alone = True
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    def of_principal(self, principal: Principal) -> Buckets:
        """What a request with a valid credential is taken from: first the credential's bucket."""
        buckets = self._of_principals.get(principal.credential_id)
        if buckets is None:
            buckets = self._limited(
                (self._credential, principal.credential_id), (self._organization, str(principal.organization_id))
            )
            self._of_principals[principal.credential_id] = buckets
        return buckets

    def of_credential(self, principal: Principal) -> Buckets:
        """The same without the organization's."""
        return self._limited((self._credential, principal.credential_id))

    def of_address(self, address: str) -> Buckets:
        return self._limited((self._address, address))

    def of_sign_in(self, address: str, organization: str, email: str) -> Buckets:
        """The account's name is not kept, only its SHA-256; an account that does not exist has a bucket as well."""
        account = hashlib.sha256(f"{organization}\0{email.lower()}".encode()).hexdigest()
        return self._limited((self._sign_in, address), (self._account, account))

    def take(self, buckets: Buckets, cost: float = 1.0) -> Told | None:
        """Take `cost` from all buckets, at once; what to tell the client.

        None, with nothing taken, when a bucket refuses or Redis must be asked first: `admit` then does the rest.
        """
        now = self._clock()
        alone = self._alone
        for bucket in buckets:
            seconds = cost * bucket.seconds_each
            debt = bucket.paid_at - now
            if (debt + seconds if debt > 0 else seconds) > bucket.longest_debt:
                return None
            if bucket.unshared > 0 and bucket.unshared + seconds > bucket.may_hide and not alone:
                return None
        told = None
        for bucket in buckets:
            seconds = cost * bucket.seconds_each
            paid_at = bucket.paid_at
            bucket.paid_at = paid_at = (paid_at if paid_at > now else now) + seconds  # noqa: FURB136 (max is slow)
            bucket.unshared = unshared = bucket.unshared + seconds
            if not bucket.dirty:
                bucket.dirty = True
                self._dirty.append(bucket)
            if unshared + unshared >= bucket.may_hide and not alone:
                self._wake.set()
            remaining = int((bucket.longest_debt - paid_at + now) / bucket.seconds_each)
            if told is None or remaining < told.remaining:
                told = bucket.policy.told(remaining)
        return told or _UNLIMITED

    async def admit(self, buckets: Buckets, cost: float = 1.0) -> Told:
        """Like `take`, asking Redis where that is needed.

        Raises:
            Problem: `rate_limited` (429) with `Retry-After`.
        """
        cost = min([cost, *(bucket.policy.burst for bucket in buckets)])
        while True:
            told = self.take(buckets, cost)
            if told is not None:
                return told
            self.refuse(buckets, cost)
            if not self._alone:
                await self._agree()

    def refuse(self, buckets: Buckets, cost: float = 1.0) -> None:
        """Take nothing, and raise if `cost` could not be taken.

        Raises:
            Problem: `rate_limited` (429) with `Retry-After`.
        """
        now = self._clock()
        for bucket in buckets:
            seconds = bucket.seconds_until(cost, now)
            if seconds > 0:
                policy = bucket.policy
                self._refusals[policy.name].inc()
                told = policy.told(bucket.remaining(now))
                # RFC 6585, section 4: never stored by a cache.
                more = {"Retry-After": str(math.ceil(seconds)), "Cache-Control": "no-store"}
                raise Problem(
                    "rate_limited", f"The limit of {_OF[policy.name]} is used up.", headers=told.headers | more
                )

    def charge(self, buckets: Buckets, cost: float) -> None:
        """Take what has been used already, be it more than there is. A negative cost is given back."""
        now = self._clock()
        for bucket in buckets:
            bucket.take(cost, now)
            self._mark(bucket)
        if not self._alone:
            self._wake.set()

    async def run(self) -> None:
        """Exchange with the other processes until cancelled. Redis may fail meanwhile."""
        self._alone = False
        RATE_LIMITS_SHARED.set(1)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EXCHANGE_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
                await self._exchange()
        finally:
            self._alone = True
            _release(self._waiting)

    async def _agree(self) -> None:
        """Wait for an exchange that begins after now."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._wake.set()
        await waiter

    async def _exchange(self) -> None:
        buckets, self._dirty = self._dirty, []
        waiting, self._waiting = self._waiting, []
        for bucket in buckets:
            bucket.dirty = False
        try:
            for start in range(0, len(buckets), _KEYS_A_CALL):
                await self._share(buckets[start : start + _KEYS_A_CALL])
        except (RedisError, OSError) as error:
            self._keep(buckets[start:])
            self._on_no_answer(error)
        else:
            if buckets:
                self._on_answer()
        finally:
            _release(waiting)

    async def _share(self, buckets: Sequence[Bucket]) -> None:
        now = self._clock()
        if self._alone:
            # What was taken without the others, and has been paid for by now, is not held against the client.
            for bucket in buckets:
                bucket.unshared = min(bucket.unshared, max(0.0, bucket.paid_at - now))
        shared = [bucket.unshared for bucket in buckets]
        async with asyncio.timeout(_REDIS_SECONDS):
            debts = await self._add(
                keys=[bucket.key for bucket in buckets], args=[round(seconds * _MICROSECONDS) for seconds in shared]
            )
        now = self._clock()
        for bucket, seconds, debt in zip(buckets, shared, debts, strict=True):
            bucket.unshared -= seconds  # what was taken meanwhile is left
            bucket.paid_at = now + debt / _MICROSECONDS + bucket.unshared

    def _keep(self, buckets: Sequence[Bucket]) -> None:
        """To be shared later, unless it has been paid for by then or there is too much of it."""
        now = self._clock()
        for bucket in buckets:
            if bucket.paid_at > now and len(self._dirty) < _REMEMBERED:
                self._mark(bucket)
            else:
                bucket.unshared = 0.0

    def _mark(self, bucket: Bucket) -> None:
        if not bucket.dirty:
            bucket.dirty = True
            self._dirty.append(bucket)

    def _on_answer(self) -> None:
        if self._alone:
            self._alone = False
            RATE_LIMITS_SHARED.set(1)
            log.info("rate_limits_shared")

    def _on_no_answer(self, error: Exception) -> None:
        if not self._alone:
            self._alone = True
            RATE_LIMITS_SHARED.set(0)
            log.warning("rate_limits_alone", error=repr(error))

    def _limited(self, *wanted: tuple[Policy, str]) -> Buckets:
        found = []
        for policy, name in wanted:
            if policy.limited:
                # With another rate a client begins anew: its debt was counted in seconds at the old one.
                key = f"limit:{policy.name}:{policy.rate}:{name}"
                bucket = self._buckets.get(key)
                if bucket is None:
                    bucket = self._buckets[key] = Bucket(policy, key)
                found.append(bucket)
        return tuple(found)


_UNLIMITED = Told(0, {})


def _advertise_together(*policies: Policy) -> None:
    """One list of policies stands on every answer, whichever of them is the nearest to its end."""
    text = ", ".join(policy.advertised for policy in policies if policy.limited)
    for policy in policies:
        policy.advertised = text


def _release(waiting: list[asyncio.Future[None]]) -> None:
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(None)
    waiting.clear()
