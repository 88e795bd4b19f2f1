-- Erase: every row of a tenant, in batches, once its objects are gone. Objects go through the Storage API
-- only (a row deleted by SQL leaves its file behind), so `sluice erase` asks here what there is, has
-- Storage remove it, and calls the rest. All of it may be interrupted and begun again.
--
-- For the owner's login: neither the worker nor the API may call any of this. What stays is the audit,
-- which holds ids only, and what backups keep.

-- The objects in watched buckets that are this tenant's: in its folder, however that is spelt, or with a
-- document of its own. Raises when this login does not see storage.objects: an empty listing would be a lie.
create function ingest.objects_of(p_tenant uuid, p_limit integer)
returns table (bucket_id text, name text) language plpgsql stable set search_path = '' as $$
begin
  perform ingest.check_sight();
  return query
    select o.bucket_id, o.name from storage.objects o
     where o.bucket_id in (select b.bucket_id from ingest.buckets b)
       and (o.name like p_tenant::text || '/%' or o.name like pg_catalog.upper(p_tenant::text) || '/%'
            or o.id in (select d.id from public.documents d where d.tenant_id = p_tenant))
     order by o.bucket_id, o.name limit p_limit;
end $$;

-- What there is of these tenants, for the question before it goes; null asks for every user's own tenant
-- whose user deleted their account.
create function ingest.erasable(p_tenants uuid[])
returns table (tenant_id uuid, kind public.tenant_kind, name text, members bigint, documents bigint, jobs bigint)
language sql stable set search_path = '' as $$
  select w.id, t.kind, t.name,
         (select pg_catalog.count(*) from public.tenant_members m where m.tenant_id = w.id),
         (select pg_catalog.count(*) from public.documents d where d.tenant_id = w.id),
         (select pg_catalog.count(*) from public.jobs j where j.tenant_id = w.id)
    from (select u.id from pg_catalog.unnest(p_tenants) as u(id)
          union
          select p.id from public.tenants p
           where p_tenants is null and p.kind = 'personal' and not exists (select 1 from auth.users a where a.id = p.id)) w
    left join public.tenants t on t.id = w.id
   order by w.id
$$;

-- Delete up to p_limit rows of each table; returns what went, by table. Call it until it returns {}: the
-- last call but one deletes the tenant itself. Null, and nothing deleted, while an object is left.
create function ingest.erase_rows(p_tenant uuid, p_limit integer default 1000)
returns jsonb language plpgsql set search_path = '' as $$
declare
  v_gone      jsonb := '{}';
  v_count     bigint;
  v_document  uuid;
begin
  if (p_limit between 1 and 100000) is not true then
    raise exception 'p_limit is %, it must be between 1 and 100,000', p_limit using errcode = '22023';
  end if;
  if exists (select 1 from ingest.objects_of(p_tenant, 1)) then return null; end if;

  delete from ingest.tombstones where object_id in (select d.id from public.documents d where d.tenant_id = p_tenant);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.tombstones', v_count);
  delete from ingest.missing_objects where document_id in (select d.id from public.documents d where d.tenant_id = p_tenant);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.missing_objects', v_count);
  delete from ingest.trigger_failures
   where object_id in (select d.id from public.documents d where d.tenant_id = p_tenant union select j.document_id from public.jobs j where j.tenant_id = p_tenant);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.trigger_failures', v_count);
  delete from ingest.ignored_objects where name like p_tenant::text || '/%';
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.ignored_objects', v_count);

  -- Leases, jobs, documents: in the order in which locks are taken everywhere.
  delete from ingest.leases where job_id in (select job_id from ingest.leases where tenant_id = p_tenant limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.leases', v_count);
  delete from public.chunks where id in (select id from public.chunks where tenant_id = p_tenant limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('public.chunks', v_count);
  v_count := 0;
  for v_document in
    select d.id from public.documents d
     where d.tenant_id = p_tenant and not exists (select 1 from public.chunks c where c.document_id = d.id)
     order by d.id limit p_limit
  loop
    perform ingest.remove_document(v_document);
    v_count := v_count + 1;
  end loop;
  v_gone := v_gone || pg_catalog.jsonb_build_object('public.documents', v_count);
  delete from ingest.job_details where job_id in (
    select d.job_id from ingest.job_details d join public.jobs j on j.id = d.job_id where j.tenant_id = p_tenant limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.job_details', v_count);
  delete from public.jobs where id in (select id from public.jobs where tenant_id = p_tenant order by id limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('public.jobs', v_count);
  delete from public.job_events where (at, id) in (select at, id from public.job_events where tenant_id = p_tenant limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('public.job_events', v_count);

  delete from ingest.webhook_deliveries where parse_id in (select p.id from ingest.parses p where p.tenant_id = p_tenant);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.webhook_deliveries', v_count);
  delete from public.pages where (parse_id, page) in (
    select g.parse_id, g.page from ingest.parses p join public.pages g on g.parse_id = p.id where p.tenant_id = p_tenant limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('public.pages', v_count);
  delete from ingest.parses where id in (
    select p.id from ingest.parses p
     where p.tenant_id = p_tenant and not exists (select 1 from public.pages g where g.parse_id = p.id) limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.parses', v_count);
  delete from ingest.embeddings where (model_id, tenant_id, content_sha256) in (
    select model_id, tenant_id, content_sha256 from ingest.embeddings where tenant_id = p_tenant limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.embeddings', v_count);

  delete from ingest.usage where (job_id, claim, request) in (
    select job_id, claim, request from ingest.usage where tenant_id = p_tenant limit p_limit);
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.usage', v_count);
  delete from ingest.usage_days where tenant_id = p_tenant;
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.usage_days', v_count);
  delete from ingest.page_months where tenant_id = p_tenant;
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.page_months', v_count);
  delete from ingest.budgets where tenant_id = p_tenant;
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.budgets', v_count);
  delete from ingest.quotas where tenant_id = p_tenant;
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.quotas', v_count);
  delete from ingest.alerts where subject = p_tenant::text;
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.alerts', v_count);
  delete from ingest.turns where tenant_id = p_tenant;
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('ingest.turns', v_count);
  delete from public.tenant_invitations where tenant_id = p_tenant;
  get diagnostics v_count = row_count; v_gone := v_gone || pg_catalog.jsonb_build_object('public.tenant_invitations', v_count);

  select coalesce(pg_catalog.jsonb_object_agg(e.key, e.value), '{}') into v_gone
    from pg_catalog.jsonb_each(v_gone) e where e.value <> '0';
  if v_gone <> '{}' then return v_gone; end if;

  -- The members go with the tenant: an organisation that exists keeps an admin.
  select pg_catalog.count(*) into v_count from public.tenant_members where tenant_id = p_tenant;
  delete from public.tenants where id = p_tenant;
  if not found then return '{}'; end if;
  perform ingest.note_act('erase', pg_catalog.jsonb_build_object('tenant', p_tenant), 1);
  return pg_catalog.jsonb_build_object('public.tenants', 1)
      || case when v_count > 0 then pg_catalog.jsonb_build_object('public.tenant_members', v_count) else '{}' end;
end $$;

revoke execute on function ingest.objects_of(uuid, integer), ingest.erasable(uuid[]), ingest.erase_rows(uuid, integer)
  from public, anon, authenticated, service_role;
