-- Roles, once a cluster, run by the superuser supabase_admin.
--
-- The hosted platform keeps its superuser to itself: `postgres`, which applies migrations, is not one.
-- Passwords are set afterwards, from the stack's generated secrets.

create role postgres login nosuperuser createdb createrole replication bypassrls;

create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;

create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;
-- The ADMIN option is the platform's since Postgres 16: a project may pass these roles on.
grant anon, authenticated, service_role to postgres with admin option;

create role supabase_auth_admin login noinherit createrole;
create role supabase_storage_admin login noinherit createrole;
grant anon, authenticated, service_role to supabase_storage_admin;
create role supabase_realtime_admin nologin noinherit;

-- REST and Auth of the local server. It owns nothing, so the server's attempt to widen grants has no effect.
create role lite_api login noinherit;
grant anon, authenticated, service_role to lite_api with inherit true, set true;

-- Realtime of the local server. It decodes what is committed, and owns the messages for the rows by which it judges
-- a channel.
create role realtime_bridge login noinherit replication;
grant anon, authenticated, service_role to realtime_bridge with inherit false, set true;
grant supabase_realtime_admin to realtime_bridge with inherit true, set false;

-- A role's setting acts at login only. PostgREST applies those of anon and authenticated by itself, the
-- local server does not: what bounds it is lite_api's own.
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role lite_api set statement_timeout = '8s';

alter role postgres set search_path = "$user", public, extensions;
alter role supabase_admin set search_path = "$user", public, auth, extensions;
