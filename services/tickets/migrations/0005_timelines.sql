-- A dump brings timelines that another cluster has lived on. Whoever sees the primary removes those that it has not.
GRANT DELETE ON database_timelines TO tickets_app;
