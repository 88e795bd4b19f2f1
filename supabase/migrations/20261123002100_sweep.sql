-- Sweep: pages and vectors that nothing uses any more, and tombstones that can now be carried out.
-- Each function works through a bounded batch and returns how many rows it removed.

-- Parses that no document publishes or works on. A parse that a job has just found is kept by the
-- document that names it; p_age covers the moment between the two.
create function ingest.sweep_parses(p_age interval default interval '1 hour', p_limit integer default 100)
returns integer language plpgsql set search_path = '' as $$
declare
  v_ids      bigint[];
  v_removed  integer;
begin
  -- Locked first and judged again by the next statement's snapshot: begin_parse locks the row too.
  select pg_catalog.array_agg(l.id) into v_ids from (
    select p.id from ingest.parses p
     where p.created_at < pg_catalog.now() - p_age
       and (p.state in ('done', 'failed') or p.state = 'submitting' and not exists (   -- its submitter died or was cancelled
              select 1 from ingest.leases l where l.job_id = p.submitted_job and l.claim = p.submitted_by))
       and not exists (select 1 from public.documents d where d.parse_id = p.id)
       and not exists (select 1 from public.documents d where d.published_parse_id = p.id)
     order by p.id limit p_limit for update skip locked) l;
  delete from ingest.parses p
   where p.id = any (v_ids)
     and not exists (select 1 from public.documents d where d.parse_id = p.id)
     and not exists (select 1 from public.documents d where d.published_parse_id = p.id);
  get diagnostics v_removed = row_count;
  return v_removed;
end $$;

-- Vectors that no chunk of their tenant uses, a day after they were made: until then a job that
-- embeds now may still publish them. Publishing locks its vectors, so none goes from under it.
create function ingest.sweep_embeddings(p_age interval default interval '1 day', p_limit integer default 5000)
returns integer language plpgsql set search_path = '' as $$
declare
  v_models   smallint[];
  v_tenants  uuid[];
  v_keys     bytea[];
  v_removed  integer;
begin
  -- Locked first and judged again by the next statement's snapshot: a publish may have committed
  -- between this one's snapshot and its lock, and locking a vector does not change its row.
  select pg_catalog.array_agg(l.model_id), pg_catalog.array_agg(l.tenant_id), pg_catalog.array_agg(l.content_sha256)
    into v_models, v_tenants, v_keys from (
    select e.model_id, e.tenant_id, e.content_sha256 from ingest.embeddings e
     where e.created_at < pg_catalog.now() - p_age
       and not exists (select 1 from public.chunks c where c.tenant_id = e.tenant_id and c.content_sha256 = e.content_sha256)
     limit p_limit for update skip locked) l;
  delete from ingest.embeddings e using unnest(v_models, v_tenants, v_keys) as u(model_id, tenant_id, content_sha256)
   where e.model_id = u.model_id and e.tenant_id = u.tenant_id and e.content_sha256 = u.content_sha256
     and not exists (select 1 from public.chunks c where c.tenant_id = e.tenant_id and c.content_sha256 = e.content_sha256);
  get diagnostics v_removed = row_count;
  return v_removed;
end $$;

-- Jobs that ended longer ago than p_age, discarded ones longer ago than p_discarded_age; their details
-- go with them, their events with their month. Definer: the worker may delete no job otherwise.
create function ingest.prune_jobs(
  p_age interval default interval '7 days', p_discarded_age interval default interval '90 days', p_limit integer default 1000
)
returns integer language plpgsql security definer set search_path = '' as $$
declare
  v_state    public.job_state;
  v_pruned   integer;
  v_removed  integer := 0;
begin
  if (p_age >= interval '1 hour' and p_discarded_age >= interval '1 hour' and p_limit between 1 and 10000) is not true then
    raise exception 'prune_jobs: ages %, % or limit % out of range: an hour at least, 1 to 10,000 jobs', p_age, p_discarded_age, p_limit
      using errcode = '22023';
  end if;
  foreach v_state in array array['completed', 'cancelled', 'discarded']::public.job_state[] loop
    delete from public.jobs where id in (
      select id from public.jobs
       where state = v_state and finalized_at < pg_catalog.now() - case when v_state = 'discarded' then p_discarded_age else p_age end
       order by finalized_at limit p_limit - v_removed for update skip locked);
    get diagnostics v_pruned = row_count;
    v_removed := v_removed + v_pruned;
  end loop;
  return v_removed;
end $$;

-- Carry out the deletions that the trigger could not; an object that still exists was moved, and is
-- taken in anew where it stands. Definer: it reads storage.objects.
create function ingest.sweep_tombstones(p_limit integer default 100)
returns integer language plpgsql security definer set search_path = '' as $$
declare
  v_id       uuid;
  v_object   jsonb;
  v_removed  integer := 0;
begin
  for v_id in select object_id from ingest.tombstones order by at limit p_limit for update skip locked loop
    -- One that still fails stays hidden and does not keep the others.
    begin
      perform ingest.remove_document(v_id);
      select pg_catalog.to_jsonb(o) into v_object from storage.objects o where o.id = v_id;
      if found then perform ingest.apply_object_change(null, v_object); end if;
      delete from ingest.tombstones where object_id = v_id;
      v_removed := v_removed + 1;
    exception when others then
      raise warning 'sluice: the tombstone of object % stays: % (%)', v_id, sqlerrm, sqlstate;
      update ingest.tombstones set at = pg_catalog.clock_timestamp() where object_id = v_id;   -- to the end of the line
    end;
  end loop;
  return v_removed;
end $$;
