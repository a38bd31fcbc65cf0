-- no transaction
-- Indexes that hold a list's order next to its filter, made while the service writes. A list without a status reads
-- each status's newest rows and merges them, so the status stands before the order everywhere.

CREATE INDEX CONCURRENTLY idx_tickets_assigned_to_new
    ON tickets (organization_id, assigned_to, status_id, created_at, id);
DROP INDEX CONCURRENTLY IF EXISTS idx_tickets_assigned_to;
ALTER INDEX idx_tickets_assigned_to_new RENAME TO idx_tickets_assigned_to;

CREATE INDEX CONCURRENTLY idx_tickets_user_id_new
    ON tickets (organization_id, user_id, status_id, created_at, id);
DROP INDEX CONCURRENTLY IF EXISTS idx_tickets_user_id;
ALTER INDEX idx_tickets_user_id_new RENAME TO idx_tickets_user_id;

CREATE INDEX CONCURRENTLY idx_tickets_status_priority_new
    ON tickets (organization_id, status_id, priority_id, created_at, id);
DROP INDEX CONCURRENTLY IF EXISTS idx_tickets_status_priority;
ALTER INDEX idx_tickets_status_priority_new RENAME TO idx_tickets_status_priority;

CREATE INDEX CONCURRENTLY idx_tickets_updated_at
    ON tickets (organization_id, status_id, updated_at, id);
