-- The timeline of every job: append-only, partitioned by month, dropped a month at a time.
--
-- The partitions live in `ingest`: as tables of an exposed schema each would be a table of the Data
-- API without a policy of its own. Their ids come from a sequence rather than an identity, which
-- partitioned tables have only since Postgres 17.

create sequence ingest.job_events_id_seq;

create table public.job_events (
  id            bigint not null default nextval('ingest.job_events_id_seq'),
  at            timestamptz not null default clock_timestamp(),
  job_id        bigint not null,
  document_id   uuid not null,
  generation    bigint not null,
  tenant_id     uuid not null,
  event         text not null check (event in ('enqueue', 'claim', 'stage', 'complete', 'retry', 'snooze', 'release', 'cancel', 'discard', 'rescue')),
  state         public.job_state not null,
  stage         text,
  attempt       smallint not null,
  claim         bigint not null,
  took          interval,
  error_code    text,
  detail        jsonb,
  primary key (at, id)
) partition by range (at);
comment on table public.job_events is 'Every transition of every job, with stage, attempt, duration and code.';
create index job_events_job_idx on public.job_events (job_id, id);
create index job_events_tenant_idx on public.job_events (tenant_id, at desc);

-- A net, so that an upload never fails for a missing month; empty while the sweep works.
create table ingest.job_events_default partition of public.job_events default;
alter table ingest.job_events_default enable row level security;

-- Make the partitions of this month and the next p_ahead months; rows that fell into the net move.
create function ingest.ensure_event_partitions(p_ahead integer default 2)
returns integer language plpgsql security definer set search_path = '' as $$
declare
  v_month  timestamptz := pg_catalog.date_trunc('month', pg_catalog.now(), 'UTC');
  v_name   text;
  v_made   integer := 0;
begin
  if p_ahead not between 0 and 24 then
    raise exception 'p_ahead is %, it must be between 0 and 24', p_ahead using errcode = '22023';
  end if;
  -- Every worker does this when it starts: one makes the table, the others have nothing to do.
  if not pg_catalog.pg_try_advisory_xact_lock(7150010003) then return 0; end if;
  for i in 0..p_ahead loop
    v_name := 'job_events_' || pg_catalog.to_char(v_month at time zone 'UTC', 'YYYY_MM');
    if pg_catalog.to_regclass('ingest.' || v_name) is null then
      execute pg_catalog.format('create table ingest.%I (like public.job_events including defaults including constraints)', v_name);
      execute pg_catalog.format('alter table ingest.%I enable row level security', v_name);
      execute pg_catalog.format(
        'with moved as (delete from ingest.job_events_default where at >= %1$L and at < %2$L returning *) insert into ingest.%3$I select * from moved',
        v_month, v_month + interval '1 month', v_name);
      execute pg_catalog.format('alter table public.job_events attach partition ingest.%I for values from (%L) to (%L)',
        v_name, v_month, v_month + interval '1 month');
      v_made := v_made + 1;
    end if;
    v_month := v_month + interval '1 month';
  end loop;
  return v_made;
end $$;

-- Drop the months that ended longer ago than p_age; returns how many. Definer: a table goes with its owner.
--
-- A dropped month locks the whole timeline for a moment, and enqueues wait behind whoever waits for
-- a lock: after a fifth of a second it gives way, and the next time will do.
create function ingest.prune_events(p_age interval default interval '13 months')
returns integer language plpgsql security definer set search_path = '' set lock_timeout = '200ms' as $$
declare
  v_before   timestamptz := pg_catalog.date_trunc('month', pg_catalog.now() - p_age, 'UTC');
  v_name     text;
  v_dropped  integer := 0;
begin
  if (p_age >= interval '1 month') is not true then
    raise exception 'prune_events: % is too short, events are kept a month at least', p_age using errcode = '22023';
  end if;
  for v_name in
    select c.relname from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
     where i.inhparent = 'public.job_events'::pg_catalog.regclass and c.relname ~ '^job_events_[0-9]{4}_[0-9]{2}$'
       and c.relname < 'job_events_' || pg_catalog.to_char(v_before at time zone 'UTC', 'YYYY_MM')
     order by c.relname
  loop
    execute pg_catalog.format('drop table ingest.%I', v_name);
    v_dropped := v_dropped + 1;
  end loop;
  delete from ingest.job_events_default where at < v_before;
  return v_dropped;
exception when lock_not_available then
  return 0;
end $$;

select ingest.ensure_event_partitions();
