-- Jobs: one row per (document, generation, kind): durable intent, and the table that people watch.
--
--                        claim                        publish
--   ┌────────────► available ───────► running ────────────────► completed
--   │               │     ▲              │
--   │        cancel │     │ an operator  ├── cancel ──────────► cancelled
--   │               ▼     │ retries      ├── discard, rescue ─► discarded   (the dead letter)
--   │           cancelled, discarded     │
--   └── retry, snooze, release, rescue ──┘
--
-- The trigger at the end of this file holds everybody to these arrows, whoever writes.
--
-- Ownership is the presence of a row in ingest.leases with this claim number, so heartbeats never
-- touch this table. `claim` is the fencing token: it is not `attempt`, because a snooze gives an
-- attempt back and a token that can repeat cannot fence. The row holds nothing that its own tenant
-- may not see; worker ids and raw errors are in ingest.job_details.

create type public.job_state as enum ('available', 'running', 'completed', 'cancelled', 'discarded');

create table public.jobs (
  id              bigint generated always as identity primary key,
  document_id     uuid not null,                           -- no foreign key: a job outlives its document as history
  generation      bigint not null check (generation > 0),
  tenant_id       uuid not null,
  kind            text not null default 'ingest' check (char_length(kind) between 1 and 64),
  state           public.job_state not null default 'available',
  stage           text check (stage in ('fetch', 'parse', 'chunk', 'embed', 'publish')),
  progress        real check (progress between 0 and 1),
  priority        smallint not null default 2 check (priority between 1 and 4),
  attempt         smallint not null default 0 check (attempt >= 0),
  max_attempts    smallint not null default 5 check (max_attempts > 0),
  rescues         smallint not null default 0 check (rescues >= 0),
  snoozes         integer not null default 0 check (snoozes >= 0),
  claim           bigint not null default 0 check (claim >= 0),
  error_code      text,
  error_message   text,
  snoozing_since  timestamptz,
  scheduled_at    timestamptz not null default now(),
  created_at      timestamptz not null default now(),
  started_at      timestamptz,
  finalized_at    timestamptz,
  constraint final_iff_finalized check ((state in ('completed', 'cancelled', 'discarded')) = (finalized_at is not null)),
  constraint available_has_no_stage check (state <> 'available' or stage is null),
  constraint running_was_claimed check (state <> 'running' or (claim > 0 and started_at is not null)),
  constraint discarded_means_code check (state <> 'discarded' or error_code is not null),
  constraint available_has_an_attempt_left check (state <> 'available' or attempt < max_attempts)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
comment on table public.jobs is 'What is to be done with a document''s generation and how far it is.';

create index jobs_available_idx on public.jobs (tenant_id, priority, scheduled_at, id) where state = 'available';
create index jobs_final_idx on public.jobs (state, finalized_at) where finalized_at is not null;
create index jobs_document_idx on public.jobs (document_id, generation);
create index jobs_tenant_idx on public.jobs (tenant_id, created_at desc);
create unique index jobs_one_live_per_generation on public.jobs (document_id, generation, kind) where state in ('available', 'running');
create unique index jobs_one_running_per_document on public.jobs (document_id) where state = 'running';

-- The arrows of the picture above. The WHEN clause is the table of what is allowed, in the executor's
-- own terms: the function runs only to refuse.
create function ingest.refuse_transition()
returns trigger language plpgsql set search_path = '' as $$
begin
  if tg_op = 'INSERT' then
    raise exception 'job % cannot begin as %: a job begins as available', new.id, new.state using errcode = 'IG007';
  end if;
  raise exception 'job % cannot go from % to %', new.id, old.state, new.state using errcode = 'IG007',
    hint = case when old.state = 'completed' then 'A completed job is history. Upload the file again to have it read again.'
                when old.finalized_at is not null then 'ingest.retry_discarded(job) brings a discarded or cancelled job back.'
                else 'Use the functions of schema ingest, which know the way.' end;
end $$;

create trigger refuse_transition after update on public.jobs for each row
  when (old.state <> new.state and not (
        old.state = 'available' and new.state in ('running', 'cancelled')
     or old.state = 'running'
     or old.state in ('discarded', 'cancelled') and new.state = 'available'))
  execute function ingest.refuse_transition();
create trigger refuse_beginning after insert on public.jobs for each row
  when (new.state <> 'available') execute function ingest.refuse_transition();

-- What only operators may read of a job.
create table ingest.job_details (
  job_id            bigint primary key references public.jobs (id) on delete cascade,
  worker_id         uuid,                                  -- the last one that held it
  raw_error         text check (char_length(raw_error) <= 20000),
  awaiting_parse_id bigint,                                -- woken when this parse is done
  updated_at        timestamptz not null default now()
);
create index job_details_awaiting_idx on ingest.job_details (awaiting_parse_id) where awaiting_parse_id is not null;

-- Time-bound ownership on the database's clock. expires_at is in no index, which keeps renewals
-- heap-only (9,899 of 10,000 updates measured); the rescue reads the few rows there are.
create table ingest.leases (
  job_id      bigint primary key,
  claim       bigint not null,
  worker_id   uuid not null,
  tenant_id   uuid not null,                               -- copied: the cap a tenant is counted here, never in jobs
  taken_at    timestamptz not null,
  expires_at  timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- Whose turn it is: one row for each tenant with work waiting. The longest unserved come first and
-- a tenant that has just begun to wait comes before all of them: before those too that were never
-- served but queue up a second job, or a thousand tenants' import would stand before one upload.
create table ingest.turns (
  tenant_id       uuid primary key,
  last_served_at  timestamptz,                             -- null: not since it began to wait; -infinity: nor, but it has more than one job
  due_at          timestamptz not null default now()       -- nothing of this tenant's is due before
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
create index turns_order_idx on ingest.turns (last_served_at nulls first, tenant_id);

create table ingest.queues (
  name        text primary key,                            -- a kind of job
  paused_at   timestamptz
);
insert into ingest.queues (name) values ('ingest');
