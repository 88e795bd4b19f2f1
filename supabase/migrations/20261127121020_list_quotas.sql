-- For operators: every quota that is set, everybody's first, and what its tenant keeps, read this month and has running.
-- Definer: the worker's login may not read the months' pages in any other way.
create function ingest.list_quotas()
returns table (tenant_id uuid, bytes bigint, files bigint, pages_month bigint, running integer,
               bytes_kept bigint, files_kept bigint, pages_read bigint, running_now bigint)
language sql stable security definer set search_path = '' as $$
  select q.tenant_id, q.bytes, q.files, q.pages_month, q.running,
         kept.bytes, kept.files,
         case when q.tenant_id is not null then coalesce(m.pages, 0) end,
         case when q.tenant_id is not null then (select pg_catalog.count(*) from ingest.leases l where l.tenant_id = q.tenant_id) end
    from ingest.quotas q
    left join lateral ingest.kept_by(q.tenant_id) kept on q.tenant_id is not null
    left join ingest.page_months m on m.tenant_id = q.tenant_id and m.month = ingest.this_month()
   order by q.tenant_id nulls first
$$;

revoke execute on function ingest.list_quotas() from public, anon, authenticated, service_role;
grant execute on function ingest.list_quotas() to ingest_worker;
