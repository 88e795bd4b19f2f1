-- Quotas: how many bytes and files a tenant may keep, how many pages it may have read a month (UTC), and
-- how many of its jobs run at once.
--
-- Bytes and files are asked for twice. Storage tries every write once with the caller's rights before it
-- takes the bytes, and there the policy refuses what does not fit: politely, because uploads under way
-- do not see each other, and of a signed URL's upload nobody knows the size yet. What got past is refused
-- when its job is claimed. Usage is summed from the tenant's documents when it is asked for: 10,000
-- documents take 1.2 ms (0.3 ms at 1,000), and a sum kept in a row would let one tenant's uploads wait for each other.

create table ingest.quotas (
  id           bigint generated always as identity primary key,
  tenant_id    uuid unique nulls not distinct references public.tenants (id) on delete cascade,   -- null: every tenant without a row of its own
  bytes        bigint check (bytes >= 0),                  -- null, here and below: no limit
  files        bigint check (files >= 0),
  pages_month  bigint check (pages_month >= 0),
  running      integer check (running >= 1),
  updated_at   timestamptz not null default now()
);
comment on table ingest.quotas is 'How much a tenant may keep, have read a month, and have running at once.';
insert into ingest.quotas (tenant_id) values (null);
alter table ingest.quotas enable row level security;
create policy tenant_reads on ingest.quotas for select to authenticated
  using (tenant_id is null or tenant_id = any (array(select ingest.my_tenants('reader'))));

-- The pages that were read for a tenant in a month, by whatever parser: counted when a parse is done, so
-- that deleting a file gives none back.
create table ingest.page_months (
  tenant_id  uuid not null,
  month      date not null,
  pages      bigint not null default 0,
  primary key (tenant_id, month)
) with (fillfactor = 50);
alter table ingest.page_months enable row level security;

create function ingest.this_month()
returns date language sql stable set search_path = '' as $$
  select pg_catalog.date_trunc('month', pg_catalog.clock_timestamp() at time zone 'UTC')::date
$$;

create function ingest.count_pages()
returns trigger language plpgsql security definer set search_path = '' as $$
begin
  insert into ingest.page_months as m (tenant_id, month, pages)
  values (new.tenant_id, ingest.this_month(), new.page_count)
  on conflict (tenant_id, month) do update set pages = m.pages + excluded.pages;
  return null;
end $$;
create trigger count_pages after update of state on ingest.parses for each row
  when (new.state = 'done' and old.state <> 'done' and new.page_count > 0) execute function ingest.count_pages();

-- What holds for a tenant: its own row, also where that says that there is no limit, else everybody's.
create function ingest.quota_of(p_tenant uuid)
returns ingest.quotas language sql stable set search_path = '' as $$
  select q.* from ingest.quotas q where q.tenant_id = p_tenant or q.tenant_id is null order by q.tenant_id limit 1
$$;

-- What a tenant keeps. With a document: up to that one, in the order in which they came.
create function ingest.kept_by(p_tenant uuid, p_document public.documents default null, out bytes bigint, out files bigint)
language sql stable set search_path = '' as $$
  select coalesce(pg_catalog.sum(d.size), 0)::bigint, pg_catalog.count(*)
    from public.documents d
   where d.tenant_id = p_tenant
     and ((p_document).id is null
          or d.created_at <= (p_document).created_at and (d.created_at < (p_document).created_at or d.id <= (p_document).id))
$$;

create function ingest.quota_message(p_limit text, p_used bigint, p_quota bigint)
returns text language sql immutable set search_path = '' as $$
  select case p_limit
    when 'bytes' then pg_catalog.format('with this file there would be %s of %s bytes. Delete files, or ask the operator for more space.', p_used, p_quota)
    when 'files' then pg_catalog.format('with this file there would be %s of %s files. Delete files, or ask the operator for more.', p_used, p_quota)
    else pg_catalog.format('%s of %s pages were read this month. It is read when the next month begins, or ask the operator for more.', p_used, p_quota) end
$$;

-- Whether this write may go on to Storage: called by the policies, before the bytes are taken. An
-- overwrite counts the difference; what makes nothing grow, a move above all, always passes. Raises 42501,
-- whose text Storage hands on to the client.
--
-- Stable: it must see the row as it was before this statement. The old row is looked for by name first,
-- because an upsert is asked as an insert too.
create function ingest.admit_upload(p_object uuid, p_bucket text, p_name text, p_metadata jsonb)
returns boolean language plpgsql stable security definer set search_path = '' as $$
declare
  v_tenant  uuid;
  v_quota   ingest.quotas;
  v_size    bigint := coalesce(ingest.object_size(p_metadata),
                               case when p_metadata ->> 'contentLength' ~ '^[0-9]{1,15}$' then (p_metadata ->> 'contentLength')::bigint end, 0);
  v_old     jsonb;
  v_new     integer := 1;                                  -- files that this write adds
  v_kept    record;
begin
  -- Text until it is known to be one of the caller's own: nobody learns how full another's folder is.
  select t into v_tenant from ingest.my_tenants('editor') t where t::text = pg_catalog.split_part(p_name, '/', 1);
  if not found then return false; end if;
  if not ingest.is_watched(p_bucket, p_name) then return true; end if;
  v_quota := ingest.quota_of(v_tenant);
  if v_quota.bytes is null and v_quota.files is null then return true; end if;

  select o.metadata into v_old from storage.objects o where o.bucket_id = p_bucket and o.name = p_name;
  if found then
    v_new := 0;
    v_size := v_size - coalesce(ingest.object_size(v_old), 0);
  elsif exists (select 1 from storage.objects o where o.id = p_object) then
    return true;                                           -- a move
  end if;

  select k.bytes + v_size as bytes, k.files + v_new as files into v_kept from ingest.kept_by(v_tenant) k;
  if v_new > 0 and v_kept.files > v_quota.files then
    raise exception 'quota_exceeded: %', ingest.quota_message('files', v_kept.files, v_quota.files) using errcode = '42501';
  elsif v_size > 0 and v_kept.bytes > v_quota.bytes then
    raise exception 'quota_exceeded: %', ingest.quota_message('bytes', v_kept.bytes, v_quota.bytes) using errcode = '42501';
  end if;
  return true;
end $$;

-- The condition stands inside the CASE, so that nothing else's upload is ever asked.
drop policy if exists sluice_insert on storage.objects;
create policy sluice_insert on storage.objects for insert to authenticated
  with check (case when bucket_id = any (array(select ingest.watched_buckets()))
                        and (storage.foldername(name))[1] = any (array(select ingest.my_folders('editor')))
                   then ingest.admit_upload(id, bucket_id, name, metadata) else false end);
drop policy if exists sluice_update on storage.objects;
create policy sluice_update on storage.objects for update to authenticated
  using (bucket_id = any (array(select ingest.watched_buckets()))
         and (storage.foldername(name))[1] = any (array(select ingest.my_folders('editor'))))
  with check (case when bucket_id = any (array(select ingest.watched_buckets()))
                        and (storage.foldername(name))[1] = any (array(select ingest.my_folders('editor')))
                   then ingest.admit_upload(id, bucket_id, name, metadata) else false end);

-- What people see of it through the API: the limits of their tenants and what is used of them.
create function ingest.quotas_of_caller()
returns table (tenant_id uuid, bytes bigint, bytes_used bigint, files bigint, files_used bigint, pages_month bigint,
               pages_used bigint, running integer)
language sql stable security definer set search_path = '' as $$
  select t.id, q.bytes, k.bytes, q.files, k.files, q.pages_month, coalesce(m.pages, 0), q.running
    from public.tenants t
   cross join lateral ingest.quota_of(t.id) q
   cross join lateral ingest.kept_by(t.id) k
    left join ingest.page_months m on m.tenant_id = t.id and m.month = ingest.this_month()
   where t.id = any (array(select ingest.my_tenants('reader')))
$$;
create function public.my_quotas()
returns table (tenant_id uuid, bytes bigint, bytes_used bigint, files bigint, files_used bigint, pages_month bigint,
               pages_used bigint, running integer)
language sql stable set search_path = '' as $$
  select q.tenant_id, q.bytes, q.bytes_used, q.files, q.files_used, q.pages_month, q.pages_used, q.running from ingest.quotas_of_caller() q
$$;
comment on function public.my_quotas is 'The limits of the caller''s tenants and what is used of them; null is no limit.';

revoke all on ingest.quotas, ingest.page_months from anon, authenticated, service_role;
revoke execute on function
  ingest.this_month(), ingest.count_pages(), ingest.quota_of(uuid), ingest.kept_by(uuid, public.documents),
  ingest.quota_message(text, bigint, bigint), ingest.admit_upload(uuid, text, text, jsonb),
  ingest.quotas_of_caller(), public.my_quotas()
  from public, anon, authenticated, service_role;
grant select on ingest.quotas to authenticated, service_role, ingest_worker;
grant execute on function
  ingest.admit_upload(uuid, text, text, jsonb), ingest.quotas_of_caller(), public.my_quotas()
  to authenticated;
