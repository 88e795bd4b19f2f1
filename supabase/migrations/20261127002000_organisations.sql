-- Organisations: made, renamed and left by their members, through functions that check the caller.
-- Roles are reader < editor < admin; whatever concerns members wants an admin. Nobody writes the tables
-- in another way. A removal acts at once: every policy asks the table of members anew.

-- Refuse a caller who is no admin of this organisation. One that does not exist sounds the same.
create function ingest.must_administer(p_tenant uuid)
returns void language plpgsql stable set search_path = '' as $$
begin
  if not exists (select 1 from public.tenant_members m
                  where m.tenant_id = p_tenant and m.user_id = auth.uid() and m.role = 'admin') then
    raise exception 'You are no admin of an organisation %.', p_tenant using errcode = '42501',
      hint = 'Ask one of its admins.';
  end if;
end $$;

create function ingest.tenant_name(p_name text)
returns text language plpgsql immutable set search_path = '' as $$
begin
  if (pg_catalog.char_length(pg_catalog.btrim(p_name)) between 1 and 200) is not true then
    raise exception 'An organisation''s name has 1 to 200 characters.' using errcode = '22023';
  end if;
  return pg_catalog.btrim(p_name);
end $$;

-- The caller becomes its admin. Twenty a person: each organisation has quotas of its own.
create function ingest.create_organisation_for_caller(p_name text)
returns uuid language plpgsql security definer set search_path = '' as $$
declare
  v_tenant uuid;
begin
  if auth.uid() is null then
    raise exception 'Sign in to create an organisation.' using errcode = '42501';
  end if;
  -- Two calls at once count one after the other.
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(auth.uid()::text, 7150010005));
  if (select pg_catalog.count(*) from public.tenant_members m where m.user_id = auth.uid() and m.role = 'admin') >= 20 then
    raise exception 'You are an admin of 20 organisations already, which is the most.' using errcode = '42501',
      hint = 'Leave or hand over one of them.';
  end if;
  insert into public.tenants (name) values (ingest.tenant_name(p_name)) returning id into v_tenant;
  insert into public.tenant_members (tenant_id, user_id, role) values (v_tenant, auth.uid(), 'admin');
  return v_tenant;
end $$;

create function ingest.rename_for_admin(p_tenant uuid, p_name text)
returns void language plpgsql security definer set search_path = '' as $$
begin
  perform ingest.must_administer(p_tenant);
  update public.tenants set name = ingest.tenant_name(p_name) where id = p_tenant;
end $$;

-- Raises IG010 when it would leave the organisation without an admin.
create function ingest.change_role_for_admin(p_tenant uuid, p_user uuid, p_role public.tenant_role)
returns void language plpgsql security definer set search_path = '' as $$
begin
  perform ingest.must_administer(p_tenant);
  update public.tenant_members set role = p_role where tenant_id = p_tenant and user_id = p_user;
  if not found then
    raise exception 'User % is no member of this organisation.', p_user using errcode = '22023', hint = 'Invite them first.';
  end if;
end $$;

-- Returns whether they were a member. Raises IG010 for the last admin.
create function ingest.remove_member_for_admin(p_tenant uuid, p_user uuid)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
  perform ingest.must_administer(p_tenant);
  delete from public.tenant_members where tenant_id = p_tenant and user_id = p_user;
  return found;
end $$;

-- Returns whether the caller was a member. Raises IG010 for the last admin.
create function ingest.leave_for_caller(p_tenant uuid)
returns boolean language plpgsql security definer set search_path = '' as $$
begin
  delete from public.tenant_members where tenant_id = p_tenant and user_id = auth.uid();
  return found;
end $$;

-- What the API calls.
create function public.create_organisation(name text)
returns uuid language sql set search_path = '' as $$ select ingest.create_organisation_for_caller(name) $$;
comment on function public.create_organisation is 'Make an organisation, whose admin the caller becomes; returns its id, the first folder of its files.';
create function public.rename_organisation(tenant uuid, name text)
returns void language sql set search_path = '' as $$ select ingest.rename_for_admin(tenant, name) $$;
create function public.change_role(tenant uuid, member uuid, role public.tenant_role)
returns void language sql set search_path = '' as $$ select ingest.change_role_for_admin(tenant, member, role) $$;
create function public.remove_member(tenant uuid, member uuid)
returns boolean language sql set search_path = '' as $$ select ingest.remove_member_for_admin(tenant, member) $$;
create function public.leave_organisation(tenant uuid)
returns boolean language sql set search_path = '' as $$ select ingest.leave_for_caller(tenant) $$;

revoke execute on function
  ingest.must_administer(uuid), ingest.tenant_name(text), ingest.create_organisation_for_caller(text),
  ingest.rename_for_admin(uuid, text), ingest.change_role_for_admin(uuid, uuid, public.tenant_role),
  ingest.remove_member_for_admin(uuid, uuid), ingest.leave_for_caller(uuid),
  public.create_organisation(text), public.rename_organisation(uuid, text),
  public.change_role(uuid, uuid, public.tenant_role), public.remove_member(uuid, uuid), public.leave_organisation(uuid)
  from public, anon, authenticated, service_role;
grant execute on function
  ingest.create_organisation_for_caller(text),
  ingest.rename_for_admin(uuid, text), ingest.change_role_for_admin(uuid, uuid, public.tenant_role),
  ingest.remove_member_for_admin(uuid, uuid), ingest.leave_for_caller(uuid),
  public.create_organisation(text), public.rename_organisation(uuid, text),
  public.change_role(uuid, uuid, public.tenant_role), public.remove_member(uuid, uuid), public.leave_organisation(uuid)
  to authenticated;
