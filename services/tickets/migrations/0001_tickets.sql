-- The system of record: organizations, people, tickets, comments and the outbox.
--
-- Every row carries organization_id and row-level security is forced from the first migration on. Services log in as
-- a user of the operator's choice and take on one of three roles that own nothing:
--   tickets_app       one tenant at a time, the one in relaydesk.organization_id
--   tickets_identity  sign-in and key lookup, which begin without a tenant; reads people and credentials only
--   tickets_relay     reads and deletes outbox rows of every tenant, sees nothing else
-- Roles belong to the whole cluster, so they may exist already.

DO $roles$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['tickets_app', 'tickets_identity', 'tickets_relay'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
        EXECUTE format('GRANT %I TO CURRENT_USER', role_name);
    END LOOP;
END
$roles$;

-- The tenant of the transaction; after SET LOCAL has ended the setting is '' and not NULL.
CREATE FUNCTION current_organization() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('relaydesk.organization_id', true), '')::uuid;

-- An upper bound of what the snapshots taken so far can see: insert position on a primary, received on a standby.
CREATE FUNCTION read_position() RETURNS pg_lsn
    LANGUAGE sql VOLATILE
    RETURN CASE WHEN pg_is_in_recovery()
        THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
        ELSE pg_current_wal_insert_lsn() END;

-- What the text index sees of a ticket: title || ' ' || description, capped well below the 1 MB that a tsvector may
-- have, and broken where to_tsvector's parser takes quadratic time: long runs without white space (its URL, host and
-- e-mail rules look ahead to the run's end at every step; a 64 kB run of a_ takes over a minute) and repeated <!--.
CREATE FUNCTION ticket_text(title text, description text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN regexp_replace(
        replace(left(title || ' ' || description, 65536), '<!', '< '), '(\S{100})', '\1 ', 'g');

CREATE TABLE organizations (
    id uuid PRIMARY KEY,
    slug text NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    last_ticket_number bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
    organization_id uuid NOT NULL REFERENCES organizations (id),
    id uuid NOT NULL DEFAULT uuidv7(),
    email text NOT NULL CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    role text NOT NULL CHECK (role IN ('admin', 'agent')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, id),
    UNIQUE (organization_id, email)
);

CREATE TABLE credentials (
    organization_id uuid NOT NULL,
    user_id uuid NOT NULL,
    password_hash text NOT NULL, -- argon2id, PHC string format
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, user_id),
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE
);

CREATE TABLE api_keys (
    organization_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT uuidv7(),
    user_id uuid NOT NULL,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    prefix text NOT NULL, -- the first characters of the key, so that people can tell keys apart
    key_sha256 bytea NOT NULL, -- a key has 256 random bits, so a fast hash is enough
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    PRIMARY KEY (organization_id, id),
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX idx_api_keys_sha256 ON api_keys (key_sha256);

CREATE TABLE tickets (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    number bigint NOT NULL,
    title text NOT NULL CHECK (length(title) BETWEEN 1 AND 300),
    description text NOT NULL CHECK (length(description) <= 65536),
    status_id smallint NOT NULL CHECK (status_id BETWEEN 1 AND 4), -- open, pending, solved, closed
    priority_id smallint NOT NULL CHECK (priority_id BETWEEN 1 AND 4), -- low, normal, high, urgent
    user_id uuid NOT NULL, -- who created it
    assigned_to uuid,
    external_id text CHECK (length(external_id) BETWEEN 1 AND 200),
    fields jsonb NOT NULL DEFAULT '{}',
    version bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, id),
    UNIQUE (organization_id, number),
    CONSTRAINT tickets_external_id_key UNIQUE (organization_id, external_id),
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id),
    CONSTRAINT tickets_assigned_to_fkey
        FOREIGN KEY (organization_id, assigned_to) REFERENCES users (organization_id, id)
);
-- Every statement names its tenant, so the tenant leads each index that a tenant's statements use.
CREATE INDEX idx_tickets_user_id ON tickets (organization_id, user_id);
CREATE INDEX idx_tickets_assigned_to ON tickets (organization_id, assigned_to);
CREATE INDEX idx_tickets_created_at ON tickets (organization_id, created_at, id);
CREATE INDEX idx_tickets_status_priority ON tickets (organization_id, status_id, priority_id);
CREATE INDEX idx_tickets_list ON tickets (organization_id, status_id, created_at) INCLUDE (id, title, priority_id);
CREATE INDEX idx_tickets_search ON tickets USING gin (to_tsvector('english', ticket_text(title, description)));

CREATE TABLE comments (
    organization_id uuid NOT NULL,
    id uuid NOT NULL,
    ticket_id uuid NOT NULL,
    author_id uuid NOT NULL,
    body text NOT NULL CHECK (length(body) BETWEEN 1 AND 65536),
    created_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, id),
    FOREIGN KEY (organization_id, ticket_id) REFERENCES tickets (organization_id, id) ON DELETE CASCADE,
    FOREIGN KEY (organization_id, author_id) REFERENCES users (organization_id, id)
);
CREATE INDEX idx_comments_ticket ON comments (organization_id, ticket_id, id);

-- The outbox: events that are written with their change and deleted once Kafka has acknowledged them.
-- CACHE 1 is what keeps positions in commit order for one ticket: they are drawn after the ticket's row is locked.
CREATE SEQUENCE outbox_position CACHE 1;
CREATE TABLE outbox (
    position bigint PRIMARY KEY DEFAULT nextval('outbox_position'),
    organization_id uuid NOT NULL,
    ticket_id uuid NOT NULL,
    version bigint NOT NULL,
    shard smallint NOT NULL CHECK (shard BETWEEN 0 AND 63),
    event_id uuid NOT NULL,
    type text NOT NULL,
    data bytea NOT NULL, -- the event's value, JSON, as it goes to Kafka
    traceparent text,
    created_at timestamptz NOT NULL,
    UNIQUE (ticket_id, version)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Who may publish a shard's rows; the epoch guards the delete of a relay that lost its lease and woke up.
CREATE TABLE relay_shards (
    shard smallint PRIMARY KEY,
    owner uuid,
    epoch bigint NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO relay_shards (shard) SELECT generate_series(0, 63);
CREATE TABLE relay_instances (
    id uuid PRIMARY KEY,
    seen_at timestamptz NOT NULL
);

DO $security$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['users', 'credentials', 'api_keys', 'tickets', 'comments', 'outbox'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format(
            'CREATE POLICY tenant ON %I TO tickets_app USING (organization_id = current_organization())', table_name);
    END LOOP;
    FOREACH table_name IN ARRAY ARRAY['users', 'credentials', 'api_keys'] LOOP
        EXECUTE format('CREATE POLICY identity ON %I FOR SELECT TO tickets_identity USING (true)', table_name);
    END LOOP;
END
$security$;
ALTER TABLE organizations ENABLE ROW LEVEL SECURITY;
ALTER TABLE organizations FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON organizations TO tickets_app USING (id = current_organization());
CREATE POLICY identity ON organizations FOR SELECT TO tickets_identity USING (true);
CREATE POLICY relay_select ON outbox FOR SELECT TO tickets_relay USING (true);
CREATE POLICY relay_delete ON outbox FOR DELETE TO tickets_relay USING (true);

GRANT SELECT, INSERT, UPDATE ON organizations, users, credentials, api_keys, tickets TO tickets_app;
GRANT SELECT, INSERT ON comments TO tickets_app;
GRANT INSERT ON outbox TO tickets_app;
GRANT USAGE ON SEQUENCE outbox_position TO tickets_app;
GRANT SELECT ON organizations, users, credentials, api_keys TO tickets_identity;
GRANT SELECT, DELETE ON outbox TO tickets_relay;
GRANT SELECT, UPDATE ON relay_shards TO tickets_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON relay_instances TO tickets_relay;
GRANT SELECT ON schema_migrations TO tickets_app, tickets_relay;
