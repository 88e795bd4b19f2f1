-- Claim a batch: by turn among tenants, then priority, then age; one running job a document; an
-- exact cap a tenant.
--
-- Claims stand in line under one advisory lock, which is what makes the cap exact. Nothing inside it
-- may wait for anybody's transaction: picked jobs and turns are locked with SKIP LOCKED (measured
-- otherwise: one tenant's open transaction of 4 s held every other tenant's claim for 3.5 s).
--
-- A job that was rescued may be what killed its worker, so it comes alone, and its worker starts it
-- when nothing else runs there. The batch ends before it or, when it is first in line, with it; it
-- keeps its place, so that neither it nor those behind it wait for ever.
--
-- Each tenant's read is bounded by the level that all tenants would reach together, in two passes:
-- first everybody up to the common level, then whoever still has work (27,000 jobs/s where reading
-- up to the batch size from every tenant gave 10,000).

-- Stop giving out jobs of this queue: every claim from now on returns nothing; what runs goes on.
-- Returns since when it is paused, which a second call does not change.
create function ingest.pause_queue(p_queue text default 'ingest')
returns timestamptz language plpgsql set search_path = '' as $$
declare
  v_since timestamptz;
begin
  update ingest.queues set paused_at = coalesce(paused_at, pg_catalog.clock_timestamp()) where name = p_queue
  returning paused_at into v_since;
  if not found then
    raise exception 'there is no queue "%"', p_queue using errcode = '22023', hint = 'select name from ingest.queues lists them.';
  end if;
  return v_since;
end $$;

-- Give out jobs of this queue again, and wake the workers. Returns whether it was paused.
create function ingest.resume_queue(p_queue text default 'ingest')
returns boolean language plpgsql set search_path = '' as $$
begin
  update ingest.queues set paused_at = null where name = p_queue and paused_at is not null;
  if found then
    perform ingest.wake();
    return true;
  end if;
  if not exists (select 1 from ingest.queues where name = p_queue) then
    raise exception 'there is no queue "%"', p_queue using errcode = '22023', hint = 'select name from ingest.queues lists them.';
  end if;
  return false;
end $$;

-- When the next job of this tenant is due; null when none waits.
--
-- A seek for each priority: the index begins with (tenant_id, priority, scheduled_at). Asked as an
-- anti-join, a table that holds one tenant's backlog was read whole (35 ms at 200,000 jobs).
create function ingest.next_due(p_tenant uuid)
returns timestamptz language sql stable set search_path = '' as $$
  select pg_catalog.min(first.scheduled_at)
    from pg_catalog.generate_series(1, 4) as p(priority)
   cross join lateral (select j.scheduled_at from public.jobs j
                        where j.tenant_id = p_tenant and j.state = 'available' and j.priority = p.priority
                        order by j.scheduled_at limit 1) first
$$;

-- Drop the turns of tenants that have nothing waiting, and postpone those with nothing due.
--
-- Two statements on purpose: the locks are taken first, so that the second one's snapshot sees every
-- job that an enqueue committed while it held the same row.
create function ingest.tidy_turns(p_tenants uuid[], p_now timestamptz)
returns void language plpgsql set search_path = '' as $$
declare
  v_locked uuid[];
begin
  select pg_catalog.array_agg(l.tenant_id) into v_locked from (
    select t.tenant_id from ingest.turns t
     where t.tenant_id = any (p_tenants) and coalesce(ingest.next_due(t.tenant_id), 'infinity') > p_now
       for update skip locked) l;
  if v_locked is null then return; end if;

  with next as materialized (
    select t.tenant_id, ingest.next_due(t.tenant_id) as due_at from pg_catalog.unnest(v_locked) as t(tenant_id)
  ), gone as (
    delete from ingest.turns t using next n where t.tenant_id = n.tenant_id and n.due_at is null
  )
  update ingest.turns t set due_at = n.due_at from next n where t.tenant_id = n.tenant_id and n.due_at <> t.due_at;
end $$;

create function ingest.claim_jobs(
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

  select pg_catalog.array_agg(s.tenant_id) into v_tenants
    from (select t.tenant_id from ingest.turns t where t.due_at <= v_now
           order by t.last_served_at nulls first, t.tenant_id limit p_sample) s;
  if v_tenants is null then return; end if;

  for v_pass in 1..2 loop
    with load as (
      select l.tenant_id, pg_catalog.count(*)::integer as n from ingest.leases l group by 1
    ), tenants as (
      select s.tenant_id, t.last_served_at, coalesce(load.n, 0) as n,
             case when v_pass = 1
                  then (pg_catalog.sum(coalesce(load.n, 0)) over () + v_left) / pg_catalog.count(*) over () + 1
                  else 2147483647 end as level
        from pg_catalog.unnest(v_tenants) as s(tenant_id)
        join ingest.turns t on t.tenant_id = s.tenant_id
        left join load on load.tenant_id = s.tenant_id
    ), head as (
      select j.id, j.priority, j.scheduled_at, t.last_served_at,
             t.n + pg_catalog.row_number() over (partition by t.tenant_id order by j.priority, j.scheduled_at, j.id) as turn,
             pg_catalog.row_number() over (partition by j.document_id order by j.priority, j.scheduled_at, j.id) as nth_of_document
        from tenants t cross join lateral (
          select q.id, q.document_id, q.priority, q.scheduled_at from public.jobs q
           where q.tenant_id = t.tenant_id and q.state = 'available' and q.scheduled_at <= v_now
             and not exists (select 1 from public.jobs r where r.document_id = q.document_id and r.state = 'running')
           order by q.priority, q.scheduled_at, q.id
           limit greatest(0, least(v_left, least(p_tenant_cap, t.level) - t.n))) j
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
