-- The written list of who may do what. A test compares it with the catalogue.

revoke all on public.tenants, public.tenant_members, public.documents, public.jobs, public.job_events, public.pages, public.chunks
  from anon, authenticated, service_role;
-- Hosted projects grant new sequences of public as they do tables: anybody could set the next id.
revoke all on sequence public.jobs_id_seq, public.chunks_id_seq from anon, authenticated, service_role;
revoke execute on all functions in schema ingest from public, anon, authenticated, service_role;
revoke execute on function public.search(text, real[], integer, jsonb) from public, anon, service_role;

-- People: they read their tenants' rows and search them.
grant select on public.tenants, public.tenant_members, public.documents, public.jobs, public.job_events, public.pages, public.chunks
  to authenticated;
grant usage on schema ingest to authenticated;
grant select on ingest.embedding_models, ingest.embeddings to authenticated;
grant execute on function
  ingest.my_tenants(public.tenant_role),
  ingest.my_folders(public.tenant_role),
  ingest.watched_buckets(),
  ingest.tombstoned(),
  ingest.text_config(text),
  ingest.text_hits(tsquery, uuid[], uuid[], integer, integer),
  ingest.query_vector(real[], text, integer),
  ingest.search_filters(jsonb),
  ingest.query_words(text, text[]),
  public.search(text, real[], integer, jsonb)
  to authenticated;

-- Backends with the secret key read everything and write through Storage.
grant select on public.tenants, public.tenant_members, public.documents, public.jobs, public.job_events, public.pages, public.chunks
  to service_role;

-- The worker.
grant usage on schema public, ingest, extensions to ingest_worker;
grant update (paused_at) on ingest.queues to ingest_worker;
grant select on public.tenants, ingest.queues, ingest.embedding_models, ingest.buckets to ingest_worker;
grant select, update on public.documents, public.jobs to ingest_worker;
grant select, insert on public.job_events to ingest_worker;
grant usage on sequence ingest.job_events_id_seq to ingest_worker;
grant select, insert, update, delete on ingest.leases, ingest.turns, ingest.job_details, ingest.parses to ingest_worker;
grant select, insert, update, delete on ingest.alerts to ingest_worker;
grant select, insert, update on ingest.rate_limits to ingest_worker;
grant select, insert, delete on public.pages, public.chunks to ingest_worker;
-- Locking a row wants the right to update one of its columns; no function updates a vector.
grant select, insert, delete, update (created_at) on ingest.embeddings to ingest_worker;
grant execute on function
  ingest.wake(),
  ingest.want_broadcasts(interval, text),
  ingest.take_turn(uuid, timestamptz),
  ingest.next_due(uuid),
  ingest.tidy_turns(uuid[], timestamptz),
  ingest.pause_queue(text),
  ingest.resume_queue(text),
  ingest.claim_jobs(uuid, integer, interval, integer, integer),
  ingest.renew_leases(bigint[], bigint[], interval),
  ingest.hold_claim(bigint, bigint),
  ingest.mark_begun(bigint, bigint, boolean),
  ingest.begin_fetch(bigint, bigint),
  ingest.hold_current(bigint, bigint),
  ingest.note_stages(public.jobs, jsonb),
  ingest.enter_stage(bigint, bigint, text, real, jsonb),
  ingest.report_progress(bigint, bigint, real),
  ingest.settle_jobs(bigint[], bigint[], text, interval, text, text, text, boolean, jsonb, boolean),
  ingest.retry_job(bigint, bigint, interval, text, text, text),
  ingest.snooze_job(bigint, bigint, interval, text, text, text, boolean, boolean),
  ingest.release_jobs(bigint[], bigint[], text),
  ingest.cancel_job(bigint, bigint, text, text),
  ingest.discard_job(bigint, bigint, text, text, text),
  ingest.retry_discarded(bigint),
  ingest.claim_outcome(bigint, bigint),
  ingest.rescue_jobs(integer, integer),
  ingest.begin_parse(bigint, bigint, bytea, bigint, text, text, text, text),
  ingest.wake_for_parse(bigint),
  ingest.finish_parse(bigint, bigint, bigint, integer, text, text, text[]),
  ingest.fail_parse(bigint, bigint, bigint, text, text),
  ingest.missing_vectors(smallint, uuid, bytea[]),
  ingest.store_vectors(smallint, uuid),
  ingest.publish(bigint, bigint, smallint, bigint, text, jsonb, jsonb, integer[], integer[], integer[], integer[], integer[],
                 text[], text[], text[], bytea[]),
  ingest.text_config(text),
  ingest.to_fts(text, text, text),
  ingest.sweep_parses(interval, integer),
  ingest.sweep_embeddings(interval, integer),
  ingest.sweep_tombstones(integer),
  ingest.prune_jobs(interval, interval, integer),
  ingest.prune_events(interval),
  ingest.ensure_event_partitions(integer),
  ingest.without_secrets(text),
  ingest.raise_alert(text, text, text),
  ingest.resolve_alert(text, text),
  ingest.tidy_alerts(),
  ingest.bucket_size(integer),
  ingest.take_tokens(text, integer, integer, text),
  ingest.block_provider(text, interval, text),
  ingest.begin_reconcile(interval),
  ingest.end_reconcile(),
  ingest.reconcile_objects(text, text, integer, smallint, boolean),
  ingest.reconcile_documents(uuid, integer, boolean),
  ingest.missing_documents(text, integer, boolean),
  ingest.remove_missing(text, uuid[]),
  ingest.clear_trigger_failures(integer),
  ingest.count_objects(text),
  ingest.watch_bucket(text)
  to ingest_worker;
