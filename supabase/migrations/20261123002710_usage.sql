-- Usage: what was spent with providers, a row for each document that a request served. Append-only,
-- without foreign keys: it outlives documents and jobs, because the invoice does.

create table ingest.usage (
  at           timestamptz not null default clock_timestamp(),
  job_id       bigint not null,
  claim        bigint not null,
  request      text not null check (char_length(request) between 1 and 300),   -- one provider request; whoever writes it again says the same
  document_id  uuid,                                       -- null: it was gone before the bill came
  tenant_id    uuid not null,
  provider     text not null check (char_length(provider) between 1 and 64),
  model        text not null check (char_length(model) between 1 and 200),
  kind         text not null check (kind in ('parse', 'embed')),
  pages        bigint not null default 0 check (pages >= 0),
  tokens       bigint not null default 0 check (tokens >= 0),
  requests     integer not null default 0 check (requests >= 0),
  money        numeric check (money >= 0),                                     -- USD at the price of that moment; null: there was none
  primary key (job_id, claim, request)
);
comment on table ingest.usage is 'Pages, tokens and money of every paid request, by the document it served.';
create index usage_tenant_idx on ingest.usage (tenant_id, at);
create index usage_document_idx on ingest.usage (document_id);
alter table ingest.usage enable row level security;

create policy tenant_reads on ingest.usage for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('reader'))));

-- The sums of each tenant's day (UTC), kept by the function that writes the rows: a budget is asked
-- for before every request, and reads one row of these.
create table ingest.usage_days (
  day        date not null,
  tenant_id  uuid not null,
  pages      bigint not null default 0,
  tokens     bigint not null default 0,
  requests   bigint not null default 0,
  money      numeric not null default 0,                                       -- of what has a price
  unpriced   bigint not null default 0,                                        -- rows without a price
  primary key (day, tenant_id)
) with (fillfactor = 50);
alter table ingest.usage_days enable row level security;

-- What people see of it through the API.
create view public.usage with (security_invoker = true) as
  select at, job_id, document_id, tenant_id, provider, model, kind, pages, tokens, requests, money from ingest.usage;
comment on view public.usage is 'What was spent on the caller''s tenants: pages, tokens and USD by job, document, provider and model.';

-- Write down one provider request; the arrays have an element for each document it served. A request
-- that was written already is passed over, so a caller who got no answer says it again. Returns how
-- many rows are new. A model without a price is told to the operators, once a minute at most.
create function ingest.record_usage(
  p_request text, p_jobs bigint[], p_claims bigint[], p_documents uuid[], p_tenants uuid[], p_providers text[], p_models text[],
  p_kinds text[], p_pages bigint[], p_tokens bigint[], p_requests integer[]
)
returns integer language plpgsql set search_path = '' as $$
declare
  v_now      timestamptz := pg_catalog.clock_timestamp();
  v_written  integer;
  v_missing  text[];
  v_priced   text[];
  v_subject  text;
begin
  with share as (
    select s.job, s.claim, s.document, s.tenant, s.provider, s.model, s.kind,
           pg_catalog.sum(s.pages)::bigint as pages, pg_catalog.sum(s.tokens)::bigint as tokens, pg_catalog.sum(s.requests)::integer as requests
      from unnest(p_jobs, p_claims, p_documents, p_tenants, p_providers, p_models, p_kinds, p_pages, p_tokens, p_requests)
        as s(job, claim, document, tenant, provider, model, kind, pages, tokens, requests)
     group by 1, 2, 3, 4, 5, 6, 7
  ), written as (
    insert into ingest.usage (at, job_id, claim, request, document_id, tenant_id, provider, model, kind, pages, tokens, requests, money)
    select v_now, s.job, s.claim, p_request, s.document, s.tenant, s.provider, s.model, s.kind, s.pages, s.tokens, s.requests,
           ingest.price_of(s.provider, s.model, s.pages, s.tokens, v_now)
      from share s order by s.job, s.claim                 -- whoever says the same at once waits in the same order
    on conflict (job_id, claim, request) do nothing
    returning *
  ), summed as (
    insert into ingest.usage_days as d (day, tenant_id, pages, tokens, requests, money, unpriced)
    select (v_now at time zone 'UTC')::date, w.tenant_id, pg_catalog.sum(w.pages), pg_catalog.sum(w.tokens), pg_catalog.sum(w.requests),
           coalesce(pg_catalog.sum(w.money), 0), pg_catalog.count(*) filter (where w.money is null)
      from written w group by w.tenant_id order by w.tenant_id
    on conflict (day, tenant_id) do update
       set pages = d.pages + excluded.pages, tokens = d.tokens + excluded.tokens, requests = d.requests + excluded.requests,
           money = d.money + excluded.money, unpriced = d.unpriced + excluded.unpriced
  )
  select pg_catalog.count(*),
         pg_catalog.array_agg(distinct w.provider || '/' || w.model) filter (where w.money is null),
         pg_catalog.array_agg(distinct w.provider || '/' || w.model) filter (where w.money is not null)
    into v_written, v_missing, v_priced from written w;

  for v_subject in select m.subject from unnest(v_missing) as m(subject)
     where not exists (select 1 from ingest.alerts a where a.kind = 'price_missing' and a.subject = pg_catalog.left(m.subject, 200)
                          and a.resolved_at is null and a.last_at > v_now - interval '1 minute')
     order by 1
  loop
    perform ingest.raise_alert('price_missing', v_subject, pg_catalog.format(
      'There is no price for %s: its usage counts as nothing in the budgets. An operator must set one: select ingest.set_price(…).', v_subject));
  end loop;
  perform ingest.resolve_alert(a.kind, a.subject) from ingest.alerts a
    where a.kind = 'price_missing' and a.resolved_at is null and a.subject = any (v_priced);
  return v_written;
end $$;

-- Sums for operators, by one of 'day' (UTC), 'tenant', 'document', 'job', 'provider' and 'model', the
-- dearest first and days in their order. `money` is null where nothing had a price, `unpriced` counts
-- the rows without.
create function ingest.usage_by(p_by text, p_tenant uuid default null, p_since timestamptz default '-infinity', p_limit integer default 1000)
returns table (key text, pages bigint, tokens bigint, requests bigint, money numeric, unpriced bigint)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  if (p_by in ('day', 'tenant', 'document', 'job', 'provider', 'model') and p_limit between 1 and 100000) is not true then
    raise exception 'usage_by: there are no sums by %, or % rows are out of range', p_by, p_limit using errcode = '22023',
      hint = 'Ask by day, tenant, document, job, provider or model.';
  end if;
  return query
    select case p_by when 'day' then (u.at at time zone 'UTC')::date::text when 'tenant' then u.tenant_id::text
                     when 'document' then coalesce(u.document_id::text, 'gone') when 'job' then u.job_id::text
                     when 'provider' then u.provider else u.provider || '/' || u.model end,
           pg_catalog.sum(u.pages)::bigint, pg_catalog.sum(u.tokens)::bigint, pg_catalog.sum(u.requests)::bigint,
           pg_catalog.sum(u.money), pg_catalog.count(*) filter (where u.money is null)
      from ingest.usage u
     where u.at >= p_since and (p_tenant is null or u.tenant_id = p_tenant)
     group by 1
     order by case when p_by = 'day' then 0 else -pg_catalog.sum(u.money) end nulls last, 1
     limit p_limit;
end $$;

revoke all on ingest.usage, ingest.usage_days, public.usage from anon, authenticated, service_role;
revoke execute on function
  ingest.record_usage(text, bigint[], bigint[], uuid[], uuid[], text[], text[], text[], bigint[], bigint[], integer[]),
  ingest.usage_by(text, uuid, timestamptz, integer)
  from public, anon, authenticated, service_role;
grant select on ingest.usage, public.usage to authenticated, service_role;
grant select, insert on ingest.usage to ingest_worker;
grant select, insert, update on ingest.usage_days to ingest_worker;
grant execute on function
  ingest.record_usage(text, bigint[], bigint[], uuid[], uuid[], text[], text[], text[], bigint[], bigint[], integer[]),
  ingest.usage_by(text, uuid, timestamptz, integer)
  to ingest_worker;
