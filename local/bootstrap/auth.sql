-- Schema auth around the tables that auth.ts prints; run by supabase_admin after them.
--
-- Row-level security stays off on these tables: the hosted Auth server owns them, the local one (lite_api)
-- owns nothing and does not bypass it.

do $$
declare
  r record;
begin
  for r in select c.oid::regclass as name from pg_class c
           where c.relnamespace = 'auth'::regnamespace and c.relkind in ('r', 'p')
  loop
    execute format('alter table %s owner to supabase_auth_admin', r.name);
    execute format('grant all on table %s to postgres', r.name);
    execute format('grant select, insert, update, delete on table %s to lite_api', r.name);
  end loop;
end $$;

-- The claims of the request, whichever of the two settings carries them: the current one holds them all as one
-- object, the older ones a claim each. An empty string means that there are none.
create function auth.jwt() returns jsonb
language sql stable
return coalesce(
  nullif(current_setting('request.jwt.claim', true), ''),
  nullif(current_setting('request.jwt.claims', true), '')
)::jsonb;

create function auth.uid() returns uuid
language sql stable
return coalesce(
  nullif(current_setting('request.jwt.claim.sub', true), ''),
  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
)::uuid;

create function auth.role() returns text
language sql stable
return coalesce(
  nullif(current_setting('request.jwt.claim.role', true), ''),
  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
);

create function auth.email() returns text
language sql stable
return coalesce(
  nullif(current_setting('request.jwt.claim.email', true), ''),
  nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email'
);

alter function auth.jwt() owner to supabase_auth_admin;
alter function auth.uid() owner to supabase_auth_admin;
alter function auth.role() owner to supabase_auth_admin;
alter function auth.email() owner to supabase_auth_admin;
