-- Tenants: who owns data. A user's own tenant has the user's id; an organisation has members.
--
-- The first folder of an object's name is the tenant's id, and that folder, not the uploader,
-- decides the tenant.

create type public.tenant_kind as enum ('personal', 'organisation');
create type public.tenant_role as enum ('reader', 'editor', 'admin');   -- in rising order: policies compare with >=

create table public.tenants (
  id          uuid primary key default gen_random_uuid(),
  kind        public.tenant_kind not null default 'organisation',
  name        text not null check (char_length(name) between 1 and 200),
  language    text not null default 'english' check (language in (
                'simple', 'danish', 'dutch', 'english', 'finnish', 'french', 'german', 'italian',
                'norwegian', 'portuguese', 'russian', 'spanish', 'swedish')),
  created_at  timestamptz not null default now(),
  unique (id, kind)
);
comment on table public.tenants is 'Who owns documents: a user (kind personal, id = the user''s id) or an organisation with members.';
comment on column public.tenants.language is 'The text search language of new documents and of queries that name none.';

create table public.tenant_members (
  tenant_id   uuid not null,
  user_id     uuid not null references auth.users (id) on delete cascade,
  role        public.tenant_role not null default 'reader',
  kind        public.tenant_kind not null default 'organisation' check (kind = 'organisation'),
  created_at  timestamptz not null default now(),
  primary key (tenant_id, user_id),
  -- The kind travels in the key, so that a personal tenant can have no members.
  foreign key (tenant_id, kind) references public.tenants (id, kind) on delete cascade
);
comment on table public.tenant_members is 'Members of organisations and what they may do there: reader < editor < admin.';
create index tenant_members_user_idx on public.tenant_members (user_id);
create index tenant_members_tenant_kind_idx on public.tenant_members (tenant_id, kind);

-- The caller's tenants in which they hold at least this role.
--
-- Policies call it as `tenant_id = any (array(select ingest.my_tenants('reader')))`: an InitPlan
-- with an index condition (0.4 ms for 10,000 of 300,000 rows), where `tenant_id in (select …)`
-- becomes a filter over every tenant's rows (16 ms).
create function ingest.my_tenants(p_role public.tenant_role)
returns setof uuid language sql stable security definer rows 4 set search_path = '' as $$
  select auth.uid() where auth.uid() is not null
  union
  select m.tenant_id from public.tenant_members m where m.user_id = auth.uid() and m.role >= p_role
$$;

-- A new user gets their own tenant. A failure here must not fail the sign-up; the object trigger
-- makes the missing row when the user's first file arrives.
create function ingest.user_created()
returns trigger language plpgsql security definer set search_path = '' as $$
begin
  insert into public.tenants (id, kind, name) values (new.id, 'personal', 'Personal') on conflict (id) do nothing;
  return null;
exception when others then
  raise warning 'sluice: no personal tenant was made for user %: %', new.id, sqlerrm;
  return null;
end $$;

create or replace trigger sluice_user_created after insert on auth.users
  for each row execute function ingest.user_created();

insert into public.tenants (id, kind, name)
select id, 'personal', 'Personal' from auth.users
on conflict (id) do nothing;

-- An organisation keeps an admin for as long as it exists.
create function ingest.admin_left()
returns trigger language plpgsql security definer set search_path = '' as $$
begin
  -- The tenant's row lock puts two admins who leave at the same time one behind the other; when the
  -- organisation itself is being deleted the row is gone and nothing needs to stay.
  perform 1 from public.tenants where id = old.tenant_id for no key update;
  if found and not exists (select 1 from public.tenant_members where tenant_id = old.tenant_id and role = 'admin') then
    raise exception 'The last admin cannot leave an organisation.'
      using errcode = 'IG010', hint = 'Make another member an admin first, or delete the organisation.';
  end if;
  return null;
end $$;

create trigger admin_left after delete or update of role, user_id, tenant_id on public.tenant_members
  for each row when (old.role = 'admin') execute function ingest.admin_left();
