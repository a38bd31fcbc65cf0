-- What grows with time: the history of tickets, the audit log and the idempotency records, each in partitions by time
-- that are made ahead and dropped whole. And what a report of times needs to know of a ticket.
--
-- One more role: tickets_maintenance makes and drops partitions, by functions, and sees nothing.

DO $role$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'tickets_maintenance') THEN
        CREATE ROLE tickets_maintenance NOLOGIN;
    END IF;
    GRANT tickets_maintenance TO CURRENT_USER;
END
$role$;

ALTER TABLE tickets
    ADD COLUMN first_response_at timestamptz, -- the first comment by somebody else than its creator
    ADD COLUMN solved_at timestamptz; -- since when it is solved or closed

-- One row a version: who changed what. `changes` maps a field to [old, new].
CREATE TABLE ticket_history (
    organization_id uuid NOT NULL,
    ticket_id uuid NOT NULL,
    version bigint NOT NULL,
    at timestamptz NOT NULL,
    event_id uuid NOT NULL,
    type text NOT NULL,
    actor_id uuid NOT NULL,
    actor_kind text NOT NULL,
    actor_name text NOT NULL,
    changes jsonb NOT NULL,
    PRIMARY KEY (organization_id, ticket_id, version, at)
) PARTITION BY RANGE (at);

-- What was done to people and keys, and who signed in.
CREATE TABLE audit_log (
    organization_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT uuidv7(),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor_id uuid, -- NULL: the operator, or nobody knows who
    actor_kind text NOT NULL,
    actor_name text NOT NULL,
    action text NOT NULL,
    target_id uuid,
    details jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (organization_id, at, id)
) PARTITION BY RANGE (at);
CREATE INDEX idx_audit_log_action ON audit_log (organization_id, action, at, id);

-- The answers of creations that named an Idempotency-Key, written in the creation's own transaction. Unique by the
-- lock that claim_idempotency_key takes: a constraint could not reach across partitions.
CREATE TABLE idempotency_records (
    organization_id uuid NOT NULL,
    user_id uuid NOT NULL,
    key_sha256 bytea NOT NULL,
    fingerprint bytea NOT NULL, -- SHA-256 of method, path and body
    status smallint NOT NULL,
    headers jsonb NOT NULL,
    body bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) PARTITION BY RANGE (created_at);
CREATE INDEX idx_idempotency_records_key ON idempotency_records (organization_id, user_id, key_sha256);

-- The timelines of the write-ahead log that this database has lived on. A standby that shows the row of a timeline has
-- replayed what happened on it, so its replay position may be compared with positions of that timeline.
CREATE TABLE database_timelines (
    timeline integer PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO database_timelines (timeline)
VALUES (('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int);

-- Hold an Idempotency-Key until the transaction ends and tell what it was answered with before. `running`: another
-- transaction holds it. The lock comes in a statement before the look, for the look must see what its holder wrote.
CREATE FUNCTION claim_idempotency_key(
    organization uuid, requested_user uuid, requested_key bytea, kept interval,
    OUT running boolean, OUT fingerprint bytea, OUT status smallint, OUT headers jsonb, OUT body bytea)
    LANGUAGE plpgsql VOLATILE AS $claim$
DECLARE
    -- A variable, so that partitions that are too old are left out when the statement starts.
    since timestamptz := clock_timestamp() - kept;
BEGIN
    running := NOT pg_try_advisory_xact_lock(
        hashtextextended(organization::text || requested_user::text || encode(requested_key, 'hex'), 0));
    IF running THEN
        RETURN;
    END IF;
    SELECT r.fingerprint, r.status, r.headers, r.body INTO fingerprint, status, headers, body
    FROM idempotency_records r
    WHERE r.organization_id = organization AND r.user_id = requested_user AND r.key_sha256 = requested_key
      AND r.created_at > since
    ORDER BY r.created_at DESC LIMIT 1;
END
$claim$;

-- Make the partitions of a table from now until `ahead` from now; `step` is 'day' or 'month'. Returns how many are new.
-- Whoever runs it needs no ownership. ATTACH lets reads and writes of the table go on.
CREATE FUNCTION make_partitions(parent text, step text, ahead interval) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' AS $make$
DECLARE
    made integer := 0;
    width interval := ('1 ' || step)::interval;
    first_moment timestamptz := date_trunc(step, clock_timestamp());
    partition_name text;
BEGIN
    IF parent NOT IN ('ticket_history', 'audit_log', 'idempotency_records') OR step NOT IN ('day', 'month') THEN
        RAISE EXCEPTION 'there is no partitioned table % in steps of a %', parent, step;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('relaydesk partitions'));
    WHILE first_moment <= clock_timestamp() + ahead LOOP
        partition_name := parent || to_char(first_moment, '_YYYYMMDD');
        IF to_regclass(partition_name) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', partition_name, parent);
            EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', partition_name);
            EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', partition_name);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent, partition_name, first_moment, first_moment + width);
            made := made + 1;
        END IF;
        first_moment := first_moment + width;
    END LOOP;
    RETURN made;
END
$make$;

-- Drop the partitions of a table that ended more than `kept` ago. Returns how many.
CREATE FUNCTION drop_partitions(parent text, kept interval) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC'
    SET lock_timeout = '2s' AS $drop$
DECLARE
    dropped integer := 0;
    old record;
BEGIN
    IF parent NOT IN ('ticket_history', 'audit_log', 'idempotency_records') THEN
        RAISE EXCEPTION 'there is no partitioned table %', parent;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('relaydesk partitions'));
    FOR old IN
        SELECT inhrelid::regclass AS name FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = parent::regclass
          AND substring(pg_get_expr(relpartbound, inhrelid) FROM $$TO \('([^']+)'\)$$)::timestamptz
              <= clock_timestamp() - kept
    LOOP
        EXECUTE format('DROP TABLE %s', old.name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$drop$;

SELECT make_partitions('ticket_history', 'month', '3 months'),
       make_partitions('audit_log', 'month', '3 months'),
       make_partitions('idempotency_records', 'day', '7 days');

DO $security$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['ticket_history', 'audit_log', 'idempotency_records'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format(
            'CREATE POLICY tenant ON %I TO tickets_app USING (organization_id = current_organization())', table_name);
    END LOOP;
END
$security$;

GRANT SELECT, INSERT ON ticket_history, audit_log, idempotency_records, database_timelines TO tickets_app;
REVOKE EXECUTE ON FUNCTION make_partitions, drop_partitions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION make_partitions, drop_partitions TO tickets_maintenance;

-- Every write touches these rows: room for the new version on the same page (HOT), and vacuum by count and not by
-- share, so that a big table is not left alone until a fifth of it is dead.
ALTER TABLE organizations SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE relay_shards SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
ALTER TABLE relay_instances SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
ALTER TABLE tickets SET (
    fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.01);
ALTER TABLE comments SET (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
