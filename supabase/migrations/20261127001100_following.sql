-- Who may follow what: policies for receiving from private channels. There is none for sending, so that nobody
-- can forge progress; the database and the secret key bypass them.

-- Whether the caller operates this installation. In app_metadata, which its owner cannot write.
create function ingest.is_operator()
returns boolean language sql stable set search_path = '' as $$
  select coalesce(auth.uid() is not null and auth.jwt() -> 'app_metadata' ->> 'sluice_role' = 'operator', false)
$$;

-- Whether the caller may receive on this topic. Definer, because Realtime asks in a transaction in which nothing
-- but the answer counts; the topic is a client's text and becomes an id only where it looks like one.
create function ingest.may_follow(p_topic text)
returns boolean language sql stable security definer set search_path = '' as $$
  select case
    when p_topic = 'ops:jobs' then ingest.is_operator()
    when p_topic ~ '^document:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then exists (
      select 1 from public.documents d
       where d.id = pg_catalog.substr(p_topic, 10)::uuid and d.tenant_id = any (array(select ingest.my_tenants('reader')))
         and not exists (select 1 from ingest.tombstones t where t.object_id = d.id))
    else false end
$$;

revoke execute on function ingest.is_operator(), ingest.may_follow(text) from public, anon, authenticated, service_role;
grant execute on function ingest.is_operator(), ingest.may_follow(text) to authenticated;
