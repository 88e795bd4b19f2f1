-- Every call that the worker makes, by name. Logic is in the migrations; this file only calls it.
-- A test prepares each against the migrated schema.
--
-- What says no_wait need not be on disk before the worker goes on: a crash of the database may take it, and the job
-- begins anew as if the worker had died a moment sooner. The next commit that waits writes it too, in order. A commit
-- on a busy disk takes milliseconds, and nine of them were most of what an idle worker's document waited for.

-- name: claim_jobs
select job_id, claim, document_id, tenant_id, generation, attempt, max_attempts, rescues
  from ingest.claim_jobs($1::uuid, $2::int, $3::interval, $4::int);

-- name: renew_leases
select job_id, answer from ingest.renew_leases($1::bigint[], $2::bigint[], $3::interval);

-- name: mark_begun
select ingest.mark_begun($1::bigint, $2::bigint, $3::boolean);

-- name: refuse_over_quota
select ingest.refuse_over_quota($1::bigint, $2::bigint, $3::text);

-- name: retry_over_quota
select ingest.retry_over_quota();

-- name: begin_fetch
select bucket_id, name, object_version, size, language, set_config('synchronous_commit', 'off', true) as no_wait
  from ingest.begin_fetch($1::bigint, $2::bigint);

-- name: enter_stage
select ingest.enter_stage($1::bigint, $2::bigint, $3::text, $4::real, $5::jsonb), set_config('synchronous_commit', 'off', true) as no_wait;

-- name: report_progress
select ingest.report_progress($1::bigint, $2::bigint, $3::real), set_config('synchronous_commit', 'off', true) as no_wait;

-- name: begin_parse
select parse_id, outcome, remote_ref, error_code, error_message,
       set_config('synchronous_commit', case $6 when 'local' then 'off' else current_setting('synchronous_commit') end, true) as no_wait
  from ingest.begin_parse($1::bigint, $2::bigint, $3::bytea, $4::bigint, $5::text, $6::text, $7::text, $8::text);

-- name: store_parse
select ingest.store_parse($1::bigint, $2::bigint, $3::bigint, $4::uuid, $5::int[], $6::text[], $7::text, $8::text, $9::text[]),
       set_config('synchronous_commit', 'off', true) as no_wait;

-- name: store_parse_and_begin_embed
select parse_id, outcome, error_code, error_message, missing, set_config('synchronous_commit', 'off', true) as no_wait
  from ingest.store_parse_and_begin_embed($1::bigint, $2::bigint, $3::bytea, $4::bigint, $5::text, $6::text, $7::text, $8::text,
    $9::uuid, $10::int[], $11::text[], $12::text, $13::text[], $14::real, $15::jsonb, $16::smallint, $17::bytea[]);

-- name: fail_parse
select ingest.fail_parse($1::bigint, $2::bigint, $3::bigint, $4::text, $5::text);

-- name: expect_webhook
select ingest.expect_webhook($1::bigint, $2::bigint, $3::bigint, $4::bytea);

-- name: note_submitted
select ingest.note_submitted($1::bigint, $2::bigint, $3::bigint, $4::text, $5::interval);

-- name: take_polls
select parse_id, tenant_id, job_id, claim, document_id, remote_ref, waited
  from ingest.take_polls($1::text, $2::int, $3::interval);

-- name: hold_remote_parse
select ingest.hold_remote_parse($1::bigint, $2::text);

-- name: poll_again
select ingest.poll_again($1::bigint, $2::text, $3::interval);

-- name: finish_remote_parse
select ingest.finish_remote_parse($1::bigint, $2::text, $3::int, $4::text, $5::text[]);

-- name: fail_remote_parse
select ingest.fail_remote_parse($1::bigint, $2::text, $3::text, $4::text);

-- name: resubmit_parse
select ingest.resubmit_parse($1::bigint, $2::text, $3::text, $4::text);

-- name: expire_parses
select ingest.expire_parses($1::interval);

-- name: note_fidelity
select ingest.note_fidelity($1::bigint, $2::real, $3::text);

-- name: read_parse
select title, mime_type, notes, fidelity from ingest.parses where id = $1::bigint;

-- name: read_pages
select page, markdown from public.pages where parse_id = $1::bigint order by page;

-- name: active_model
select id, provider, name, dimensions from ingest.embedding_models where active;

-- name: begin_embed
select begin_embed, set_config('synchronous_commit', 'off', true) as no_wait
  from ingest.begin_embed($1::bigint, $2::bigint, $3::real, $4::jsonb, $5::smallint, $6::uuid, $7::bytea[]);

-- name: prepare_incoming_embeddings
create temp table if not exists incoming_embeddings (
  tenant_id uuid, content_sha256 bytea, embedding extensions.halfvec) on commit delete rows;

-- name: store_embeddings
select ingest.store_embeddings($1::smallint);

-- name: note_embedded
select ingest.note_embedded($1::bigint, $2::bigint);

-- name: publish
select ingest.publish($1::bigint, $2::bigint, $3::smallint, $4::bigint, $5::text, $6::jsonb, $7::jsonb, $8::int[], $9::int[],
  $10::int[], $11::int[], $12::int[], $13::text[], $14::text[], $15::text[], $16::bytea[]);

-- name: retry_job
select ingest.retry_job($1::bigint, $2::bigint, $3::interval, $4::text, $5::text, $6::text);

-- name: snooze_job
select ingest.snooze_job($1::bigint, $2::bigint, $3::interval, $4::text, $5::text, $6::text, $7::boolean, $8::boolean);

-- name: release_jobs
select release_jobs from ingest.release_jobs($1::bigint[], $2::bigint[], $3::text);

-- name: cancel_job
select ingest.cancel_job($1::bigint, $2::bigint, $3::text, $4::text);

-- name: discard_job
select ingest.discard_job($1::bigint, $2::bigint, $3::text, $4::text, $5::text);

-- name: claim_outcome
select ingest.claim_outcome($1::bigint, $2::bigint);

-- name: rescue_jobs
select job_id, state from ingest.rescue_jobs();

-- name: sweep_tombstones
select ingest.sweep_tombstones();

-- name: sweep_parses
select ingest.sweep_parses($1::interval);

-- name: sweep_embeddings
select ingest.sweep_embeddings($1::interval);

-- name: prune_jobs
select ingest.prune_jobs($1::interval, $2::interval, $3::int);

-- name: prune_events
select ingest.prune_events($1::interval);

-- name: ensure_event_partitions
select ingest.ensure_event_partitions();

-- name: raise_alert
select ingest.raise_alert($1::text, $2::text, $3::text);

-- name: resolve_alert
select ingest.resolve_alert($1::text, $2::text);

-- name: tidy_alerts
select ingest.tidy_alerts();

-- name: take_tokens
select ingest.take_tokens($1::text, $2::int, $3::int, $4::text), set_config('synchronous_commit', 'off', true) as no_wait;

-- name: block_provider
select ingest.block_provider($1::text, $2::interval, $3::text);

-- name: record_usage
select ingest.record_usage($1::text, $2::bigint[], $3::bigint[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[],
  $9::bigint[], $10::bigint[], $11::int[]);

-- name: within_budget
select code, subject, resets_in from ingest.within_budget($1::uuid);

-- name: usage_by
select key, pages, tokens, requests, money, unpriced from ingest.usage_by($1::text, $2::uuid, $3::timestamptz);

-- name: set_budget
select ingest.set_budget($1::text, $2::uuid, $3::numeric);

-- name: list_budgets
select scope, tenant_id, daily_usd, spent_usd from ingest.list_budgets();

-- name: set_quota
select ingest.set_quota($1::uuid, $2::bigint, $3::bigint, $4::bigint, $5::int);

-- name: list_quotas
select tenant_id, bytes, files, pages_month, running, bytes_kept, files_kept, pages_read, running_now from ingest.list_quotas();

-- name: configure_rate_limit
select ingest.configure_rate_limit($1::text, $2::int, $3::int);

-- name: begin_reconcile
select ingest.begin_reconcile($1::interval);

-- name: end_reconcile
select ingest.end_reconcile();

-- name: watched_buckets
select bucket_id from ingest.buckets order by bucket_id;

-- name: reconcile_objects
select last_name, seen, missing, behind, mended, failed
  from ingest.reconcile_objects($1::text, $2::text, $3::int, $4::smallint, $5::boolean);

-- name: reconcile_documents
select last_id, seen, gone, idle, enqueued from ingest.reconcile_documents($1::uuid, $2::int, $3::boolean);

-- name: missing_documents
select document_id, name, refused from ingest.missing_documents($1::text, $2::int, $3::boolean);

-- name: remove_missing
select ingest.remove_missing($1::text, $2::uuid[]);

-- name: clear_trigger_failures
select ingest.clear_trigger_failures();

-- name: count_objects
select ingest.count_objects($1::text);

-- name: watch_bucket
select ingest.watch_bucket($1::text);

-- name: want_broadcasts
select ingest.want_broadcasts($1::interval, $2::text);

-- name: notify
select pg_notify($1::text, $2::text);

-- name: backend_pid
select pg_backend_pid();

-- name: beat
select ingest.beat($1::uuid, $2::text, $3::text, $4::int, $5::text, $6::int, $7::int, $8::text, $9::text, $10::text, $11::text, $12::text),
       set_config('synchronous_commit', 'off', true) as no_wait;

-- name: leave_worker
select ingest.leave_worker($1::uuid);

-- name: take_probes
select take_probes as service, set_config('synchronous_commit', 'off', true) as no_wait
  from ingest.take_probes($1::uuid, $2::text[], $3::interval);

-- name: record_probe
select ingest.record_probe($1::uuid, $2::text, $3::real, $4::text, $5::text), set_config('synchronous_commit', 'off', true) as no_wait;

-- name: queue_depth
select ingest.queue_depth();

-- Operators' own: the worker may not.

-- name: list_models
select id, provider, name, dimensions, active, ingest.documents_without_vectors(id) as documents_without_vectors
  from ingest.embedding_models order by id;

-- name: add_model
select ingest.add_embedding_model($1::text, $2::text, $3::int);

-- name: activate_model
select ingest.activate_embedding_model($1::smallint);

-- name: erasable
select tenant_id, kind, name, members, documents, jobs from ingest.erasable($1::uuid[]);

-- name: objects_of
select bucket_id, name from ingest.objects_of($1::uuid, $2::int);

-- name: erase_rows
select ingest.erase_rows($1::uuid, $2::int);

-- name: remove_verify_users
select ingest.remove_verify_users($1::uuid[]);
