-- Reconcile: whatever the object trigger missed (it was broken, disabled, or not there yet) is found by
-- comparing storage.objects with documents, both ways, page by page, and mended through the trigger's
-- own function.
--
--   object without document            → as if it were uploaded now
--   document of another version, name  → as if it were overwritten now; equal bytes cost a download only
--   document that waits without a job  → a job
--   document without object            → remembered; removed after two sightings and Storage's own word
--
-- A live change and a mending never meet: the mending locks the object's row first and steps around one
-- that is locked, and the trigger runs in transactions that hold it. What was chosen is judged again
-- under the lock.
--
-- A document is removed only when all of this holds, because a listing can be wrong for many reasons
-- (a half-restored dump, a role that sees nothing, another project's API):
--   two sightings at least five minutes apart, nothing seen of the object between them;
--   `not found` from the Storage API, which the worker asks;
--   at most 5 % of the bucket's documents are gone, or at most three: of fewer than 20 documents 5 % is not
--     one, and no deletion would ever be mended; what a wrong listing can cost there stays three documents;
--   the listing of the bucket is not empty;
--   whoever reads storage.objects is not subject to its policies.

create table ingest.missing_objects (
  document_id    uuid primary key,
  bucket_id      text not null,
  first_seen_at  timestamptz not null default clock_timestamp(),   -- when it was first found missing
  last_seen_at   timestamptz not null default clock_timestamp()
);
comment on table ingest.missing_objects is 'Documents whose object was not there when reconcile looked.';
create index missing_objects_bucket_idx on ingest.missing_objects (bucket_id);
alter table ingest.missing_objects enable row level security;

-- When the comparison was made; one row.
create table ingest.reconciles (
  one          boolean primary key default true check (one),
  started_at   timestamptz,
  finished_at  timestamptz
);
insert into ingest.reconciles default values;
alter table ingest.reconciles enable row level security;

-- True for one worker every p_every; it says end_reconcile() afterwards. One that died in the middle
-- holds up the next for a quarter of an hour. Two at once would do no harm, only the work twice.
create function ingest.begin_reconcile(p_every interval)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
  if not pg_catalog.pg_try_advisory_xact_lock(7150010004) then return false; end if;
  update ingest.reconciles
     set started_at = pg_catalog.clock_timestamp(), finished_at = null
   where started_at is null
      or started_at <= pg_catalog.clock_timestamp() - p_every
         and (finished_at is not null or started_at <= pg_catalog.clock_timestamp() - interval '15 minutes');
  return found;
end $$;

create function ingest.end_reconcile()
returns void language sql security definer set search_path = '' as $$
  update ingest.reconciles set finished_at = pg_catalog.clock_timestamp()
$$;

-- Raise IG006 when the caller's view of storage.objects is cut by policies: every object would be missing.
create function ingest.check_sight()
returns void language plpgsql set search_path = '' as $$
begin
  if pg_catalog.row_security_active('storage.objects') then
    raise exception 'Role % sees storage.objects through policies and must not compare it with documents.', current_user
      using errcode = 'IG006', hint = 'The functions of reconcile belong to postgres; give them back to it.';
  end if;
end $$;

-- What is amiss with an object of a watched bucket: 'missing' or 'behind'; null when its document is
-- right, when it can never be one, or when its tombstone will be carried out.
create function ingest.object_trouble(p_object uuid)
returns text language sql stable set search_path = '' as $$
  select case
      when not ingest.is_watched(o.bucket_id, o.name) or exists (select 1 from ingest.tombstones t where t.object_id = o.id) then null
      when d.id is null and exists (select 1 from ingest.ignored_objects i
                                     where i.object_id = o.id and i.bucket_id = o.bucket_id and i.name = o.name) then null
      when d.id is null then 'missing'
      when (d.bucket_id, d.name, d.object_version) is distinct from (o.bucket_id, o.name, o.version) then 'behind'
    end
    from storage.objects o left join public.documents d on d.id = o.id
   where o.id = p_object
$$;

-- Mend one object; true when there was something to mend.
create function ingest.mend_object(p_object uuid, p_priority smallint)
returns boolean language plpgsql set search_path = '' as $$
declare
  v_object   jsonb;
  v_trouble  text;
begin
  select pg_catalog.to_jsonb(o) into v_object from storage.objects o where o.id = p_object for no key update skip locked;
  if not found then return false; end if;                  -- it is being changed: the trigger's, or the next pass's
  v_trouble := ingest.object_trouble(p_object);            -- again, in a snapshot of after the lock
  if v_trouble is null then return false; end if;
  if v_trouble = 'missing' and (v_object ->> 'created_at')::timestamptz
       < (select added_at from ingest.buckets where bucket_id = v_object ->> 'bucket_id') then
    p_priority := 4;                                       -- from before the bucket was watched: nobody waits for it
  end if;
  perform ingest.apply_object_change(null, v_object, p_priority);
  return true;
end $$;

-- Compare a page of a bucket's objects, in the order of their names, with documents. `last_name` is where
-- the next page begins, null at the end. Without p_mend it only counts. What cannot be mended stands in
-- ingest.trigger_failures. The page is one transaction, for whose length a new tenant's other uploads may
-- wait for its turn's row, and their trigger gives up after 2 s: 100 new objects take 33 ms, at most 1,000 are allowed.
create function ingest.reconcile_objects(p_bucket text, p_after text, p_limit integer, p_priority smallint, p_mend boolean)
returns table (last_name text, seen integer, missing integer, behind integer, mended integer, failed integer)
language plpgsql security definer set search_path = '' as $$
declare
  v_page     record;
  v_object   uuid;
  v_state    text;
  v_message  text;
begin
  if (p_limit between 1 and 1000) is not true then
    raise exception 'p_limit is %, it must be between 1 and 1000', p_limit using errcode = '22023';
  end if;
  perform ingest.check_sight();
  with page as (
    -- The function is asked about the few that differ: a call takes 50 µs, the comparison one.
    select o.id, o.name,
           case when d.id is null or (d.bucket_id, d.name, d.object_version) is distinct from (p_bucket, o.name, o.version)
                then ingest.object_trouble(o.id) end as trouble
      from (select s.id, s.name, s.version from storage.objects s
             where s.bucket_id = p_bucket and s.name collate "C" > coalesce(p_after, '') collate "C"
             order by s.name collate "C" limit p_limit) o
      left join public.documents d on d.id = o.id
  )
  select pg_catalog.count(*) as seen, pg_catalog.max(name collate "C") as last_name,
         pg_catalog.count(*) filter (where trouble = 'missing') as missing,
         pg_catalog.count(*) filter (where trouble = 'behind') as behind,
         pg_catalog.array_agg(id order by id) filter (where trouble is not null) as ids
    into v_page from page;
  last_name := case when v_page.seen = p_limit then v_page.last_name end;
  seen := v_page.seen; missing := v_page.missing; behind := v_page.behind; mended := 0; failed := 0;
  if p_mend and v_page.ids is not null then
    foreach v_object in array v_page.ids loop
      -- One that cannot be mended keeps no other.
      begin
        if ingest.mend_object(v_object, p_priority) then mended := mended + 1; end if;
      exception when others then
        failed := failed + 1;
        v_state := sqlstate; v_message := sqlerrm;
        delete from ingest.trigger_failures f where f.object_id = v_object and f.operation = 'RECONCILE';
        insert into ingest.trigger_failures (object_id, operation, sqlstate, message)
        values (v_object, 'RECONCILE', v_state, pg_catalog.left(v_message, 1000));
      end;
    end loop;
  end if;
  return next;
end $$;

-- Whether a document's object is gone, or stands where nothing is watched.
create function ingest.object_gone(p_document uuid)
returns boolean language sql stable set search_path = '' as $$
  select not exists (select 1 from storage.objects o where o.id = p_document and ingest.is_watched(o.bucket_id, o.name))
$$;

-- Compare a page of documents, in the order of their ids, with objects: note those whose object is gone,
-- and make the jobs that those who wait lack. Documents of buckets no longer watched are left as they are.
create function ingest.reconcile_documents(p_after uuid, p_limit integer, p_mend boolean)
returns table (last_id uuid, seen integer, gone integer, idle integer, enqueued integer)
language plpgsql security definer set search_path = '' as $$
declare
  v_page      record;
  v_document  public.documents;
begin
  if (p_limit between 1 and 1000) is not true then
    raise exception 'p_limit is %, it must be between 1 and 1000', p_limit using errcode = '22023';
  end if;
  perform ingest.check_sight();
  with page as (
    select d.id, d.bucket_id, d.state, d.generation,
           d.bucket_id in (select b.bucket_id from ingest.buckets b)
             and case when o.bucket_id = d.bucket_id and o.name = d.name then false else ingest.object_gone(d.id) end
             and not exists (select 1 from ingest.tombstones t where t.object_id = d.id) as gone
      from (select * from public.documents s where p_after is null or s.id > p_after order by s.id limit p_limit) d
      left join storage.objects o on o.id = d.id
  ), judged as (
    select p.*, not p.gone and p.state in ('pending', 'processing')
                and not exists (select 1 from public.jobs j where j.document_id = p.id and j.generation = p.generation
                                  and j.state in ('available', 'running')) as idle
      from page p
  )
  select pg_catalog.count(*) as seen, (pg_catalog.array_agg(id order by id desc))[1] as last_id,
         pg_catalog.array_agg(id order by id) as ids,
         coalesce(pg_catalog.array_agg(id order by id) filter (where judged.gone), '{}') as gone,
         coalesce(pg_catalog.array_agg(id order by id) filter (where judged.idle), '{}') as idle
    into v_page from judged;
  last_id := case when v_page.seen = p_limit then v_page.last_id end;
  seen := v_page.seen; gone := cardinality(v_page.gone); idle := cardinality(v_page.idle); enqueued := 0;
  if p_mend then
    delete from ingest.missing_objects m where m.document_id = any (v_page.ids) and not m.document_id = any (v_page.gone);
    insert into ingest.missing_objects as m (document_id, bucket_id)
    select d.id, d.bucket_id from public.documents d where d.id = any (v_page.gone) order by d.id
    on conflict (document_id) do update set last_seen_at = pg_catalog.clock_timestamp(), bucket_id = excluded.bucket_id;
    foreach v_document.id in array v_page.idle loop
      select * into v_document from public.documents d where d.id = v_document.id for no key update skip locked;
      -- Again, in a snapshot of after the lock.
      if found and v_document.state in ('pending', 'processing')
         and not exists (select 1 from public.jobs j where j.document_id = v_document.id and j.generation = v_document.generation
                           and j.state in ('available', 'running'))
         and ingest.enqueue_job(v_document.id, v_document.tenant_id, v_document.generation) is not null then
        enqueued := enqueued + 1;
      end if;
    end loop;
  end if;
  return next;
end $$;

-- Why no document of this bucket may be removed now; null when they may.
create function ingest.removal_refused(p_bucket text)
returns text language plpgsql stable set search_path = '' as $$
declare
  v_documents  bigint;
  v_gone       bigint;
begin
  perform ingest.check_sight();
  if not exists (select 1 from storage.objects o where o.bucket_id = p_bucket) then
    return pg_catalog.format(
      'Storage lists nothing at all in bucket %1$s, so no document of it is removed. If the bucket was really emptied, '
      'an operator removes them: select ingest.remove_document(id) from public.documents where bucket_id = %1$L;', p_bucket);
  end if;
  -- One join, not a call for each document: 60 ms for 30,000.
  select pg_catalog.count(*), pg_catalog.count(*) filter (where o.id is null) into v_documents, v_gone
    from public.documents d
    left join (select s.id from storage.objects s join ingest.buckets b on b.bucket_id = s.bucket_id
                where s.name !~ '(^|/)\.emptyFolderPlaceholder$') o on o.id = d.id
   where d.bucket_id = p_bucket and not exists (select 1 from ingest.tombstones t where t.object_id = d.id);
  if v_gone > greatest(3, v_documents / 20) then
    return pg_catalog.format(
      'Of the %2$s documents in bucket %1$s, %3$s have no object any more, which is more than reconcile removes by itself '
      '(5 %%, or 3). If they were really deleted, an operator removes them: select ingest.remove_document(document_id) '
      'from ingest.missing_objects where bucket_id = %1$L;', p_bucket, v_documents, v_gone);
  end if;
  return null;
end $$;

-- The documents of a bucket whose object was missing at two sightings five minutes apart, with the
-- reason why none may be removed, or null. A refusal is an alert, which ends when there is none.
create function ingest.missing_documents(p_bucket text, p_limit integer, p_mend boolean)
returns table (document_id uuid, name text, refused text) language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  v_refused  text;
begin
  if p_mend then
    delete from ingest.missing_objects m
     where m.bucket_id = p_bucket and not exists (select 1 from public.documents d where d.id = m.document_id);
  end if;
  if exists (select 1 from ingest.missing_objects m where m.bucket_id = p_bucket and m.last_seen_at - m.first_seen_at >= interval '5 minutes') then
    v_refused := ingest.removal_refused(p_bucket);
    if p_mend and v_refused is not null then perform ingest.raise_alert('reconcile_refused', p_bucket, v_refused); end if;
  end if;
  if p_mend and v_refused is null then perform ingest.resolve_alert('reconcile_refused', p_bucket); end if;
  return query
    select d.id, d.name, v_refused from ingest.missing_objects m join public.documents d on d.id = m.document_id
     where m.bucket_id = p_bucket and m.last_seen_at - m.first_seen_at >= interval '5 minutes'
     order by m.last_seen_at, d.id limit p_limit;
end $$;

-- Remove these documents, of which the Storage API said `not found`; returns how many were removed. Every
-- other condition is asked anew. Raises IG007 when removing is refused.
create function ingest.remove_missing(p_bucket text, p_documents uuid[])
returns integer language plpgsql security definer set search_path = '' as $$
declare
  v_refused   text := ingest.removal_refused(p_bucket);
  v_document  uuid;
  v_removed   integer := 0;
begin
  if v_refused is not null then raise exception '%', v_refused using errcode = 'IG007'; end if;
  for v_document in
    select m.document_id from ingest.missing_objects m
     where m.document_id = any (p_documents) and m.bucket_id = p_bucket and m.last_seen_at - m.first_seen_at >= interval '5 minutes'
     order by m.document_id for update skip locked
  loop
    begin
      perform ingest.remove_document(v_document);
      -- The object may have come while the removal waited for its document.
      if not ingest.object_gone(v_document) then
        raise exception 'object % is there again', v_document using errcode = 'IG008';
      end if;
      delete from ingest.missing_objects where document_id = v_document;
      v_removed := v_removed + 1;
    exception
      when lock_not_available or sqlstate 'IG008' then null;   -- in use: the next pass looks again
      when others then raise warning 'sluice: document % was not removed: % (%)', v_document, sqlerrm, sqlstate;
    end;
  end loop;
  return v_removed;
end $$;

-- Forget what the trigger caught and what is right by now; returns how many it forgot.
create function ingest.clear_trigger_failures(p_limit integer default 1000)
returns integer language plpgsql security definer set search_path = '' as $$
declare
  v_cleared  integer;
begin
  perform ingest.check_sight();
  delete from ingest.trigger_failures where id in (
    select f.id from ingest.trigger_failures f
     where not exists (select 1 from ingest.tombstones t where t.object_id = f.object_id)
       and ingest.object_trouble(f.object_id) is null
       and not (ingest.object_gone(f.object_id) and exists (select 1 from public.documents d where d.id = f.object_id))
     order by f.id limit p_limit for update skip locked);
  get diagnostics v_cleared = row_count;
  return v_cleared;
end $$;

-- How many objects a bucket holds.
create function ingest.count_objects(p_bucket text)
returns bigint language plpgsql stable security definer set search_path = '' as $$
begin
  perform ingest.check_sight();
  return (select pg_catalog.count(*) from storage.objects where bucket_id = p_bucket);
end $$;

-- Watch a bucket from now on: 'added', 'watched' when it was before, or 'no such bucket'. What is in it
-- already is taken in by reconcile.
create function ingest.watch_bucket(p_bucket text)
returns text language plpgsql security definer set search_path = '' as $$
begin
  if not exists (select 1 from storage.buckets where id = p_bucket) then return 'no such bucket'; end if;
  insert into ingest.buckets (bucket_id) values (p_bucket) on conflict do nothing;
  return case when found then 'added' else 'watched' end;
end $$;
