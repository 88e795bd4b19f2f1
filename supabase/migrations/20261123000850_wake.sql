-- Wake-ups: whoever makes a job available says so once a transaction: by NOTIFY always, and by a
-- private Realtime broadcast on topic `worker:ingest` while a worker that cannot LISTEN asks for it.
--
-- Both are hints; the workers poll besides. The topic has no policy: service_role bypasses policies,
-- and nobody else may receive or send there. Nothing here may fail an upload, so where schema
-- realtime, its function or the right to call it is missing, workers poll.

-- One row: until when broadcasts are wanted. Without it each upload would write a row that nobody reads.
create table ingest.broadcast_wanted (
  one    boolean primary key default true check (one),
  until  timestamptz not null
) with (fillfactor = 50);
alter table ingest.broadcast_wanted enable row level security;

-- False when this database cannot broadcast. The lock timeout is for the moment in which Realtime adds
-- a partition: its lock conflicts with every insert.
create function ingest.broadcast(p_event text)
returns boolean language plpgsql set search_path = '' set lock_timeout = '200ms' as $$
begin
  if pg_catalog.to_regprocedure('realtime.send(jsonb,text,text,boolean)') is null then return false; end if;
  perform realtime.send('{}'::jsonb, p_event, 'worker:ingest', true);
  return true;
exception when others then
  raise warning 'sluice: % was not broadcast: % (%)', p_event, sqlerrm, sqlstate;
  return false;
end $$;

-- Every path that makes a job available calls this in the transaction that does. Definer: the worker
-- has no rights in schema realtime.
create function ingest.wake()
returns void language plpgsql security definer set search_path = '' as $$
declare
  v_transaction text := pg_catalog.pg_current_xact_id()::text;
begin
  -- A setting of the transaction, so that it goes with a savepoint that is rolled back, as the hint does.
  if pg_catalog.current_setting('ingest.woken_in', true) = v_transaction then return; end if;
  perform pg_catalog.set_config('ingest.woken_in', v_transaction, true);
  perform pg_catalog.pg_notify('ingest_wake', '');
  if exists (select 1 from ingest.broadcast_wanted w where w.until > pg_catalog.clock_timestamp()) then
    perform ingest.broadcast('wake');
  end if;
end $$;

-- Ask for broadcasts during p_for, and broadcast `proof <p_proof>`: a worker believes in Realtime
-- when it hears that. False when this database cannot broadcast; nothing is asked for then.
create function ingest.want_broadcasts(p_for interval, p_proof text)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
  if (p_for between interval '1 second' and interval '10 minutes' and p_proof ~ '^[0-9a-f]{8,64}$') is not true then
    raise exception 'want_broadcasts: % or the proof is out of range', p_for using errcode = '22023';
  end if;
  if not ingest.broadcast('proof ' || p_proof) then return false; end if;
  insert into ingest.broadcast_wanted as w (until) values (pg_catalog.clock_timestamp() + p_for)
  on conflict (one) do update set until = excluded.until where w.until < excluded.until;
  return true;
end $$;
