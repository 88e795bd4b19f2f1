-- The calls that `sluice jobs` and `sluice queue` make, with the worker's login; loaded with queries.sql.

-- name: list_jobs
select id, document_id, name, tenant_id, generation, state, stage, progress, attempt, max_attempts, rescues, snoozes, error_code,
       error_message, created_at, scheduled_at, started_at, finalized_at
  from ingest.list_jobs($1::public.job_state[], $2::uuid, $3::uuid, $4::text, $5::text, $6::interval, $7::text, $8::bigint, $9::int);

-- name: find_documents
select document_id, name, tenant_id, job_id from ingest.find_documents($1::uuid, $2::text);

-- name: find_objects
select object_id, bucket_id, name from ingest.find_objects($1::uuid, $2::text);

-- name: events_since
select id, at, job_id, document_id, name, tenant_id, generation, event, state, stage, attempt, seconds, error_code
  from ingest.events_since($1::timestamptz, $2::bigint, $3::uuid, $4::int);

-- name: database_now
select clock_timestamp();

-- name: explain_job
select ingest.explain_job($1::bigint, $2::uuid);

-- name: retry_by_hand
select job_id, done, why from ingest.retry_by_hand($1::bigint[]);

-- name: cancel_by_hand
select job_id, done, why from ingest.cancel_by_hand($1::bigint[]);

-- name: pause_by_hand
select ingest.pause_by_hand();

-- name: resume_by_hand
select ingest.resume_by_hand();

-- name: queue_status
select ingest.queue_status();
