-- The bucket, and who may do what with the objects in watched buckets.
--
-- Only policies are created on Storage's tables. RLS is on there already, and hosted projects refuse
-- ALTER TABLE on them.

insert into storage.buckets (id, name, public, file_size_limit)
values ('documents', 'documents', false, 52428800)
on conflict (id) do nothing;
insert into ingest.buckets (bucket_id) values ('documents') on conflict do nothing;

-- The folders in which the caller holds at least this role, as object names spell them.
create function ingest.my_folders(p_role public.tenant_role)
returns setof text language sql stable security definer rows 4 set search_path = '' as $$
  select t::text from ingest.my_tenants(p_role) t
$$;

drop policy if exists sluice_read on storage.objects;
create policy sluice_read on storage.objects for select to authenticated
  using (bucket_id = any (array(select ingest.watched_buckets()))
         and (storage.foldername(name))[1] = any (array(select ingest.my_folders('reader'))));

drop policy if exists sluice_insert on storage.objects;
create policy sluice_insert on storage.objects for insert to authenticated
  with check (bucket_id = any (array(select ingest.watched_buckets()))
              and (storage.foldername(name))[1] = any (array(select ingest.my_folders('editor'))));

drop policy if exists sluice_update on storage.objects;
create policy sluice_update on storage.objects for update to authenticated
  using (bucket_id = any (array(select ingest.watched_buckets()))
         and (storage.foldername(name))[1] = any (array(select ingest.my_folders('editor'))))
  with check (bucket_id = any (array(select ingest.watched_buckets()))
              and (storage.foldername(name))[1] = any (array(select ingest.my_folders('editor'))));

drop policy if exists sluice_delete on storage.objects;
create policy sluice_delete on storage.objects for delete to authenticated
  using (bucket_id = any (array(select ingest.watched_buckets()))
         and (storage.foldername(name))[1] = any (array(select ingest.my_folders('editor'))));
