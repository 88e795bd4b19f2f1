-- Workers: one row each while it lives, written again every few seconds on a connection of its own. A row
-- that has grown old is a worker that was killed, hangs, or does not reach the database; whoever stops in
-- order takes its row along.

create table ingest.workers (
  worker_id   uuid primary key,
  started_at  timestamptz not null default clock_timestamp(),
  seen_at     timestamptz not null default clock_timestamp(),
  version     text not null check (char_length(version) <= 64),
  git_sha     text check (char_length(git_sha) <= 64),
  pid         integer not null,
  host        text not null check (char_length(host) <= 255),
  slots       integer not null check (slots > 0),
  running     integer not null check (running >= 0),
  wake_way    text not null check (wake_way in ('listen', 'realtime', 'polling')),
  embedder    text not null check (char_length(embedder) <= 64),
  model       text not null check (char_length(model) <= 200),
  parser      text not null check (char_length(parser) <= 64),
  sandbox     text check (char_length(sandbox) <= 32)      -- null while no file was read in a child yet
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
comment on table ingest.workers is 'Who works now: one heartbeat row a worker, fresh for 25 s.';
alter table ingest.workers enable row level security;

-- I live. Rows of workers that were not seen for an hour go along.
create function ingest.beat(
  p_worker uuid, p_version text, p_git_sha text, p_pid integer, p_host text, p_slots integer, p_running integer,
  p_wake_way text, p_embedder text, p_model text, p_parser text, p_sandbox text)
returns void language sql set search_path = '' as $$
  delete from ingest.workers w where w.seen_at < pg_catalog.clock_timestamp() - interval '1 hour' and w.worker_id <> p_worker;
  insert into ingest.workers as w (worker_id, version, git_sha, pid, host, slots, running, wake_way, embedder, model, parser, sandbox)
  values (p_worker, pg_catalog.left(p_version, 64), pg_catalog.left(p_git_sha, 64), p_pid, pg_catalog.left(p_host, 255), p_slots, p_running,
          p_wake_way, pg_catalog.left(p_embedder, 64), pg_catalog.left(p_model, 200), pg_catalog.left(p_parser, 64), pg_catalog.left(p_sandbox, 32))
  on conflict (worker_id) do update
     set seen_at = pg_catalog.clock_timestamp(), running = excluded.running, wake_way = excluded.wake_way, sandbox = excluded.sandbox;
$$;

-- I stop. True when there was a row.
create function ingest.leave_worker(p_worker uuid)
returns boolean language sql set search_path = '' as $$
  with gone as (delete from ingest.workers w where w.worker_id = p_worker returning 1)
  select exists (select 1 from gone)
$$;

revoke all on table ingest.workers from public, anon, authenticated, service_role;
grant select, insert, update, delete on table ingest.workers to ingest_worker;
revoke execute on function
  ingest.beat(uuid, text, text, integer, text, integer, integer, text, text, text, text, text), ingest.leave_worker(uuid)
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.beat(uuid, text, text, integer, text, integer, integer, text, text, text, text, text), ingest.leave_worker(uuid)
  to ingest_worker;
