-- no transaction
-- Indexes that hold a list's whole filter before its order, made while the service writes. Status and priority have
-- four values each, so a list that leaves them open reads the newest entries of each pair and merges them; no list
-- reads past entries that it does not show. What a list is filtered by next to that is included.

CREATE INDEX CONCURRENTLY idx_tickets_assigned_to_new
    ON tickets (organization_id, assigned_to, status_id, priority_id, created_at, id) INCLUDE (user_id);
DROP INDEX CONCURRENTLY IF EXISTS idx_tickets_assigned_to;
ALTER INDEX idx_tickets_assigned_to_new RENAME TO idx_tickets_assigned_to;

CREATE INDEX CONCURRENTLY idx_tickets_user_id_new
    ON tickets (organization_id, user_id, status_id, priority_id, created_at, id) INCLUDE (assigned_to);
DROP INDEX CONCURRENTLY IF EXISTS idx_tickets_user_id;
ALTER INDEX idx_tickets_user_id_new RENAME TO idx_tickets_user_id;

CREATE INDEX CONCURRENTLY idx_tickets_status_priority_new
    ON tickets (organization_id, status_id, priority_id, created_at, id);
DROP INDEX CONCURRENTLY IF EXISTS idx_tickets_status_priority;
ALTER INDEX idx_tickets_status_priority_new RENAME TO idx_tickets_status_priority;

-- The same for the order of the last change.
CREATE INDEX CONCURRENTLY idx_tickets_updated_at
    ON tickets (organization_id, status_id, priority_id, updated_at, id);
CREATE INDEX CONCURRENTLY idx_tickets_assigned_to_updated_at
    ON tickets (organization_id, assigned_to, status_id, priority_id, updated_at, id) INCLUDE (user_id);
CREATE INDEX CONCURRENTLY idx_tickets_user_id_updated_at
    ON tickets (organization_id, user_id, status_id, priority_id, updated_at, id) INCLUDE (assigned_to);
