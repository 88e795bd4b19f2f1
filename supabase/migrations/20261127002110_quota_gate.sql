-- Quotas at the claim: whatever got past the policy is refused here, before its bytes are read, and a
-- tenant runs no more jobs at once than its quota says.
--
-- What is refused ends `discarded` with code quota_exceeded; the object stays, the attempt is given back.
-- It comes back by itself when there is room: files were deleted, the quota was raised, a month began.

create index documents_over_quota_idx on public.documents (tenant_id, created_at, id) where error_code = 'quota_exceeded';

-- Why this document may not be read now, null when it may. Bytes and files are counted up to it, in the
-- order in which files came: of uploads that raced past the policy the first ones fit, whoever is
-- claimed first, and an early file that was overwritten by a larger one may pass at the cost of nobody:
-- together that is twice the quota at most. Pages that were read already are not asked for again.
create function ingest.over_quota(p_document public.documents)
returns text language plpgsql stable set search_path = '' as $$
declare
  v_quota  ingest.quotas := ingest.quota_of(p_document.tenant_id);
  v_kept   record;
  v_pages  bigint;
begin
  if v_quota.files is not null or v_quota.bytes is not null then
    select * into v_kept from ingest.kept_by(p_document.tenant_id, p_document);
    if v_kept.files > v_quota.files then return ingest.quota_message('files', v_kept.files, v_quota.files); end if;
    if v_kept.bytes > v_quota.bytes then return ingest.quota_message('bytes', v_kept.bytes, v_quota.bytes); end if;
  end if;
  if v_quota.pages_month is not null
     and not exists (select 1 from ingest.parses p where p.id = p_document.parse_id and p.state in ('waiting', 'done')) then
    select m.pages into v_pages from ingest.page_months m where m.tenant_id = p_document.tenant_id and m.month = ingest.this_month();
    if coalesce(v_pages, 0) >= v_quota.pages_month then
      return ingest.quota_message('pages', coalesce(v_pages, 0), v_quota.pages_month);
    end if;
  end if;
  return null;
end $$;

-- Begin an attempt: say which object to read, as it is named now.
--
-- Definer, because storage.objects shows no rows to a role without a policy. Raises IG001 for a
-- stale claim and IG002 when the document is gone or has a newer generation. A null bucket_id says
-- that the document has no object any more. Raises IG011 with a message for people when the document is
-- beyond its tenant's quota.
create or replace function ingest.begin_fetch(p_job bigint, p_claim bigint)
returns table (bucket_id text, name text, object_version text, size bigint, language text)
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  v_job       public.jobs;
  v_document  public.documents;
  v_over      text;
begin
  perform ingest.hold_claim(p_job, p_claim);
  select * into v_job from public.jobs j where j.id = p_job;
  update public.documents d set state = 'processing', error_code = null, error_message = null, updated_at = pg_catalog.now()
   where d.id = v_job.document_id and d.generation = v_job.generation
  returning * into v_document;
  if not found then
    raise exception 'job % is superseded', p_job using errcode = 'IG002';
  end if;
  v_over := ingest.over_quota(v_document);
  if v_over is not null then raise exception '%', v_over using errcode = 'IG011'; end if;
  return query
    select o.bucket_id, o.name, o.version, coalesce(ingest.object_size(o.metadata), v_document.size), v_document.language
      from (select 1) one left join storage.objects o on o.id = v_document.id;
end $$;

-- End a claimed job that is beyond its tenant's quota; its attempt is given back.
create function ingest.refuse_over_quota(p_job bigint, p_claim bigint, p_message text)
returns text language plpgsql set search_path = '' as $$
declare
  v_verdict text;
begin
  select s.verdict into v_verdict
    from ingest.settle_jobs(array[p_job], array[p_claim], 'discard', p_code => 'quota_exceeded', p_message => p_message) s;
  if v_verdict is not null then
    update public.jobs set attempt = greatest(0, attempt - 1) where id = p_job and claim = p_claim and state = 'discarded';
  end if;
  return v_verdict;
end $$;

-- Bring back what was refused and fits now, the oldest of each tenant first; returns how many. Definer:
-- the worker calls it now and then, and may read no other counters.
create function ingest.retry_over_quota(p_limit integer default 100)
returns integer language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_tenant    uuid;
  v_document  public.documents;
  v_job       bigint;
  v_jobs      bigint[] := '{}';
begin
  if (p_limit between 1 and 1000) is not true then
    raise exception 'p_limit is %, it must be between 1 and 1000', p_limit using errcode = '22023';
  end if;
  for v_tenant in select distinct d.tenant_id from public.documents d where d.error_code = 'quota_exceeded' loop
    for v_document in
      select * from public.documents d where d.tenant_id = v_tenant and d.error_code = 'quota_exceeded' order by d.created_at, d.id
    loop
      exit when cardinality(v_jobs) >= p_limit;
      -- What does not fit ends the line: nothing behind it does.
      exit when ingest.over_quota(v_document) is not null;
      select j.id into v_job from public.jobs j
       where j.document_id = v_document.id and j.generation = v_document.generation and j.state = 'discarded'
       order by j.id desc limit 1;
      if found then v_jobs := v_jobs || v_job; end if;
    end loop;
  end loop;
  return ingest.retry_ended(v_jobs, 'quota');
end $$;

-- Set a tenant's quotas, or with null those of everybody without a row of their own; null is no limit.
-- What was refused and fits now comes back; returns how many. Definer: the worker's login may not write
-- quotas in any other way.
create function ingest.set_quota(p_tenant uuid, p_bytes bigint, p_files bigint, p_pages_month bigint, p_running integer)
returns integer language plpgsql security definer set search_path = '' as $$
begin
  insert into ingest.quotas (tenant_id, bytes, files, pages_month, running)
  values (p_tenant, p_bytes, p_files, p_pages_month, p_running)
  on conflict (tenant_id) do update set bytes = excluded.bytes, files = excluded.files, pages_month = excluded.pages_month,
         running = excluded.running, updated_at = pg_catalog.now();
  perform ingest.wake();
  return ingest.retry_over_quota();
end $$;

-- As before, and a tenant's quota of running jobs is a cap of its own (as fast as before: 1,974 jobs/s beside
-- 1,909, and 1,911 when each of 300 tenants has a row).
create or replace function ingest.claim_jobs(
  p_worker      uuid,
  p_limit       integer,
  p_lease       interval,
  p_tenant_cap  integer,
  p_sample      integer default 256                        -- tenants looked at in one claim
)
returns table (job_id bigint, claim bigint, document_id uuid, tenant_id uuid, generation bigint,
               attempt smallint, max_attempts smallint, rescues smallint)
language plpgsql set search_path = '' set jit = off as $$
#variable_conflict use_column
declare
  v_now      timestamptz;
  v_tenants  uuid[];
  v_left     integer := p_limit;
  v_jobs     bigint[];
  v_cut      boolean := false;                             -- a rescued job ended the batch
  v_running  integer;                                      -- what everybody without a quota of their own may run at once
begin
  if (p_limit between 1 and 1000 and p_tenant_cap >= 1 and p_sample between 1 and 100000 and p_lease > interval '0') is not true then
    raise exception 'claim_jobs: limit %, tenant cap %, sample % or lease % is out of range', p_limit, p_tenant_cap, p_sample, p_lease
      using errcode = '22023';
  end if;
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    -- The lock must come before the snapshot, or the cap counts leases as they were.
    raise exception 'claim_jobs needs read committed' using errcode = 'IG004';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(7150010001);
  if exists (select 1 from ingest.queues q where q.name = 'ingest' and q.paused_at is not null) then return; end if;
  v_now := pg_catalog.clock_timestamp();
  select coalesce(q.running, p_tenant_cap) into v_running from ingest.quotas q where q.tenant_id is null;

  select pg_catalog.array_agg(s.tenant_id) into v_tenants
    from (select t.tenant_id from ingest.turns t where t.due_at <= v_now
           order by t.last_served_at nulls first, t.tenant_id limit p_sample) s;
  if v_tenants is null then return; end if;

  for v_pass in 1..2 loop
    with load as (
      select l.tenant_id, pg_catalog.count(*)::integer as n from ingest.leases l group by 1
    ), tenants as (
      select s.tenant_id, t.last_served_at, coalesce(load.n, 0) as n,
             case when q.tenant_id is null then v_running else q.running end as running,   -- null: no limit of its own
             case when v_pass = 1
                  then (pg_catalog.sum(coalesce(load.n, 0)) over () + v_left) / pg_catalog.count(*) over () + 1
                  else 2147483647 end as level
        from pg_catalog.unnest(v_tenants) as s(tenant_id)
        join ingest.turns t on t.tenant_id = s.tenant_id
        left join load on load.tenant_id = s.tenant_id
        left join ingest.quotas q on q.tenant_id = s.tenant_id
    ), head as (
      select j.id, j.priority, j.scheduled_at, t.last_served_at,
             t.n + pg_catalog.row_number() over (partition by t.tenant_id order by j.priority, j.scheduled_at, j.id) as turn,
             pg_catalog.row_number() over (partition by j.document_id order by j.priority, j.scheduled_at, j.id) as nth_of_document
        from tenants t cross join lateral (
          select q.id, q.document_id, q.priority, q.scheduled_at from public.jobs q
           where q.tenant_id = t.tenant_id and q.state = 'available' and q.scheduled_at <= v_now
             and not exists (select 1 from public.jobs r where r.document_id = q.document_id and r.state = 'running')
           order by q.priority, q.scheduled_at, q.id
           limit greatest(0, least(v_left, least(p_tenant_cap, t.running, t.level) - t.n))) j
    ), pick as (
      -- Locked in order of turn, and rows that somebody holds are stepped over before the limit counts.
      select j.id, j.rescues, h.turn, h.last_served_at, h.priority, h.scheduled_at
        from public.jobs j join head h on h.id = j.id
       where h.nth_of_document = 1 and j.state = 'available'
       order by h.turn, h.last_served_at nulls first, h.priority, h.scheduled_at, h.id
       limit v_left
         for no key update of j skip locked
    ), line as (
      select p.id, p.rescues,
             pg_catalog.row_number() over (order by p.turn, p.last_served_at nulls first, p.priority, p.scheduled_at, p.id) as place
        from pick p
    ), cut as (
      select pg_catalog.min(l.place) as place from line l where l.rescues > 0
    )
    select pg_catalog.array_agg(l.id order by l.place)
             filter (where l.place < cut.place or cut.place is null or l.place = 1 and v_left = p_limit),
           pg_catalog.bool_or(cut.place is not null)
      into v_jobs, v_cut from line l cross join cut;
    continue when v_jobs is null and v_cut is not true;
    exit when v_jobs is null;

    return query
    with taken as (
      update public.jobs j
         set state = 'running', attempt = j.attempt + 1, claim = j.claim + 1, stage = 'fetch', progress = 0,
             started_at = pg_catalog.clock_timestamp(), error_code = null, error_message = null
        from pg_catalog.unnest(v_jobs) as pick(id) where j.id = pick.id
      returning j.*
    ), leased as (
      insert into ingest.leases (job_id, claim, worker_id, tenant_id, taken_at, expires_at)
      select k.id, k.claim, p_worker, k.tenant_id, k.started_at, pg_catalog.clock_timestamp() + p_lease from taken k
      on conflict (job_id) do update set claim = excluded.claim, worker_id = excluded.worker_id,
             taken_at = excluded.taken_at, expires_at = excluded.expires_at   -- heals a row that somebody reset by hand
    ), logged as (
      insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, stage, attempt, claim, took)
      select k.id, k.document_id, k.generation, k.tenant_id, 'claim', k.state, k.stage, k.attempt, k.claim, k.started_at - k.scheduled_at
        from taken k
    ), turn as (
      select t.tenant_id from ingest.turns t where t.tenant_id in (select k.tenant_id from taken k)
         for no key update skip locked
    ), served as (
      update ingest.turns t set last_served_at = v_now from turn where t.tenant_id = turn.tenant_id
    )
    select k.id, k.claim, k.document_id, k.tenant_id, k.generation, k.attempt, k.max_attempts, k.rescues from taken k;
    v_left := v_left - pg_catalog.cardinality(v_jobs);
    exit when v_left <= 0 or v_cut;
  end loop;

  -- Unserved tenants at the head of the line would fill the sample for ever. When the batch was
  -- filled only the first few are looked at: those behind them may simply be waiting.
  select pg_catalog.array_agg(s.tenant_id) into v_tenants from (
    select t.tenant_id from ingest.turns t
     where t.tenant_id = any (v_tenants) and t.last_served_at is distinct from v_now
     order by t.last_served_at nulls first limit case when v_left > 0 and v_cut is not true then p_sample else 32 end) s;
  if v_tenants is not null then perform ingest.tidy_turns(v_tenants, v_now); end if;
end $$;

revoke execute on function
  ingest.over_quota(public.documents), ingest.refuse_over_quota(bigint, bigint, text), ingest.retry_over_quota(integer),
  ingest.set_quota(uuid, bigint, bigint, bigint, integer)
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.refuse_over_quota(bigint, bigint, text), ingest.retry_over_quota(integer), ingest.set_quota(uuid, bigint, bigint, bigint, integer)
  to ingest_worker;
