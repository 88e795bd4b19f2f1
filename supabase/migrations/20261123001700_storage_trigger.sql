-- The trigger on storage.objects: what Storage does to an object becomes a document and a job.
--
--   in the bucket before | after | name or bucket | version | what it is
--   no                   | yes   |                |         | new object: document, generation 1, job
--   yes                  | yes   | same           | same    | nothing (a download touched the row)
--   yes                  | yes   | same           | other   | overwrite: generation + 1, job
--   yes                  | yes   | other          | any     | move inside the tenant: one row changes, no job
--   yes                  | yes   | other tenant   |         | delete, then a new document; nothing is reused
--   yes                  | no    |                |         | delete
--
-- One trigger without WHEN and without a column list: naming a column would make Storage's own ALTER
-- TABLE fail. Rows are read through to_jsonb, so that columns may come and go. It only inserts,
-- updates and notifies, because Storage tries every write once in a transaction that it rolls back.
-- It never fails an upload: whatever goes wrong is recorded, and reconcile mends it.

create function ingest.object_size(p_metadata jsonb)
returns bigint language sql immutable set search_path = ''
return case when p_metadata ->> 'size' ~ '^[0-9]{1,15}$' then (p_metadata ->> 'size')::bigint end;

-- The tenant that a name belongs to: its first folder, when that is a tenant. A user whose own
-- tenant is missing (their sign-up could not make it) gets it here.
create function ingest.tenant_of(p_name text)
returns uuid language plpgsql security definer set search_path = '' as $$
declare
  v_id uuid;
begin
  if p_name !~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/.+' then return null; end if;
  select t.id into v_id from public.tenants t where t.id = pg_catalog.split_part(p_name, '/', 1)::uuid;
  if not found then
    insert into public.tenants (id, kind, name)
    select u.id, 'personal', 'Personal' from auth.users u where u.id = pg_catalog.split_part(p_name, '/', 1)::uuid
    on conflict (id) do nothing
    returning id into v_id;
    if not found then                                      -- another first file of theirs made it meanwhile
      select t.id into v_id from public.tenants t where t.id = pg_catalog.split_part(p_name, '/', 1)::uuid;
    end if;
  end if;
  return v_id;
end $$;

-- Cancel a document's jobs that wait, or all live ones. A running one must have lost its lease first.
create function ingest.cancel_jobs_of(p_document uuid, p_code text, p_states public.job_state[])
returns void language sql set search_path = '' as $$
  with live as (
    select id from public.jobs where document_id = p_document and state = any (p_states) order by id for no key update
  ), cancelled as (
    update public.jobs j set state = 'cancelled', finalized_at = pg_catalog.now(), error_code = p_code
      from live where j.id = live.id
    returning j.*
  )
  insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, stage, attempt, claim, error_code)
  select id, document_id, generation, tenant_id, 'cancel', state, stage, attempt, claim, error_code from cancelled
$$;

-- Remove a document: leases, jobs, document with its chunks, in the order in which locks are taken
-- everywhere. Returns the generation it had, null when there was none.
create function ingest.remove_document(p_document uuid)
returns bigint language plpgsql set search_path = '' as $$
declare
  v_generation bigint;
begin
  delete from ingest.leases l using public.jobs j
   where j.document_id = p_document and j.state = 'running' and l.job_id = j.id;
  perform ingest.cancel_jobs_of(p_document, 'document_deleted', '{available,running}');
  delete from public.documents where id = p_document returning generation into v_generation;
  return v_generation;
end $$;

-- Carry one change of an object over to documents and jobs; either row may be null. A job that it makes
-- has p_priority.
create function ingest.apply_object_change(p_old jsonb, p_new jsonb, p_priority smallint default 2)
returns void language plpgsql set search_path = '' as $$
declare
  v_id          uuid := coalesce(p_new ->> 'id', p_old ->> 'id')::uuid;
  v_was         boolean := ingest.is_watched(p_old ->> 'bucket_id', p_old ->> 'name');
  v_is          boolean := ingest.is_watched(p_new ->> 'bucket_id', p_new ->> 'name');
  v_moved       boolean := (p_old ->> 'bucket_id', p_old ->> 'name') is distinct from (p_new ->> 'bucket_id', p_new ->> 'name');
  v_from        uuid;                                      -- the tenant that has the document now
  v_to          uuid;
  v_generation  bigint;
  v_language    text;
begin
  if not v_was and not v_is then return; end if;
  if v_was and v_is and not v_moved and p_old ->> 'version' is not distinct from p_new ->> 'version' then return; end if;
  if v_is then v_to := ingest.tenant_of(p_new ->> 'name'); end if;
  select tenant_id into v_from from public.documents where id = v_id;

  if v_from is not null and v_to is distinct from v_from then
    v_generation := ingest.remove_document(v_id);
  end if;
  if not v_is or v_to is not null then
    delete from ingest.ignored_objects where object_id = v_id;
  end if;
  if not v_is then return; end if;
  if v_to is null then
    insert into ingest.ignored_objects (object_id, bucket_id, name, reason)
    values (v_id, p_new ->> 'bucket_id', p_new ->> 'name', 'no_tenant_folder')
    on conflict (object_id) do update set bucket_id = excluded.bucket_id, name = excluded.name;
    return;
  end if;

  if v_was and v_moved and v_from = v_to then
    update public.documents
       set bucket_id = p_new ->> 'bucket_id', name = p_new ->> 'name', object_version = p_new ->> 'version', updated_at = pg_catalog.now()
     where id = v_id;
    return;
  end if;

  select language into v_language from public.tenants where id = v_to;
  perform ingest.cancel_jobs_of(v_id, 'superseded', '{available}');
  insert into public.documents as d (id, tenant_id, bucket_id, name, generation, object_version, size, mime_type, language)
  values (v_id, v_to, p_new ->> 'bucket_id', p_new ->> 'name', coalesce(v_generation, 0) + 1, p_new ->> 'version',
          ingest.object_size(p_new -> 'metadata'), pg_catalog.left(p_new -> 'metadata' ->> 'mimetype', 200), v_language)
  on conflict (id) do update
     set generation = d.generation + 1, state = 'pending', bucket_id = excluded.bucket_id, name = excluded.name,
         object_version = excluded.object_version, size = excluded.size, mime_type = excluded.mime_type,
         content_sha256 = null, parse_id = null, error_code = null, error_message = null, updated_at = pg_catalog.now()
  returning d.generation into v_generation;
  perform ingest.enqueue_job(v_id, v_to, v_generation, p_priority);
end $$;

-- An object that becomes a document: in a watched bucket, and not what Studio makes for an empty folder.
create function ingest.is_watched(p_bucket text, p_name text)
returns boolean language sql stable set search_path = '' as $$
  select coalesce(exists (select 1 from ingest.buckets b where b.bucket_id = p_bucket)
                  and p_name !~ '(^|/)\.emptyFolderPlaceholder$', false)
$$;

-- An exception of apply_object_change is caught here. A deletion is tried once more, then the
-- document is hidden by a tombstone, because its object is gone in any case. The lock timeout stops
-- a wait that a statement timeout would end beyond the reach of `when others`.
create function ingest.object_changed()
returns trigger language plpgsql security definer set search_path = '' set lock_timeout = '2s' as $$
declare
  v_old      jsonb := pg_catalog.to_jsonb(old);
  v_new      jsonb := pg_catalog.to_jsonb(new);
  v_state    text;
  v_message  text;
begin
  begin
    perform ingest.apply_object_change(v_old, v_new);
    return null;
  exception when others then
    v_state := sqlstate; v_message := sqlerrm;
  end;
  begin
    if tg_op = 'DELETE' then
      begin
        perform ingest.apply_object_change(v_old, v_new);
        return null;
      exception when others then
        v_state := sqlstate; v_message := sqlerrm;
      end;
    end if;
    insert into ingest.trigger_failures (object_id, operation, sqlstate, message)
    values (coalesce(v_new ->> 'id', v_old ->> 'id')::uuid, tg_op, v_state, pg_catalog.left(v_message, 1000));
    if tg_op = 'DELETE' or tg_op = 'UPDATE' and pg_catalog.split_part(v_old ->> 'name', '/', 1) <> pg_catalog.split_part(v_new ->> 'name', '/', 1)
       or tg_op = 'UPDATE' and v_old ->> 'bucket_id' <> v_new ->> 'bucket_id' then
      insert into ingest.tombstones (object_id, error) values ((v_old ->> 'id')::uuid, v_state) on conflict (object_id) do nothing;
    end if;
  exception when others then
    raise warning 'sluice: % of object % was not recorded: % (%)', tg_op, coalesce(v_new ->> 'id', v_old ->> 'id'), sqlerrm, sqlstate;
  end;
  return null;
end $$;

create or replace trigger sluice_object_changed after insert or update or delete on storage.objects
  for each row execute function ingest.object_changed();
