-- Operators: people whose token says `"app_metadata": {"sluice_role": "operator"}`. Only the secret key
-- can write app_metadata; user_metadata is the user's own to write and is never asked. A role that was
-- taken away ends with the token that still has it, within the project's JWT expiry (an hour).
--
-- They read all jobs and events: ids, states, codes, counts. They read no documents, pages, chunks or
-- objects, and no names of files either: a name can say as much about a person as the file.

create function ingest.must_operate()
returns void language plpgsql stable set search_path = '' as $$
begin
  if not ingest.is_operator() then
    raise exception 'This is for operators of the project only.' using errcode = '42501',
      hint = 'An administrator sets app_metadata.sluice_role to "operator" for your account; then sign in again.';
  end if;
end $$;

-- For an operator every tenant lies between the two bounds, for everybody else none. A plain
-- `or (select ingest.is_operator())` is no index condition: everybody's queries would read the whole table.
-- At 100,000 jobs a tenant with 1,000 counts its own in 1.5 ms, and an operator all of them in 34.
alter policy tenant_reads on public.jobs
  using (tenant_id = any (array(select ingest.my_tenants('reader')))
         or tenant_id between (select case when ingest.is_operator() then '00000000-0000-0000-0000-000000000000'::uuid end)
                          and (select case when ingest.is_operator() then 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid end));
alter policy tenant_reads on public.job_events
  using (tenant_id = any (array(select ingest.my_tenants('reader')))
         or tenant_id between (select case when ingest.is_operator() then '00000000-0000-0000-0000-000000000000'::uuid end)
                          and (select case when ingest.is_operator() then 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid end));

-- Who did what to jobs, queues and tenants by hand. Append-only, also for its owner; it holds ids only
-- and outlives the tenants and people it names.
create table ingest.audit (
  id         bigint generated always as identity primary key,
  at         timestamptz not null default clock_timestamp(),
  actor      uuid,                                         -- null: by the database login `login`, without a token
  login      text not null default session_user,
  acted_as   text not null check (acted_as in ('operator', 'member', 'login')),
  action     text not null check (char_length(action) between 1 and 64),
  subject    jsonb not null default '{}',                  -- what was asked for: ids, codes, filters
  affected   integer not null check (affected >= 0)        -- how many jobs, queues or tenants it changed
);
comment on table ingest.audit is 'Who retried, cancelled, paused, resumed or erased what, when and how much. Append-only.';
create index audit_at_idx on ingest.audit (at desc);
alter table ingest.audit enable row level security;
create policy operators_read on ingest.audit for select to authenticated using ((select ingest.is_operator()));

create function ingest.refuse_rewriting()
returns trigger language plpgsql set search_path = '' as $$
begin
  raise exception 'ingest.audit is append-only: % is refused', tg_op using errcode = '42501';
end $$;
create trigger append_only before update or delete or truncate on ingest.audit
  for each statement execute function ingest.refuse_rewriting();

create function ingest.note_act(p_action text, p_subject jsonb, p_affected integer)
returns void language sql set search_path = '' as $$
  insert into ingest.audit (actor, acted_as, action, subject, affected)
  values (auth.uid(), case when ingest.is_operator() then 'operator' when auth.uid() is not null then 'member' else 'login' end,
          p_action, pg_catalog.jsonb_strip_nulls(p_subject), p_affected)
$$;

-- What operators see of it through the API.
create view public.audit with (security_invoker = true) as
  select id, at, actor, acted_as, action, subject, affected from ingest.audit;
comment on view public.audit is 'For operators: who retried, cancelled, paused, resumed or erased what.';

revoke all on ingest.audit, public.audit from anon, authenticated, service_role;
revoke execute on function
  ingest.must_operate(), ingest.note_act(text, jsonb, integer), ingest.refuse_rewriting()
  from public, anon, authenticated, service_role;
grant select on ingest.audit, public.audit to authenticated;
