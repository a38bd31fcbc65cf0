-- no transaction
-- The outbox's key names the tenant as every other key does: without it, one tenant's row could stand in the way of
-- another's with the same ticket id.

CREATE UNIQUE INDEX CONCURRENTLY idx_outbox_version ON outbox (organization_id, ticket_id, version);
-- The index above holds the guarantee.
-- squawk-ignore ban-drop-constraint
ALTER TABLE outbox DROP CONSTRAINT IF EXISTS outbox_ticket_id_version_key;
