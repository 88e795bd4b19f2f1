-- What `sluice jobs` and `sluice queue` do with the worker's login: the same as operators do through the API, for
-- jobs that were counted and shown first. Each call writes its row into ingest.audit, with the login and no person.
--
-- Definer: the login may write neither the audit nor, by itself, another's cancel. Whoever may log in as the worker
-- may call these; nobody else may.

-- Retry these jobs; `why` says what keeps one from it, 'held' that somebody changes it at this moment.
--
-- As in bulk behind the API: rows that somebody holds are stepped over, and all documents are locked before the
-- first turn, or the loop would wait for an overwrite with turns in its hands.
create function ingest.retry_by_hand(p_jobs bigint[])
returns table (job_id bigint, done boolean, why text)
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
  v_locked  bigint[];
  v_free    uuid[];
  v_job     record;
  v_done    bigint[] := '{}';
begin
  if (cardinality(p_jobs) between 1 and 1000) is not true then
    raise exception 'retry_by_hand takes 1 to 1000 jobs at a time, not %', cardinality(p_jobs) using errcode = '22023';
  end if;
  select pg_catalog.array_agg(l.id) into v_locked from (
    select j.id from public.jobs j where j.id = any (p_jobs) order by j.id for no key update skip locked) l;
  select pg_catalog.array_agg(l.id) into v_free from (
    select d.id from public.documents d where d.id in (select j.document_id from public.jobs j where j.id = any (v_locked))
     order by d.id for no key update skip locked) l;
  for v_job in
    select u.id, u.id = any (v_locked) as locked, j.id is not null as there,
           j.document_id = any (v_free) or not exists (select 1 from public.documents d where d.id = j.document_id) as free
      from (select distinct unnest(p_jobs) as id) u left join public.jobs j on j.id = u.id
     order by j.tenant_id, u.id
  loop
    job_id := v_job.id; done := false; why := null;
    if v_job.there and (v_job.locked is not true or v_job.free is not true) then
      why := 'held';
    else
      begin
        perform ingest.retry_discarded(v_job.id, 'operator');
        done := true;
        v_done := v_done || v_job.id;
      exception when sqlstate 'IG008' then
        why := pg_catalog.regexp_replace(sqlerrm, '^job \d+ cannot be retried: ', '');
      end;
    end if;
    return next;
  end loop;
  perform ingest.note_act('retry_jobs', pg_catalog.jsonb_build_object('jobs', v_done), cardinality(v_done));
end $$;

-- Cancel these jobs; `why` as above.
create function ingest.cancel_by_hand(p_jobs bigint[])
returns table (job_id bigint, done boolean, why text)
language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
#variable_conflict use_column
declare
  v_done bigint[];
begin
  if (cardinality(p_jobs) between 1 and 1000) is not true then
    raise exception 'cancel_by_hand takes 1 to 1000 jobs at a time, not %', cardinality(p_jobs) using errcode = '22023';
  end if;
  select coalesce(pg_catalog.array_agg(c), '{}') into v_done
    from ingest.cancel_live_jobs(p_jobs, 'cancelled', 'An operator cancelled the processing. Upload the file again, or contact support.') c;
  perform ingest.note_act('cancel_jobs', pg_catalog.jsonb_build_object('jobs', v_done), cardinality(v_done));
  return query
    select u.id, u.id = any (v_done),
           case when u.id = any (v_done) then null
                when j.id is null then 'it does not exist, or was pruned'
                when j.finalized_at is not null then pg_catalog.format('it is %s already', j.state)
                else 'held' end
      from (select distinct unnest(p_jobs) as id) u left join public.jobs j on j.id = u.id
     order by u.id;
end $$;

create function ingest.pause_by_hand(p_queue text default 'ingest')
returns timestamptz language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_since timestamptz := ingest.pause_queue(p_queue);
begin
  perform ingest.note_act('pause_queue', pg_catalog.jsonb_build_object('queue', p_queue), 1);
  return v_since;
end $$;

create function ingest.resume_by_hand(p_queue text default 'ingest')
returns boolean language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_was_paused boolean := ingest.resume_queue(p_queue);
begin
  perform ingest.note_act('resume_queue', pg_catalog.jsonb_build_object('queue', p_queue), v_was_paused::integer);
  return v_was_paused;
end $$;

-- The queue at a glance. `waiting` is due now, `later` has a time that is yet to come, by the code it waits for.
create function ingest.queue_status(p_queue text default 'ingest')
returns jsonb language sql stable security definer set search_path = '' set timezone = 'UTC' as $$
  select pg_catalog.jsonb_build_object(
    'queue', q.name,
    'paused_at', q.paused_at,
    'waiting', (select pg_catalog.count(*) from public.jobs j where j.state = 'available' and j.kind = q.name and j.scheduled_at <= pg_catalog.now()),
    'oldest_seconds', (select extract(epoch from pg_catalog.now() - pg_catalog.min(j.scheduled_at))::double precision from public.jobs j
                        where j.state = 'available' and j.kind = q.name and j.scheduled_at <= pg_catalog.now()),
    'later', (select coalesce(pg_catalog.jsonb_object_agg(w.code, w.n), '{}') from (
                select coalesce(j.error_code, 'none') as code, pg_catalog.count(*) as n from public.jobs j
                 where j.state = 'available' and j.kind = q.name and j.scheduled_at > pg_catalog.now() group by 1) w),
    'tenants_waiting', (select pg_catalog.count(*) from ingest.turns t where t.due_at <= pg_catalog.now()),
    'running', (select pg_catalog.count(*) from public.jobs j where j.state = 'running' and j.kind = q.name),
    'running_without_lease', (select pg_catalog.count(*) from public.jobs j
                               where j.state = 'running' and j.kind = q.name and not exists (
                                 select 1 from ingest.leases l where l.job_id = j.id and l.expires_at > pg_catalog.clock_timestamp())),
    'discarded_today', (select pg_catalog.count(*) from public.jobs j
                         where j.state = 'discarded' and j.kind = q.name and j.finalized_at > pg_catalog.now() - interval '1 day'),
    'completed_last_hour', (select pg_catalog.count(*) from public.jobs j
                             where j.state = 'completed' and j.kind = q.name and j.finalized_at > pg_catalog.now() - interval '1 hour'),
    'alerts', (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('kind', a.kind, 'subject', a.subject, 'message', a.message,
                 'raised_at', a.raised_at, 'last_at', a.last_at, 'count', a.count) order by a.raised_at), '[]')
                 from (select * from ingest.alerts o where o.resolved_at is null order by o.raised_at limit 100) a))
    from ingest.queues q where q.name = p_queue
$$;

revoke execute on function
  ingest.retry_by_hand(bigint[]), ingest.cancel_by_hand(bigint[]), ingest.pause_by_hand(text), ingest.resume_by_hand(text),
  ingest.queue_status(text)
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.retry_by_hand(bigint[]), ingest.cancel_by_hand(bigint[]), ingest.pause_by_hand(text), ingest.resume_by_hand(text),
  ingest.queue_status(text)
  to ingest_worker;
