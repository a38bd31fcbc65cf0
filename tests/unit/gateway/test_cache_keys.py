"""Who shares a cached answer: all who may see the same and mean the same, and nobody else."""

import itertools
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping

from libs.common.identity import Principal
from libs.common.models import Role
from services.gateway.answers.reads import asked_path, key_of
from services.gateway.routes.tickets import list_query

ORGANIZATIONS = [uuid.UUID(int=1), uuid.UUID(int=0x10)]
USERS = [uuid.UUID(int=2), uuid.UUID(int=3)]
PATHS = ["/api/tickets", f"/api/tickets/{uuid.UUID(int=9)}"]
NAMES = ["assigned_to", "status", "q"]
# Also what looks like other parts of a key.
TEXTS = ["me", str(USERS[0]), "a,b", "b,a", "a", "a&q=b", "a&status=b", "b", "", "?", f":{Role.ADMIN}:/api/tickets"]


def principals() -> Iterator[Principal]:
    for organization_id, user_id, role in itertools.product(ORGANIZATIONS, USERS, Role):
        yield Principal(
            organization_id=organization_id,
            user_id=user_id,
            name="Somebody",
            role=role,
            credential="api_key",
            credential_id="1",
        )


def queries() -> Iterator[dict[str, str]]:
    for texts in itertools.product([None, *TEXTS], repeat=len(NAMES)):
        query = {name: text for name, text in zip(NAMES, texts, strict=True) if text is not None}
        yield query
        if len(query) > 1:
            yield dict(reversed(query.items()))


def meaning(principal: Principal, query: Mapping[str, str]) -> frozenset[tuple[str, object]]:
    """What a list's query says: `me` is who asks, a set of names has no order."""
    said: dict[str, object] = dict(query)
    if query.get("assigned_to") == "me":
        said["assigned_to"] = str(principal.user_id)
    if "status" in query:
        said["status"] = frozenset(query["status"].split(","))
    return frozenset(said.items())


def test_an_answer_is_shared_by_those_of_equal_rights_who_mean_the_same_and_by_nobody_else() -> None:
    asked_by_key: dict[str, set[object]] = defaultdict(set)
    keys_by_asked: dict[object, set[str]] = defaultdict(set)
    for principal, path, query in itertools.product(list(principals()), PATHS, list(queries())):
        key = key_of(principal, asked_path(path, list_query(query, principal)))
        asked = (principal.organization_id, principal.role, path, meaning(principal, query))
        asked_by_key[key].add(asked)
        keys_by_asked[asked].add(key)
    assert len(asked_by_key) > 1000
    assert all(len(asked) == 1 for asked in asked_by_key.values()), "nobody with other rights or another question"
    assert all(len(keys) == 1 for keys in keys_by_asked.values()), "however it is written, and whoever of them asks"
