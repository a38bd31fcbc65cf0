-- The search index: one document per ticket.
--
-- The service logs in as a user of the operator's choice and takes on one of two roles that own nothing:
--   search_app       reads one tenant at a time, the one in relaydesk.organization_id, and may call search_documents
--   search_indexer   writes the documents of every tenant, for events of all of them come in one batch
-- Roles belong to the whole cluster, so they may exist already, and another database may create them this moment.

DO $roles$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['search_app', 'search_indexer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- somebody else was faster
            END;
        END IF;
        -- Creating a role gives the right to grant it but not to take it on; a role made by somebody else must have
        -- been granted by them.
        IF NOT pg_has_role(current_user, role_name, 'SET') THEN
            EXECUTE format('GRANT %I TO CURRENT_USER', role_name);
        END IF;
    END LOOP;
END
$roles$;

CREATE TABLE documents (
    organization_id uuid NOT NULL,
    ticket_id uuid NOT NULL,
    number bigint NOT NULL,
    version bigint NOT NULL, -- the ticket's version that this document shows
    title text NOT NULL,
    description text NOT NULL, -- sanitised and capped, see services/search/texts.py
    comments text NOT NULL, -- likewise, one after the other
    status text NOT NULL,
    priority text NOT NULL,
    user_id uuid NOT NULL,
    assigned_to uuid,
    external_id text,
    fields jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    tsv tsvector NOT NULL, -- title A; description and comments B
    PRIMARY KEY (organization_id, ticket_id)
);
-- The planner chooses between the two by how common a term is, so it must know that well.
ALTER TABLE documents ALTER COLUMN tsv SET STATISTICS 1000;
CREATE INDEX idx_documents_tsv ON documents USING gin (tsv);
CREATE INDEX idx_documents_created_at ON documents (organization_id, created_at DESC);
CREATE INDEX idx_documents_number ON documents (organization_id, number);

-- Not FORCE: the owner is who search_documents below runs as, and it must not be subject to a policy (see there).
-- The service never acts as the owner.
ALTER TABLE documents ENABLE ROW LEVEL SECURITY;
-- After SET LOCAL has ended the setting is '' and not NULL.
CREATE POLICY tenant ON documents FOR SELECT TO search_app
    USING (organization_id = nullif(current_setting('relaydesk.organization_id', true), '')::uuid);
CREATE POLICY indexer ON documents TO search_indexer USING (true) WITH CHECK (true);

GRANT SELECT ON documents, schema_migrations TO search_app;
GRANT SELECT, INSERT, UPDATE ON documents TO search_indexer;

-- A search within one organization: the newest 200 matches, ranked by ts_rank × recency (1 for a new ticket, falling
-- towards a half with a time constant of 30 days). The ticket whose number is p_number comes first whatever it says.
-- Marks in the headlines are the control characters 1 (begin) and 2 (end), for the caller escapes the text between.
--
-- It runs as the table's owner because @@ is not leakproof: under a policy it would be checked row by row after the
-- policy and never by the index. Hence the organization is a parameter that every access below names; NULL finds
-- nothing. Plans are made anew for every search: a generic plan took 189 ms for a rare term, a custom one 0.1 ms.
CREATE FUNCTION search_documents(p_organization_id uuid, p_text text, p_number bigint, p_limit integer)
RETURNS TABLE (
    ticket_id uuid, number bigint, title text, status text, priority text, created_at timestamptz,
    title_headline text, text_headline text, score double precision
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $function$
#variable_conflict use_column
DECLARE
    query tsquery := websearch_to_tsquery('english', p_text);
BEGIN
    RETURN QUERY
    WITH newest AS (
        SELECT d.ticket_id, d.created_at, d.tsv
        FROM public.documents d
        WHERE d.organization_id = p_organization_id AND d.tsv @@ query
        ORDER BY d.created_at DESC
        LIMIT 200
    ), found AS (
        SELECT n.ticket_id,
               ts_rank(n.tsv, query)
               * (0.5 + 0.5 * exp(-greatest(extract(epoch FROM now() - n.created_at), 0)::float8 / (30 * 86400)))
               AS score
        FROM newest n
        UNION ALL
        SELECT d.ticket_id, 1.0
        FROM public.documents d
        WHERE d.organization_id = p_organization_id AND d.number = p_number
    ), best AS (
        SELECT f.ticket_id, max(f.score) AS score
        FROM found f
        GROUP BY f.ticket_id
        ORDER BY score DESC, f.ticket_id DESC
        LIMIT p_limit
    )
    SELECT d.ticket_id, d.number, d.title, d.status, d.priority, d.created_at,
           ts_headline('english', translate(d.title, E'\x01\x02', ''), query,
                       E'StartSel="\x01", StopSel="\x02", HighlightAll=true'),
           ts_headline('english',
                       translate(left(d.description, 8000) || E'\n' || right(d.comments, 8000), E'\x01\x02', ''),
                       query,
                       E'StartSel="\x01", StopSel="\x02", MaxFragments=2, MaxWords=20, MinWords=8, '
                       'FragmentDelimiter=" … "'),
           b.score
    FROM best b
    JOIN public.documents d ON d.organization_id = p_organization_id AND d.ticket_id = b.ticket_id
    ORDER BY b.score DESC, b.ticket_id DESC;
END
$function$;
REVOKE ALL ON FUNCTION search_documents(uuid, text, bigint, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION search_documents(uuid, text, bigint, integer) TO search_app;
