-- Invitations: an admin names a person by e-mail address or user id; that person accepts. Neither the
-- call nor its answer tells whether the person exists: no account is looked up until somebody accepts.
--
-- An e-mail address is believed when Auth says that it was confirmed. A project that confirms every
-- address by itself lets anybody accept for any address: there, invite by user id.

create table public.tenant_invitations (
  id          uuid primary key default gen_random_uuid(),
  tenant_id   uuid not null references public.tenants (id) on delete cascade,
  email       text check (email = lower(email) and char_length(email) between 3 and 320),
  user_id     uuid,                                        -- no foreign key: it would tell who exists
  role        public.tenant_role not null,
  invited_by  uuid not null,
  created_at  timestamptz not null default now(),
  expires_at  timestamptz not null default now() + interval '14 days',
  constraint one_person check ((email is null) <> (user_id is null)),
  unique (tenant_id, email),
  unique (tenant_id, user_id)
);
comment on table public.tenant_invitations is 'Who was invited to an organisation and has not answered yet; for its admins.';
create index tenant_invitations_email_idx on public.tenant_invitations (email) where email is not null;
create index tenant_invitations_user_idx on public.tenant_invitations (user_id) where user_id is not null;
alter table public.tenant_invitations enable row level security;
create policy admins_read on public.tenant_invitations for select to authenticated
  using (tenant_id = any (array(select ingest.my_tenants('admin'))));

-- Invite one person; a second invitation of the same person takes the first one's place. A hundred open
-- ones an organisation at most.
create function ingest.invite_for_admin(p_tenant uuid, p_role public.tenant_role, p_email text, p_user uuid)
returns uuid language plpgsql security definer set search_path = '' as $$
declare
  v_email  text := pg_catalog.lower(pg_catalog.btrim(p_email));
  v_id     uuid;
begin
  perform ingest.must_administer(p_tenant);
  if p_role is null or (v_email is null) = (p_user is null) or v_email is not null and v_email !~ '^[^@\s]{1,64}@[^@\s]{1,255}$' then
    raise exception 'An invitation names a role and one person: by e-mail address or by user id.' using errcode = '22023';
  end if;
  -- The row of the organisation puts two calls one behind the other.
  perform 1 from public.tenants where id = p_tenant for no key update;
  delete from public.tenant_invitations where tenant_id = p_tenant
     and (email = v_email or user_id = p_user or expires_at <= pg_catalog.now());
  if (select pg_catalog.count(*) from public.tenant_invitations where tenant_id = p_tenant) >= 100 then
    raise exception 'The organisation has 100 open invitations, which is the most.' using errcode = '42501',
      hint = 'Withdraw some of them first.';
  end if;
  insert into public.tenant_invitations (tenant_id, email, user_id, role, invited_by)
  values (p_tenant, v_email, p_user, p_role, auth.uid())
  returning id into v_id;
  return v_id;
end $$;

-- The caller's own open invitations.
create function ingest.invitations_of_caller()
returns table (id uuid, tenant_id uuid, tenant_name text, role public.tenant_role, expires_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select i.id, i.tenant_id, t.name, i.role, i.expires_at
    from public.tenant_invitations i join public.tenants t on t.id = i.tenant_id
   where i.expires_at > pg_catalog.now()
     and (i.user_id = auth.uid()
          or i.email = (select pg_catalog.lower(u.email) from auth.users u where u.id = auth.uid() and u.email_confirmed_at is not null))
$$;

-- Become a member; returns the organisation. Who is one already keeps their role.
create function ingest.accept_for_caller(p_invitation uuid)
returns uuid language plpgsql security definer set search_path = '' as $$
declare
  v_invitation public.tenant_invitations;
begin
  delete from public.tenant_invitations d
   where d.id = p_invitation and d.id in (select i.id from ingest.invitations_of_caller() i)
  returning * into v_invitation;
  if not found then
    raise exception 'There is no invitation % for you.', p_invitation using errcode = '42501',
      hint = 'It may have been withdrawn or have run out after 14 days, or your e-mail address is not confirmed yet.';
  end if;
  insert into public.tenant_members (tenant_id, user_id, role)
  values (v_invitation.tenant_id, auth.uid(), v_invitation.role)
  on conflict (tenant_id, user_id) do nothing;
  return v_invitation.tenant_id;
end $$;

-- Take an invitation back, as an admin, or turn it down, as the person it is for. Returns whether there was one.
create function ingest.withdraw_for_caller(p_invitation uuid)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
  delete from public.tenant_invitations d
   where d.id = p_invitation
     and (d.id in (select i.id from ingest.invitations_of_caller() i)
          or d.tenant_id = any (array(select ingest.my_tenants('admin'))));
  return found;
end $$;

-- What the API calls.
create function public.invite_member(tenant uuid, role public.tenant_role, email text default null, member uuid default null)
returns uuid language sql set search_path = '' as $$ select ingest.invite_for_admin(tenant, role, email, member) $$;
comment on function public.invite_member is 'Invite one person by e-mail address or user id. The answer is the same whether they exist or not.';
create function public.my_invitations()
returns table (id uuid, tenant_id uuid, tenant_name text, role public.tenant_role, expires_at timestamptz)
language sql stable set search_path = '' as $$
  select i.id, i.tenant_id, i.tenant_name, i.role, i.expires_at from ingest.invitations_of_caller() i
$$;
create function public.accept_invitation(invitation uuid)
returns uuid language sql set search_path = '' as $$ select ingest.accept_for_caller(invitation) $$;
create function public.withdraw_invitation(invitation uuid)
returns boolean language sql set search_path = '' as $$ select ingest.withdraw_for_caller(invitation) $$;

revoke all on public.tenant_invitations from anon, authenticated, service_role;
revoke execute on function
  ingest.invite_for_admin(uuid, public.tenant_role, text, uuid), ingest.invitations_of_caller(),
  ingest.accept_for_caller(uuid), ingest.withdraw_for_caller(uuid),
  public.invite_member(uuid, public.tenant_role, text, uuid), public.my_invitations(),
  public.accept_invitation(uuid), public.withdraw_invitation(uuid)
  from public, anon, authenticated, service_role;
grant select on public.tenant_invitations to authenticated, service_role;
grant execute on function
  ingest.invite_for_admin(uuid, public.tenant_role, text, uuid), ingest.invitations_of_caller(),
  ingest.accept_for_caller(uuid), ingest.withdraw_for_caller(uuid),
  public.invite_member(uuid, public.tenant_role, text, uuid), public.my_invitations(),
  public.accept_invitation(uuid), public.withdraw_invitation(uuid)
  to authenticated;
