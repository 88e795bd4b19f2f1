-- Live progress: each transition, and each move of a running job's bar, is broadcast on private channels:
--
--   document:<id>   progress   {job_id, document_id, generation, state, stage, progress, error_code, counter}
--   ops:jobs        jobs       {job_ids, counter}        one a statement: an operator's display reads these rows
--
-- A message is a hint: whoever follows reads the row when the channel opens, and now and then besides. It holds
-- ids, states and codes, never a text. `counter` is taken from the timeline's sequence while the job's row is
-- locked, so that a larger one is newer; a client drops what is older than what it has shown.
--
-- The rows are inserted into realtime.messages as a set. realtime.send would do the same a message at a time, each
-- in a subtransaction (18 us where the set takes 10), and lose in silence what it cannot send. Claims and settles
-- of 50 jobs that do nothing keep 86 % of their speed; they kept 70 % when operators were sent whole rows too and
-- each claimed document its message.
--
-- No announcement may fail or hold up what it tells of. Where schema realtime is missing nothing is told; from
-- when it is there everything is. What could not be told is counted in ingest.announcements_lost: a sequence,
-- because a row would be one that every claim waits for, and would be gone with what is rolled back.

create sequence ingest.announcements_lost;

-- What a statement noted in the timeline: 50 rows at most; a bulk command notes more, and whoever follows the
-- others reads them later. A 'stage' is told when it is entered, by the job's own row, and not when it was left.
--
-- A claim is told to operators only: claims stand in line under one lock, and a message takes 14 us of it. The
-- document hears of it a moment later, from announce_begun.
create function ingest.announce_events()
returns trigger language plpgsql security definer set search_path = '' set lock_timeout = '20ms' as $$
declare
  v_lost bigint;
begin
  -- A statement trigger fires also where no row was written.
  if not exists (select 1 from noted n where n.event <> 'stage') or pg_catalog.to_regclass('realtime.messages') is null then
    return null;
  end if;
  -- The id is the counter: 50 random ones, in a random order of the index, are a tenth of the whole.
  insert into realtime.messages (id, topic, extension, event, private, payload)
  select pg_catalog.lpad(pg_catalog.to_hex(e.id), 32, '0')::uuid, 'document:' || e.document_id, 'broadcast', 'progress', true,
         pg_catalog.jsonb_build_object(
           'job_id', e.job_id, 'document_id', e.document_id::text, 'generation', e.generation, 'state', e.state::text, 'stage', e.stage,
           'progress', case e.event when 'claim' then 0 when 'complete' then 1 end, 'error_code', e.error_code, 'counter', e.id)
    from (select * from noted n where n.event not in ('stage', 'claim') limit 50) e
  union all
  select pg_catalog.gen_random_uuid(), 'ops:jobs', 'broadcast', 'jobs', true, pg_catalog.jsonb_build_object(
           'job_ids', pg_catalog.array_agg(e.job_id), 'counter', pg_catalog.max(e.id))
    from (select * from noted n where n.event <> 'stage' limit 50) e;
  return null;
exception when others then
  v_lost := pg_catalog.nextval('ingest.announcements_lost');
  if v_lost % 1000 = 1 then                                -- a database that refuses them all must not fill its log
    raise warning 'sluice: % announcements were lost; this one: % (%)', v_lost, sqlerrm, sqlstate;
  end if;
  return null;
end $$;

create trigger announce after insert on public.job_events
  referencing new table as noted for each statement execute function ingest.announce_events();

-- One job as it is now, to whoever follows its document and to operators. Never raises.
create function ingest.announce_job(p_job public.jobs)
returns void language plpgsql security definer set search_path = '' set lock_timeout = '20ms' as $$
declare
  v_counter  bigint;
  v_lost     bigint;
begin
  if pg_catalog.to_regclass('realtime.messages') is null then return; end if;
  v_counter := pg_catalog.nextval('ingest.job_events_id_seq');
  insert into realtime.messages (topic, extension, event, private, payload)
  values ('document:' || p_job.document_id, 'broadcast', 'progress', true, pg_catalog.jsonb_build_object(
            'job_id', p_job.id, 'document_id', p_job.document_id, 'generation', p_job.generation, 'state', p_job.state, 'stage', p_job.stage,
            'progress', p_job.progress, 'error_code', p_job.error_code, 'counter', v_counter)),
         ('ops:jobs', 'broadcast', 'jobs', true, pg_catalog.jsonb_build_object(
            'job_ids', pg_catalog.jsonb_build_array(p_job.id), 'counter', v_counter));
exception when others then
  v_lost := pg_catalog.nextval('ingest.announcements_lost');
  if v_lost % 1000 = 1 then
    raise warning 'sluice: % announcements were lost; this one: % (%)', v_lost, sqlerrm, sqlstate;
  end if;
end $$;

-- What a running job says of itself between two transitions: a stage that it enters, and steps of 5 % inside it.
create function ingest.announce_progress()
returns trigger language plpgsql security definer set search_path = '' as $$
begin
  perform ingest.announce_job(new);
  return null;
end $$;

create trigger announce after update on public.jobs for each row
  when (old.state = 'running' and new.state = 'running'
        and (old.stage is distinct from new.stage
             or floor(coalesce(old.progress, 0) * 20) <> floor(coalesce(new.progress, 0) * 20)))
  execute function ingest.announce_progress();

-- The worker has begun with a document: what its claim left for this moment.
create function ingest.announce_begun()
returns trigger language plpgsql security definer set search_path = '' as $$
declare
  v_job public.jobs;
begin
  select * into v_job from public.jobs j where j.document_id = new.id and j.generation = new.generation and j.state = 'running';
  if found then perform ingest.announce_job(v_job); end if;
  return null;
end $$;

create trigger announce after update on public.documents for each row
  when (old.state <> 'processing' and new.state = 'processing')
  execute function ingest.announce_begun();

revoke all on sequence ingest.announcements_lost from public, anon, authenticated, service_role;
revoke execute on function ingest.announce_events(), ingest.announce_job(public.jobs), ingest.announce_progress(), ingest.announce_begun()
  from public, anon, authenticated, service_role;
grant select on sequence ingest.announcements_lost to ingest_worker;
