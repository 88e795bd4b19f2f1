-- What the edge function `search` asks before it embeds a query, and writes down afterwards. Both are for
-- service_role only: the function has verified who asks, and says so.

alter table ingest.usage drop constraint usage_kind_check;
alter table ingest.usage add constraint usage_kind_check check (kind in ('parse', 'embed', 'search'));

-- Searches a minute of one person. An operator changes it for everybody:
-- select ingest.configure_rate_limit('search', 120, null).
select ingest.configure_rate_limit('search', 60, null);
create index rate_limits_search_idx on ingest.rate_limits (refilled_at) where provider = 'search';

-- May this user search now, and with which model? Takes one search out of the user's bucket.
--
-- `payer` is whose ledger and budget it goes to: the tenant that was asked for where it is one, and the
-- user may read it, else the user's own. `refused` is null, 'rate_limited' or 'budget_exhausted', with
-- the seconds to wait; `model` is null where none is active. Definer: the callers' role has no rights in
-- this schema.
create function ingest.admit_search(p_user uuid, p_tenants uuid[])
returns jsonb language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_model   ingest.embedding_models;
  v_limit   integer;
  v_payer   uuid := p_user;
  v_wait    interval;
  v_budget  record;
begin
  if p_user is null then
    raise exception 'admit_search: whose search is it?' using errcode = '22023';
  end if;
  select * into v_model from ingest.embedding_models m where m.active;
  if pg_catalog.cardinality(p_tenants) = 1 then
    select m.tenant_id into v_payer from public.tenant_members m where m.user_id = p_user and m.tenant_id = p_tenants[1];
    v_payer := coalesce(v_payer, p_user);
  end if;

  select * into v_budget from ingest.within_budget(v_payer);
  if found then
    return pg_catalog.jsonb_build_object('refused', v_budget.code, 'wait_seconds', pg_catalog.ceil(extract(epoch from v_budget.resets_in)));
  end if;

  -- The buckets last: nobody who holds one waits for another lock.
  --
  -- Whoever has not searched for a day has a full bucket anyway.
  delete from ingest.rate_limits l where (l.provider, l.key_name) in (
    select o.provider, o.key_name from ingest.rate_limits o
     where o.provider = 'search' and o.refilled_at < pg_catalog.now() - interval '1 day' and o.key_name <> 'default'
     order by o.refilled_at limit 10 for update skip locked);
  select l.requests_per_minute into v_limit from ingest.rate_limits l where l.provider = 'search' and l.key_name = 'default';
  if v_limit is not null then
    perform ingest.configure_rate_limit('search', v_limit, null, p_user::text)
      where not exists (select 1 from ingest.rate_limits l
                         where l.provider = 'search' and l.key_name = p_user::text and l.requests_per_minute = v_limit);
    v_wait := ingest.take_tokens('search', 1, 0, p_user::text);
    if v_wait > interval '0' then
      return pg_catalog.jsonb_build_object('refused', 'rate_limited', 'wait_seconds', pg_catalog.ceil(extract(epoch from v_wait)));
    end if;
  end if;
  return pg_catalog.jsonb_build_object('refused', null, 'payer', v_payer,
    'provider', v_model.provider, 'model', v_model.name, 'dimensions', v_model.dimensions);
end $$;

-- A query was embedded: a row in the payer's ledger. Saying it again with the same request changes nothing.
create function ingest.record_search(p_request uuid, p_payer uuid, p_provider text, p_model text, p_tokens bigint)
returns void language sql security definer set search_path = '' set lock_timeout = '2s' as $$
  -- No job stands behind it: job and claim are 0, and the request alone is the key.
  select ingest.record_usage('search:' || p_request, array[0::bigint], array[0::bigint], array[null::uuid], array[p_payer],
    array[p_provider], array[p_model], array['search'], array[0::bigint], array[p_tokens], array[1])
$$;

-- What the edge function calls. The bodies are bound when they are made: nobody who calls them needs to
-- enter schema ingest.
create function public.admit_search(user_id uuid, tenant_ids uuid[] default null)
returns jsonb language sql volatile security invoker set search_path = ''
return ingest.admit_search(user_id, tenant_ids);

create function public.record_search(request uuid, payer uuid, provider text, model text, tokens bigint)
returns void language sql volatile security invoker set search_path = ''
return ingest.record_search(request, payer, provider, model, tokens);

-- As before; what no document was paid for is a search.
create or replace function ingest.usage_by(p_by text, p_tenant uuid default null, p_since timestamptz default '-infinity', p_limit integer default 1000)
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
                     when 'document' then coalesce(u.document_id::text, case u.kind when 'search' then 'search' else 'gone' end)
                     when 'job' then case u.kind when 'search' then 'search' else u.job_id::text end
                     when 'provider' then u.provider else u.provider || '/' || u.model end,
           pg_catalog.sum(u.pages)::bigint, pg_catalog.sum(u.tokens)::bigint, pg_catalog.sum(u.requests)::bigint,
           pg_catalog.sum(u.money), pg_catalog.count(*) filter (where u.money is null)
      from ingest.usage u
     where u.at >= p_since and (p_tenant is null or u.tenant_id = p_tenant)
     group by 1
     order by case when p_by = 'day' then 0 else -pg_catalog.sum(u.money) end nulls last, 1
     limit p_limit;
end $$;

revoke execute on function
  ingest.admit_search(uuid, uuid[]), ingest.record_search(uuid, uuid, text, text, bigint),
  public.admit_search(uuid, uuid[]), public.record_search(uuid, uuid, text, text, bigint)
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.admit_search(uuid, uuid[]), ingest.record_search(uuid, uuid, text, text, bigint),
  public.admit_search(uuid, uuid[]), public.record_search(uuid, uuid, text, text, bigint)
  to service_role;
