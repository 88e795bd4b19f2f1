-- The claim's plan is made once a connection and not anew for each call, which was a third of its time: 1.2 ms, not 1.8.
--
-- A plan that is kept may have been made while the tables were empty, where any way costs the same, and meet a backlog:
-- with 60,000 jobs waiting such a one took 186 ms. With these switches the plan is
-- the one that the claim is written for: by its indexes, in their order, row by row (1.2 ms beside that backlog, where
-- a plan for each call took 2.1, and 3.1 beside 500 more tenants, where it took 3.7).
alter function ingest.claim_jobs(uuid, integer, interval, integer, integer) set plan_cache_mode = force_generic_plan;
alter function ingest.claim_jobs(uuid, integer, interval, integer, integer) set enable_seqscan = off;
alter function ingest.claim_jobs(uuid, integer, interval, integer, integer) set enable_sort = off;
alter function ingest.claim_jobs(uuid, integer, interval, integer, integer) set enable_hashjoin = off;
alter function ingest.claim_jobs(uuid, integer, interval, integer, integer) set enable_mergejoin = off;
