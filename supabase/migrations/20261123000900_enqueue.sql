-- Enqueue: durable intent, an event, a turn and a wake-up; all of it transactional, because Storage
-- tries each write once in a transaction that it rolls back.

-- Let the tenant wait its turn, from p_due on.
--
-- Every path that makes a job available calls this in the transaction that does. The row lock is
-- what the claim's clean-up steps around: it deletes a tenant's turn only when nobody holds it.
create function ingest.take_turn(p_tenant uuid, p_due timestamptz default now())
returns void language plpgsql set search_path = '' as $$
declare
  v_turn ingest.turns;
begin
  loop
    insert into ingest.turns (tenant_id, due_at) values (p_tenant, p_due) on conflict (tenant_id) do nothing;
    exit when found;
    select * into v_turn from ingest.turns where tenant_id = p_tenant for key share;
    if found then
      if v_turn.due_at > p_due or v_turn.last_served_at is null then
        update ingest.turns t set due_at = least(t.due_at, p_due), last_served_at = coalesce(t.last_served_at, '-infinity')
         where t.tenant_id = p_tenant;
      end if;
      return;
    end if;
  end loop;
end $$;

-- Make a job for this generation; null when there is a live one already.
create function ingest.enqueue_job(p_document uuid, p_tenant uuid, p_generation bigint, p_priority smallint default 2, p_kind text default 'ingest')
returns bigint language plpgsql set search_path = '' as $$
declare
  v_id bigint;
begin
  insert into public.jobs (document_id, tenant_id, generation, priority, kind)
  values (p_document, p_tenant, p_generation, p_priority, p_kind)
  on conflict (document_id, generation, kind) where state in ('available', 'running') do nothing
  returning id into v_id;
  if v_id is null then return null; end if;

  insert into public.job_events (job_id, document_id, generation, tenant_id, event, state, attempt, claim)
  values (v_id, p_document, p_generation, p_tenant, 'enqueue', 'available', 0, 0);
  perform ingest.take_turn(p_tenant);
  perform ingest.wake();
  return v_id;
end $$;
