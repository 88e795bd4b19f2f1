-- Budgets: how much may be spent a day (UTC), by a tenant and by all together. What is used up
-- snoozes the jobs until the next day, however old they are, and tells the operators.
--
-- A gate before the request, not a meter inside it: what is under way when a budget ends is still
-- paid for, so a day may end above its limit by what runs at once.

create table ingest.budgets (
  id                 bigint generated always as identity primary key,
  tenant_id          uuid unique nulls not distinct references public.tenants (id) on delete cascade,   -- null: every tenant without a row of its own
  daily_usd          numeric check (daily_usd >= 0),                           -- null: no limit
  project_daily_usd  numeric check (project_daily_usd >= 0),                   -- of all tenants together; stands in the row without a tenant
  updated_at         timestamptz not null default now(),
  constraint one_project check (tenant_id is null or project_daily_usd is null)
);
comment on table ingest.budgets is 'How many USD a day a tenant may spend, and all tenants together.';
alter table ingest.budgets enable row level security;
insert into ingest.budgets (tenant_id) values (null);

-- Nothing when this tenant may spend; else why not, and how long until the next day begins. Raises
-- the alert of whose budget is used up, once a minute at most, and resolves it when there is room again.
create function ingest.within_budget(p_tenant uuid)
returns table (code text, subject text, resets_at timestamptz, resets_in interval)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  v_now      timestamptz := pg_catalog.clock_timestamp();
  v_today    date := (v_now at time zone 'UTC')::date;
  v_reset    timestamptz := (v_today + 1)::timestamp at time zone 'UTC';
  v_all      ingest.budgets;
  v_limit    numeric;
  v_spent    numeric;
  v_project  numeric := 0;
  v_used_up  text[] := '{}';
begin
  select * into v_all from ingest.budgets b where b.tenant_id is null;
  -- A row of the tenant's own counts also when it says that there is no limit.
  select b.daily_usd into v_limit from ingest.budgets b where b.tenant_id = p_tenant;
  if not found then v_limit := v_all.daily_usd; end if;

  if v_all.project_daily_usd is not null then
    select coalesce(pg_catalog.sum(d.money), 0) into v_project from ingest.usage_days d where d.day = v_today;
    if v_project >= v_all.project_daily_usd then
      v_used_up := v_used_up || 'project'::text;
    end if;
  end if;
  if v_limit is not null then
    select coalesce(pg_catalog.sum(d.money), 0) into v_spent from ingest.usage_days d where d.day = v_today and d.tenant_id = p_tenant;
    if v_spent >= v_limit then
      v_used_up := v_used_up || p_tenant::text;
    end if;
  end if;

  perform ingest.raise_alert('budget_exhausted', u.subject, pg_catalog.format(
      'The daily budget of %s is used up: %s of %s USD. Its files wait until the day ends (UTC). To let them go on: sluice budget set.',
      case u.subject when 'project' then 'the whole project' else 'tenant ' || u.subject end,
      pg_catalog.round(case u.subject when 'project' then v_project else v_spent end, 4),
      case u.subject when 'project' then v_all.project_daily_usd else v_limit end))
    from unnest(v_used_up) as u(subject)
   where not exists (select 1 from ingest.alerts a where a.kind = 'budget_exhausted' and a.subject = u.subject
                        and a.resolved_at is null and a.last_at > v_now - interval '1 minute');
  perform ingest.resolve_alert(a.kind, a.subject) from ingest.alerts a
    where a.kind = 'budget_exhausted' and a.resolved_at is null and a.subject in ('project', p_tenant::text) and a.subject <> all (v_used_up);

  if v_used_up <> '{}' then
    return query select 'budget_exhausted', v_used_up[1], v_reset, v_reset - v_now;
  end if;
end $$;

-- Set a budget; null for no limit. p_scope: 'tenant' (p_tenant's), 'default' (of every tenant without
-- its own) or 'project'. Jobs that wait for the next day go on at once where there is room now;
-- returns how many. Definer: the worker's login may not write budgets in any other way.
create function ingest.set_budget(p_scope text, p_tenant uuid, p_daily_usd numeric)
returns integer language plpgsql security definer set search_path = '' as $$
declare
  v_woken integer;
begin
  if (p_scope = 'tenant') is distinct from (p_tenant is not null) or p_scope not in ('tenant', 'default', 'project') then
    raise exception 'set_budget: scope % with tenant % says nothing', p_scope, p_tenant using errcode = '22023',
      hint = 'Give a tenant, or set the default of all tenants, or the budget of the whole project.';
  end if;
  if p_scope = 'tenant' then
    insert into ingest.budgets (tenant_id, daily_usd) values (p_tenant, p_daily_usd)
    on conflict (tenant_id) do update set daily_usd = excluded.daily_usd, updated_at = pg_catalog.now();
  else
    update ingest.budgets
       set daily_usd = case p_scope when 'default' then p_daily_usd else daily_usd end,
           project_daily_usd = case p_scope when 'project' then p_daily_usd else project_daily_usd end,
           updated_at = pg_catalog.now()
     where tenant_id is null;
  end if;

  with room as materialized (
    select t.tenant_id from (select distinct j.tenant_id from public.jobs j
                              where j.state = 'available' and j.error_code = 'budget_exhausted' and j.scheduled_at > pg_catalog.now()
                                and (p_tenant is null or j.tenant_id = p_tenant)) t
     where not exists (select 1 from ingest.within_budget(t.tenant_id))
  ), waiting as (
    select j.id from public.jobs j join room r on r.tenant_id = j.tenant_id
     where j.state = 'available' and j.error_code = 'budget_exhausted' and j.scheduled_at > pg_catalog.now()
     order by j.id
       for no key update of j skip locked
  ), woken as (
    update public.jobs j set scheduled_at = pg_catalog.now() from waiting where j.id = waiting.id
    returning j.tenant_id
  ), turned as (
    select ingest.take_turn(w.tenant_id) from (select distinct tenant_id from woken) w
  )
  select (select pg_catalog.count(*) from woken) + 0 * (select pg_catalog.count(*) from turned) into v_woken;
  if v_woken > 0 then perform ingest.wake(); end if;
  return v_woken;
end $$;

-- Every budget, and what was spent of it today; the tenants' own after the two of everybody.
create function ingest.list_budgets()
returns table (scope text, tenant_id uuid, daily_usd numeric, spent_usd numeric)
language sql stable set search_path = '' as $$
  with today as (
    select d.tenant_id, d.money from ingest.usage_days d where d.day = (pg_catalog.clock_timestamp() at time zone 'UTC')::date
  )
  select 'project', null::uuid, b.project_daily_usd, coalesce((select pg_catalog.sum(t.money) from today t), 0)
    from ingest.budgets b where b.tenant_id is null
  union all
  select 'default', null, b.daily_usd, null from ingest.budgets b where b.tenant_id is null
  union all
  (select 'tenant', b.tenant_id, b.daily_usd, coalesce(t.money, 0)
     from ingest.budgets b left join today t on t.tenant_id = b.tenant_id where b.tenant_id is not null order by b.tenant_id)
$$;

-- As before, and the budgets of days that are over: nobody may ask for them any more.
create or replace function ingest.tidy_alerts()
returns integer language plpgsql set search_path = '' as $$
declare
  v_resolved integer;
begin
  update ingest.alerts a set resolved_at = pg_catalog.clock_timestamp()
   where a.resolved_at is null
     and (a.kind = 'misconfigured' and a.last_at < pg_catalog.clock_timestamp() - interval '15 minutes'
          and exists (select 1 from public.job_events e where e.at > a.last_at and e.event = 'complete')
       or a.kind = 'budget_exhausted' and a.last_at < pg_catalog.date_trunc('day', pg_catalog.clock_timestamp(), 'UTC'));
  get diagnostics v_resolved = row_count;
  delete from ingest.alerts where resolved_at < pg_catalog.now() - interval '90 days';
  return v_resolved;
end $$;

revoke all on ingest.budgets from anon, authenticated, service_role;
revoke execute on function ingest.within_budget(uuid), ingest.set_budget(text, uuid, numeric), ingest.list_budgets()
  from public, anon, authenticated, service_role;
grant select on ingest.budgets to ingest_worker;
grant execute on function ingest.within_budget(uuid), ingest.set_budget(text, uuid, numeric), ingest.list_budgets() to ingest_worker;
