-- Explain: everything that is known about one job, gathered in one snapshot. What follows from it is reasoned in the
-- worker's command line, which asks nothing more.
--
-- It holds ids, names, states, codes, times and counts, and messages made for people. Of the error that is kept for
-- operators only a class or a status gets through, because a vendor's sentence may quote the document or a key.
--
-- Definer: the answer wants storage.objects, page counters and the audit, of which the worker's login sees nothing.

-- What the two budgets that bind this tenant allow and have spent today (UTC). As within_budget, which raises alerts.
create function ingest.budget_facts(p_tenant uuid)
returns jsonb language sql stable set search_path = '' set timezone = 'UTC' as $$
  select pg_catalog.jsonb_build_object(
    'tenant_usd', case when own.id is null then all_of.daily_usd else own.daily_usd end,
    'tenant_spent', coalesce((select pg_catalog.sum(d.money) from ingest.usage_days d where d.day = today.day and d.tenant_id = p_tenant), 0),
    'project_usd', all_of.project_daily_usd,
    'project_spent', coalesce((select pg_catalog.sum(d.money) from ingest.usage_days d where d.day = today.day), 0),
    'resets_at', (today.day + 1)::timestamp at time zone 'UTC')
    from (select (pg_catalog.clock_timestamp() at time zone 'UTC')::date as day) today
    left join ingest.budgets all_of on all_of.tenant_id is null
    left join ingest.budgets own on own.tenant_id = p_tenant
$$;

-- Where a tenant stands: what it runs, its place among those whose turn may come, and what is ahead of this job.
create function ingest.turn_facts(p_job public.jobs)
returns jsonb language sql stable set search_path = '' set timezone = 'UTC' as $$
  select pg_catalog.jsonb_build_object(
    'kind', (select t.kind from public.tenants t where t.id = p_job.tenant_id),
    'running', (select pg_catalog.count(*) from ingest.leases l where l.tenant_id = p_job.tenant_id),
    'holders', (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                  'job_id', h.job_id, 'stage', h.stage, 'worker_id', h.worker_id, 'taken_at', h.taken_at, 'lease_expires_at', h.expires_at,
                  'expired', h.expires_at < pg_catalog.clock_timestamp()) order by h.taken_at), '[]')
                  from (select l.*, j.stage from ingest.leases l left join public.jobs j on j.id = l.job_id
                         where l.tenant_id = p_job.tenant_id and l.job_id <> p_job.id order by l.taken_at limit 20) h),
    'quota_running', (ingest.quota_of(p_job.tenant_id)).running,
    'last_served_at', case when turn.last_served_at > '-infinity' then turn.last_served_at end,
    'tenants_ahead', (select pg_catalog.count(*) from ingest.turns o
                       where turn.tenant_id is not null and o.due_at <= pg_catalog.clock_timestamp() and o.tenant_id <> turn.tenant_id
                         and (o.last_served_at is null and turn.last_served_at is not null or o.last_served_at < turn.last_served_at
                              or o.last_served_at is not distinct from turn.last_served_at and o.tenant_id < turn.tenant_id)),
    'jobs_ahead', (select pg_catalog.count(*) from (
                     select 1 from public.jobs o
                      where o.tenant_id = p_job.tenant_id and o.state = 'available' and o.scheduled_at <= pg_catalog.clock_timestamp()
                        and (o.priority, o.scheduled_at, o.id) < (p_job.priority, p_job.scheduled_at, p_job.id) limit 100000) c))
    from (select 1) one left join ingest.turns turn on turn.tenant_id = p_job.tenant_id
$$;

-- The parse that this document waits for or has, and what became of the job that took it on.
create function ingest.parse_facts(p_parse bigint, p_job bigint)
returns jsonb language sql stable set search_path = '' set timezone = 'UTC' as $$
  select pg_catalog.jsonb_build_object(
    'id', p.id, 'state', p.state, 'parser', p.parser, 'parser_version', p.parser_version, 'created_at', p.created_at,
    'submitted_at', p.submitted_at, 'next_poll_at', p.next_poll_at, 'resubmits', p.resubmits, 'finished_at', p.finished_at,
    'page_count', p.page_count, 'error_code', p.error_code, 'error_message', p.error_message,
    'submitted_job', p.submitted_job, 'own', p.submitted_job = p_job,
    'submitter', (select pg_catalog.jsonb_build_object(
                    'job_id', j.id, 'state', j.state, 'stage', j.stage, 'error_code', j.error_code, 'scheduled_at', j.scheduled_at,
                    'lease_expires_at', l.expires_at, 'expired', l.expires_at < pg_catalog.clock_timestamp())
                    from public.jobs j left join ingest.leases l on l.job_id = j.id and l.claim = p.submitted_by
                   where j.id = p.submitted_job))
    from ingest.parses p where p.id = p_parse
$$;

-- Signs of life of the workers: their heartbeats, where they are written, and what they did last.
create function ingest.worker_facts()
returns jsonb language plpgsql stable set search_path = '' set timezone = 'UTC' as $$
declare
  v_facts jsonb := pg_catalog.jsonb_build_object(
    'heartbeats', false,
    'leases', (select pg_catalog.count(*) from ingest.leases l where l.expires_at > pg_catalog.clock_timestamp()),
    'last_claim_at', (select e.at from public.job_events e where e.event = 'claim' and e.at > pg_catalog.now() - interval '1 day'
                       order by e.at desc limit 1));
  v_more jsonb;
begin
  if pg_catalog.to_regclass('ingest.workers') is not null then
    execute $q$ select pg_catalog.jsonb_build_object(
        'heartbeats', true,
        'fresh', pg_catalog.count(*) filter (where w.seen_at > pg_catalog.clock_timestamp() - interval '25 seconds'),
        'slots', pg_catalog.sum(w.slots) filter (where w.seen_at > pg_catalog.clock_timestamp() - interval '25 seconds'),
        'ways', (select pg_catalog.jsonb_object_agg(o.wake_way, o.n) from (
                   select coalesce(i.wake_way, 'nothing') as wake_way, pg_catalog.count(*) as n from ingest.workers i
                    where i.seen_at > pg_catalog.clock_timestamp() - interval '25 seconds' group by 1) o),
        'last_seen_at', pg_catalog.max(w.seen_at),
        'seen', coalesce(pg_catalog.jsonb_object_agg(w.worker_id, w.seen_at), '{}'))
      from ingest.workers w $q$ into v_more;
    v_facts := v_facts || v_more;
  end if;
  if pg_catalog.to_regclass('ingest.probes') is not null then
    execute $q$ select pg_catalog.jsonb_build_object('probes', coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
        'service', p.service, 'status', p.status, 'code', p.code, 'checked_at', p.checked_at) order by p.service), '[]'))
      from ingest.probes p $q$ into v_more;
    v_facts := v_facts || v_more;
  end if;
  return v_facts;
end $$;

-- Everything about a job, about a document whose jobs were pruned, or about an object without a document; null when
-- there is none of them.
create function ingest.explain_job(p_job bigint, p_document uuid default null)
returns jsonb language plpgsql stable security definer set search_path = '' set timezone = 'UTC' as $$
declare
  v_job       public.jobs;
  v_document  public.documents;
  v_object    jsonb;                                       -- by to_jsonb, as in the trigger: columns may come and go
  v_tenant    uuid;
begin
  select * into v_job from public.jobs where id = p_job;
  select * into v_document from public.documents where id = coalesce(v_job.document_id, p_document);
  select pg_catalog.to_jsonb(o) into v_object from storage.objects o where o.id = coalesce(v_job.document_id, p_document);
  if v_job.id is null and v_document.id is null and v_object is null then return null; end if;
  v_tenant := coalesce(v_job.tenant_id, v_document.tenant_id);
  return pg_catalog.jsonb_build_object(
    'now', pg_catalog.clock_timestamp(),
    'job', case when v_job.id is not null then pg_catalog.to_jsonb(v_job) end,
    'document', case when v_document.id is not null then pg_catalog.jsonb_build_object(
        'id', v_document.id, 'name', v_document.name, 'bucket_id', v_document.bucket_id, 'tenant_id', v_document.tenant_id,
        'state', v_document.state, 'generation', v_document.generation, 'published_generation', v_document.published_generation,
        'size', v_document.size, 'mime_type', v_document.mime_type, 'error_code', v_document.error_code,
        'error_message', v_document.error_message, 'created_at', v_document.created_at, 'updated_at', v_document.updated_at,
        'published_at', v_document.published_at, 'page_count', v_document.page_count, 'chunk_count', v_document.chunk_count) end,
    'object', pg_catalog.jsonb_build_object(
        'there', v_object is not null, 'id', v_object ->> 'id', 'bucket_id', v_object ->> 'bucket_id', 'name', v_object ->> 'name',
        'created_at', v_object ->> 'created_at',
        'watched', exists (select 1 from ingest.buckets b where b.bucket_id = v_object ->> 'bucket_id'),
        'ignored', (select i.reason from ingest.ignored_objects i where i.object_id = (v_object ->> 'id')::uuid),
        'tombstone', exists (select 1 from ingest.tombstones t where t.object_id = coalesce(v_job.document_id, p_document)),
        'trigger_failure', (select f.sqlstate from ingest.trigger_failures f
                             where f.object_id = coalesce(v_job.document_id, p_document) order by f.id desc limit 1)),
    'newest', (select pg_catalog.jsonb_build_object('job_id', j.id, 'state', j.state, 'generation', j.generation, 'created_at', j.created_at)
                 from public.jobs j where j.document_id = coalesce(v_job.document_id, p_document) order by j.id desc limit 1),
    'beside', (select pg_catalog.jsonb_build_object('job_id', j.id, 'generation', j.generation, 'stage', j.stage, 'started_at', j.started_at)
                 from public.jobs j where j.document_id = v_job.document_id and j.state = 'running' and j.id <> v_job.id),
    'events', (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                  'id', e.id, 'at', e.at, 'event', e.event, 'state', e.state, 'stage', e.stage, 'attempt', e.attempt, 'claim', e.claim,
                  'seconds', extract(epoch from e.took)::double precision, 'code', e.error_code, 'detail', e.detail) order by e.id), '[]')
                 from (select * from public.job_events e where e.job_id = v_job.id order by e.id desc limit 1000) e),
    'lease', (select pg_catalog.jsonb_build_object('claim', l.claim, 'worker_id', l.worker_id, 'taken_at', l.taken_at, 'expires_at', l.expires_at,
                  'expired', l.expires_at < pg_catalog.clock_timestamp()) from ingest.leases l where l.job_id = v_job.id),
    'details', (select pg_catalog.jsonb_build_object('worker_id', d.worker_id,
                  'fault', pg_catalog.substring(d.raw_error, 'HTTP [0-9]{3}|[A-Z][A-Za-z]*(?:Error|Timeout|Exception)'),
                  'provider', pg_catalog.substring(d.raw_error, '\(([a-z][a-z0-9_-]{1,40}): [0-9.]+ s\)$'),
                  'awaiting_parse_id', d.awaiting_parse_id, 'updated_at', d.updated_at) from ingest.job_details d where d.job_id = v_job.id),
    'parse', ingest.parse_facts(coalesce((select d.awaiting_parse_id from ingest.job_details d where d.job_id = v_job.id), v_document.parse_id), v_job.id),
    'queue', (select pg_catalog.jsonb_build_object('paused_at', q.paused_at,
                'by', (select pg_catalog.jsonb_build_object('acted_as', a.acted_as, 'actor', a.actor, 'login', a.login, 'at', a.at)
                         from ingest.audit a where a.action = 'pause_queue' order by a.at desc limit 1))
                from ingest.queues q where q.name = 'ingest'),
    'tenant', case when v_job.id is not null then ingest.turn_facts(v_job) end,
    'workers', ingest.worker_facts(),
    'alerts', (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('kind', a.kind, 'subject', a.subject, 'message', a.message,
                  'raised_at', a.raised_at, 'last_at', a.last_at, 'count', a.count) order by a.raised_at), '[]')
                 from ingest.alerts a where a.resolved_at is null),
    'rate_limits', (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('provider', r.provider, 'key_name', r.key_name,
                  'requests_per_minute', r.requests_per_minute, 'tokens_per_minute', r.tokens_per_minute,
                  'requests_left', pg_catalog.round(r.requests_left::numeric, 1), 'tokens_left', pg_catalog.round(r.tokens_left::numeric, 0),
                  'blocked_until', r.blocked_until, 'blocked', coalesce(r.blocked_until > pg_catalog.clock_timestamp(), false)) order by r.provider), '[]')
                 from ingest.rate_limits r where r.provider <> 'search'),   -- those are people's own, of the search function
    'budget', ingest.budget_facts(v_tenant),
    'quota', case when v_document.id is not null then (
                select pg_catalog.jsonb_build_object('bytes', q.bytes, 'bytes_used', k.bytes, 'files', q.files, 'files_used', k.files,
                         'pages_month', q.pages_month,
                         'pages_used', coalesce((select m.pages from ingest.page_months m where m.tenant_id = v_tenant and m.month = ingest.this_month()), 0),
                         'over', ingest.over_quota(v_document),
                         'next_month', (ingest.this_month() + interval '1 month')::timestamp at time zone 'UTC')
                  from ingest.quota_of(v_tenant) q cross join ingest.kept_by(v_tenant) k) end,
    'model', (select pg_catalog.jsonb_build_object('provider', m.provider, 'name', m.name, 'dimensions', m.dimensions)
                from ingest.embedding_models m where m.active),
    'usage', (select pg_catalog.jsonb_build_object('pages', coalesce(pg_catalog.sum(u.pages), 0), 'tokens', coalesce(pg_catalog.sum(u.tokens), 0),
                  'requests', coalesce(pg_catalog.sum(u.requests), 0), 'usd', pg_catalog.sum(u.money)::text)
                from ingest.usage u where u.job_id = v_job.id),
    'acts', (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('at', a.at, 'action', a.action, 'acted_as', a.acted_as,
                  'actor', a.actor, 'login', a.login) order by a.at), '[]')
               from (select * from ingest.audit a
                      where a.action in ('retry_job', 'cancel_job', 'retry_jobs', 'cancel_jobs') and a.at >= v_job.created_at
                        and (a.subject -> 'job' = pg_catalog.to_jsonb(v_job.id) or a.subject -> 'jobs' @> pg_catalog.to_jsonb(v_job.id))
                      order by a.at desc limit 20) a));
end $$;

revoke execute on function
  ingest.budget_facts(uuid), ingest.turn_facts(public.jobs), ingest.parse_facts(bigint, bigint), ingest.worker_facts(),
  ingest.explain_job(bigint, uuid)
  from public, anon, authenticated, service_role;
grant execute on function ingest.explain_job(bigint, uuid) to ingest_worker;
