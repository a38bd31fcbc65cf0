"""SQL of the index."""

import datetime as dt
import re
import uuid
from collections.abc import Collection, Sequence
from typing import NamedTuple

import asyncpg
import msgspec

from libs.common.cache.search_tags import CHANGED_WORDS, Change, number_word
from libs.common.models import Ticket

Key = tuple[uuid.UUID, uuid.UUID]  # organization, ticket


class Stored(NamedTuple):
    """What the index knows of a ticket: the version it shows and the text of the comments up to it."""

    version: int
    comments: str


class Document(msgspec.Struct, frozen=True):
    """A ticket as it is stored: its texts are prepared already."""

    ticket: Ticket
    comments: str

    @property
    def key(self) -> Key:
        return self.ticket.organization_id, self.ticket.id


class Match(msgspec.Struct, frozen=True):
    """A row that a search has found; marks in the headlines are control characters, see `texts`."""

    ticket_id: uuid.UUID
    number: int
    title: str
    status: str
    priority: str
    created_at: dt.datetime
    title_headline: str
    text_headline: str
    score: float


class Found(NamedTuple):
    """What a search has found, and what else it would: `words` are those of the query, negated ones too.

    `matches_without`: whether documents that have none of them match.
    """

    matches: Sequence[Match]
    words: frozenset[str]
    matches_without: bool


# What the index holds of the given tickets.
SELECT_STORED = """
SELECT d.organization_id, d.ticket_id, d.version, d.comments
FROM documents d
JOIN unnest($1::uuid[], $2::uuid[]) AS wanted (organization_id, ticket_id) USING (organization_id, ticket_id)"""


async def select_stored(pool: asyncpg.Pool, keys: Collection[Key]) -> dict[Key, Stored]:
    rows = await pool.fetch(SELECT_STORED, [key[0] for key in keys], [key[1] for key in keys])
    return {(row["organization_id"], row["ticket_id"]): Stored(row["version"], row["comments"]) for row in rows}


# Store documents; an older version never replaces a newer one. Returns those that were stored, each with the words of
# which its entries (positions and weights) have changed; of a new one, and if its place among the newest has, with all.
UPSERT_DOCUMENTS = """
INSERT INTO documents (organization_id, ticket_id, number, version, title, description, comments, status, priority,
                       user_id, assigned_to, external_id, fields, created_at, updated_at, tsv)
SELECT d.organization_id, d.ticket_id, d.number, d.version, d.title, d.description, d.comments, d.status, d.priority,
       d.user_id, d.assigned_to, d.external_id, d.fields::jsonb, d.created_at, d.updated_at,
       setweight(to_tsvector('english', d.title), 'A')
       || setweight(to_tsvector('english', d.description || E'\\n' || d.comments), 'B')
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[],
            $9::text[], $10::uuid[], $11::uuid[], $12::text[], $13::text[], $14::timestamptz[], $15::timestamptz[])
     AS d (organization_id, ticket_id, number, version, title, description, comments, status, priority,
           user_id, assigned_to, external_id, fields, created_at, updated_at)
ON CONFLICT (organization_id, ticket_id) DO UPDATE SET
    number = excluded.number, version = excluded.version, title = excluded.title,
    description = excluded.description, comments = excluded.comments, status = excluded.status,
    priority = excluded.priority, user_id = excluded.user_id, assigned_to = excluded.assigned_to,
    external_id = excluded.external_id, fields = excluded.fields, created_at = excluded.created_at,
    updated_at = excluded.updated_at, tsv = excluded.tsv
WHERE documents.version < excluded.version
RETURNING new.organization_id, new.ticket_id,
    CASE WHEN old.number IS DISTINCT FROM new.number THEN array_remove(ARRAY[old.number, new.number], NULL)
         ELSE '{}' END AS numbers,
    CASE WHEN old.tsv = new.tsv AND old.created_at = new.created_at THEN '{}'
         ELSE ARRAY(SELECT lexeme FROM unnest(old.tsv) AS before FULL JOIN unnest(new.tsv) AS after USING (lexeme)
                    WHERE before IS DISTINCT FROM after OR old.created_at <> new.created_at
                    LIMIT $16) END AS words"""


async def upsert_documents(pool: asyncpg.Pool, documents: Collection[Document]) -> list[Change]:
    """Store `documents` (of distinct tickets): one statement, so one transaction.

    Those of which a newer version is stored already are left out of the answer.
    """
    # Sorted, so that two writers at a rebalance wait for one another instead of deadlocking.
    ordered = sorted(documents, key=lambda document: document.key)
    tickets = [document.ticket for document in ordered]
    rows = await pool.fetch(
        UPSERT_DOCUMENTS,
        [ticket.organization_id for ticket in tickets],
        [ticket.id for ticket in tickets],
        [ticket.number for ticket in tickets],
        [ticket.version for ticket in tickets],
        [ticket.title for ticket in tickets],
        [ticket.description for ticket in tickets],
        [document.comments for document in ordered],
        [ticket.status for ticket in tickets],
        [ticket.priority for ticket in tickets],
        [ticket.user_id for ticket in tickets],
        [ticket.assigned_to for ticket in tickets],
        [ticket.external_id for ticket in tickets],
        [msgspec.json.encode(ticket.fields).decode() for ticket in tickets],
        [ticket.created_at for ticket in tickets],
        [ticket.updated_at for ticket in tickets],
        CHANGED_WORDS + 1,
    )
    return [
        Change(row["organization_id"], row["ticket_id"], [*row["words"], *map(number_word, row["numbers"])])
        for row in rows
    ]


# One search; the function is in migrations/0001_documents.sql. There is a row also when nothing is found. The first
# columns say what PostgreSQL makes of the text, and whether that matches a document with none of its words.
SEARCH = """
SELECT query::text AS query, ''::tsvector @@ query AS matches_without,
       ticket_id, number, title, status, priority, created_at, title_headline, text_headline, score
FROM websearch_to_tsquery('english', $2) AS query LEFT JOIN search_documents($1, $2, $3, $4) ON true"""
# Words stand between apostrophes; those within a word are doubled, as are backslashes.
_WORD = re.compile(r"'((?:[^']|'')*)'")


async def search(pool: asyncpg.Pool, organization_id: uuid.UUID, *, text: str, number: int | None, limit: int) -> Found:
    rows = await pool.fetch(SEARCH, organization_id, text, number, limit)
    matches = [Match(*row[2:]) for row in rows if row["ticket_id"] is not None]
    return Found(matches, words_of(rows[0]["query"]), rows[0]["matches_without"])


def words_of(query: str) -> frozenset[str]:
    """The words (lexemes) of a tsquery as PostgreSQL writes it."""
    return frozenset(word.replace("''", "'").replace("\\\\", "\\") for word in _WORD.findall(query))
